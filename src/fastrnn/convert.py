"""Parameters from and to Keras 3, ONNX, Flax and oneDNN. (PyTorch's are ours: names, shapes and gate order agree.)

Each of these describes one layer, so ``to_...`` returns, and ``from_...`` takes, a list with one entry for each layer
of the stack::

    keras    [kernel, recurrent_kernel, bias], as get_weights() returns and set_weights() takes it, of SimpleRNN, LSTM
             and GRU; of a Bidirectional, the second direction's arrays after the first's
    onnx     {"W": ..., "R": ..., "B": ..., "P": ...}, inputs of the operators RNN, LSTM and GRU, version 7 and later
    flax     a tuple with one tree of parameters for each direction, {"ii": {"kernel": ...}, ...}, of flax.linen's
             SimpleCell, LSTMCell or OptimizedLSTMCell, and GRUCell
    onednn   {"weights_layer": ..., "weights_iter": ..., "bias": ..., "weights_peephole": ...,
             "weights_projection": ...}, in the logical dimensions of the RNN primitives, with L = 1

``state_dict`` is what ``state_dict()`` of a layer returns and ``load_state_dict()`` takes, ``cell`` is "RNN", "LSTM" or
"GRU", ``reset_after`` the GRU's option, ``coupled`` the LSTM's: a state dict names no gates, and that of a coupled LSTM
has the shapes of one without forget gate. The arrays are new ones, of the dtype that came.

Where a format has one bias, it holds b_ih + b_hh; what comes back is b_ih, and b_hh is zero. So from a format to a
state dict and back every bit is the same, and from a state dict and back the function.

All raise ValueError or TypeError naming what was expected and what came, also if a layer has what a format has no place
for: a projection, peepholes, an LSTM without forget gate, another form of the GRU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import checks
from .weights import STEMS, Weights, suffixes

__all__ = ["from_flax", "from_keras", "from_onednn", "from_onnx", "to_flax", "to_keras", "to_onednn", "to_onnx"]

# Orders of the gates, in our letters: Keras has c and h for g and n, ONNX the same, oneDNN u and o for z and n.
_OURS = {"RNN": "h", "LSTM": "ifgo", "GRU": "rzn"}
_KERAS = {"RNN": "h", "LSTM": "ifgo", "GRU": "zrn"}
_ONNX = {"RNN": "h", "LSTM": "iofg", "GRU": "zrn"}
_FLAX = {"RNN": "h", "LSTM": "ifgo", "GRU": "rzn"}
_ONEDNN = {"RNN": "h", "LSTM": "ifgo", "GRU": "zrn"}

_FLAX_BIASES = {"RNN": ("i",), "LSTM": ("hi", "hf", "hg", "ho"), "GRU": ("ir", "iz", "in", "hn")}
_ONEDNN_NAMES = ("weights_layer", "weights_iter", "bias", "weights_peephole", "weights_projection")


# Between formats one direction of a level is a Weights whose rows are (blocks, units): W (G, H, I), R (G, H, O), biases
# (G, H), P (1, O, H), peepholes (3, H).


def _flax_name(letter, gate):
    return letter if gate == "h" else letter + gate


def to_keras(state_dict: Mapping[str, np.ndarray], cell: str, *, reset_after: bool = True) -> list[list[np.ndarray]]:
    """For each layer what ``set_weights`` takes.

    kernel (I, G*H), recurrent_kernel (H, G*H), and bias (G*H,), or (2, 3*H) of a GRU with ``reset_after``; none for a
    layer without biases (``use_bias=False``). A Bidirectional is one with ``merge_mode="concat"``.
    """
    two_biases = checks.flag(reset_after, "reset_after") and cell == "GRU"
    layers = []
    for directions in _split(state_dict, cell, _KERAS):
        arrays = []
        for w in directions:
            _refuse("Keras", projection=w.P, peepholes=w.p)
            arrays += [w.W.reshape(-1, w.W.shape[2]).T.copy(), w.R.reshape(-1, w.R.shape[2]).T.copy()]
            if w.b_ih is not None:
                arrays.append(np.stack([w.b_ih.ravel(), w.b_hh.ravel()]) if two_biases else _one_bias(w).ravel())
        layers.append(arrays)
    return layers


def from_keras(
    weights: Iterable[Sequence[np.ndarray]], cell: str, *, reset_after: bool = True
) -> dict[str, np.ndarray]:
    """A state dict from what ``get_weights`` of each layer returns; see ``to_keras``."""
    G = len(_gates(cell))
    two_biases = checks.flag(reset_after, "reset_after") and cell == "GRU"
    layers = []
    for k, arrays in enumerate(_list(weights, "weights")):
        name = f"weights[{k}]"
        arrays = _list(arrays, name)
        n = len(arrays)
        if n not in (2, 3, 4, 6):
            raise ValueError(f"{name}: expected kernel, recurrent_kernel and bias, or twice these, got {n} arrays")
        directions = []
        for first in range(0, n, n if n <= 3 else n // 2):
            R = _array(arrays[first + 1], f"{name}[{first + 1}] (recurrent_kernel)", (None, None))
            H = len(R)
            R = _array(R, f"{name}[{first + 1}] (recurrent_kernel)", (H, G * H))
            W = _array(arrays[first], f"{name}[{first}] (kernel)", (None, G * H))
            w = Weights(W.T.reshape(G, H, len(W)), R.T.reshape(G, H, H))
            if n % 3 == 0:
                shape = (2, G * H) if two_biases else (G * H,)
                b = _array(arrays[first + 2], f"{name}[{first + 2}] (bias)", shape).reshape(-1, G, H)
                w = w._replace(b_ih=b[0], b_hh=b[1] if two_biases else np.zeros_like(b[0]))
            directions.append(w)
        layers.append(directions)
    return _join(layers, cell, _KERAS, "weights")


def to_onnx(state_dict: Mapping[str, np.ndarray], cell: str, *, coupled: bool = False) -> list[dict[str, np.ndarray]]:
    """For each layer the inputs of a node.

    W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) unless the layer has no biases, P (D, 3*H) if it has peepholes. The
    attributes must say the same: hidden_size; direction, "forward" or "bidirectional" (whose Y (T, D, B, H) the next
    layer reads as (T, B, D*H)); linear_before_reset=1 for a GRU with ``reset_after``; input_forget=1 for an LSTM with
    ``coupled``, whose forget gate has zeros, which are not used; the activations of an RNN.
    """
    layers = []
    for directions in _split(state_dict, cell, _ONNX, coupled):
        layer = {"W": [], "R": [], "B": [], "P": []}
        for w in directions:
            _refuse("ONNX", projection=w.P)
            layer["W"].append(w.W.reshape(-1, w.W.shape[2]))
            layer["R"].append(w.R.reshape(-1, w.R.shape[2]))
            if w.b_ih is not None:
                layer["B"].append(np.concatenate([w.b_ih.ravel(), w.b_hh.ravel()]))
            if w.p is not None:
                layer["P"].append(_reorder(w.p, "ifo", "iof").ravel())
        layers.append({name: np.stack(arrays) for name, arrays in layer.items() if arrays})
    return layers


def from_onnx(nodes: Iterable[Mapping[str, np.ndarray]], cell: str, *, coupled: bool = False) -> dict[str, np.ndarray]:
    """A state dict from the inputs of each layer's node; see ``to_onnx``. B and P are optional."""
    _gates(cell, coupled)
    G = len(_ONNX[cell])
    layers = []
    for k, node in enumerate(_list(nodes, "nodes")):
        name = f"nodes[{k}]"
        _check_keys(node, name, ("W", "R"), ("B", "P") if cell == "LSTM" else ("B",))
        R = _array(node["R"], f"{name}['R']", (None, None, None))
        D, _, H = R.shape
        R = _array(R, f"{name}['R']", (D, G * H, H))
        W = _array(node["W"], f"{name}['W']", (D, G * H, None))
        directions = [Weights(W[d].reshape(G, H, -1), R[d].reshape(G, H, H)) for d in range(D)]
        if "B" in node:
            B = _array(node["B"], f"{name}['B']", (D, 2 * G * H)).reshape(D, 2, G, H)
            directions = [w._replace(b_ih=b[0], b_hh=b[1]) for w, b in zip(directions, B, strict=True)]
        if "P" in node:
            P = _array(node["P"], f"{name}['P']", (D, 3 * H)).reshape(D, 3, H)
            directions = [w._replace(p=_reorder(p, "iof", "ifo")) for w, p in zip(directions, P, strict=True)]
        layers.append(directions)
    return _join(layers, cell, _ONNX, "nodes", coupled)


def to_flax(state_dict: Mapping[str, np.ndarray], cell: str) -> list[tuple[dict[str, Any], ...]]:
    """For each layer and direction a cell's parameters.

    Kernels (I, H) and (H, H), biases (H,): of an LSTM in hi, hf, hg, ho, of a GRU in ir, iz, in, hn, of an RNN in i;
    zeros for a layer without biases. A GRU is one with ``reset_after``.
    """
    layers = []
    for directions in _split(state_dict, cell, _FLAX):
        trees = []
        for w in directions:
            _refuse("Flax", projection=w.P, peepholes=w.p)
            tree = {}
            for letter, kernels in (("i", w.W), ("h", w.R)):
                for gate, kernel in zip(_FLAX[cell], kernels, strict=True):
                    tree[_flax_name(letter, gate)] = {"kernel": kernel.T.copy()}
            biases = _one_bias(w, and_of_n=cell == "GRU")
            for name, bias in zip(_FLAX_BIASES[cell], biases, strict=True):
                tree[name]["bias"] = bias
            trees.append(tree)
        layers.append(tuple(trees))
    return layers


def from_flax(layers: Iterable[Sequence[Mapping[str, Any]]], cell: str) -> dict[str, np.ndarray]:
    """A state dict from each layer's and direction's parameters; see ``to_flax``."""
    G = len(_gates(cell))
    stack = []
    for k, trees in enumerate(_list(layers, "layers")):
        directions = []
        for d, tree in enumerate(_list(trees, f"layers[{k}]")):
            name = f"layers[{k}][{d}]"
            names = [[_flax_name(letter, gate) for gate in _FLAX[cell]] for letter in "ih"]
            _check_keys(tree, name, names[0] + names[1])
            for part, arrays in tree.items():
                biases = ("bias",) if part in _FLAX_BIASES[cell] else ()
                _check_keys(arrays, f"{name}[{part!r}]", ("kernel", *biases))

            def leaf(part, array, shape, name=name, tree=tree):
                return _array(tree[part][array], f"{name}[{part!r}][{array!r}]", shape)

            H = leaf(names[1][0], "kernel", (None, None)).shape[1]
            I = leaf(names[0][0], "kernel", (None, H)).shape[0]
            W = np.stack([leaf(part, "kernel", (I, H)).T for part in names[0]])
            R = np.stack([leaf(part, "kernel", (H, H)).T for part in names[1]])
            b = np.stack([leaf(part, "bias", (H,)) for part in _FLAX_BIASES[cell]])
            directions.append(Weights(W, R, *_two_biases(b, G)))
        stack.append(directions)
    return _join(stack, cell, _FLAX, "layers")


def to_onednn(
    state_dict: Mapping[str, np.ndarray], cell: str, *, reset_after: bool = True
) -> list[dict[str, np.ndarray]]:
    """For each layer the weights of a primitive, vanilla_rnn, lstm, gru, or for a GRU with ``reset_after`` lbr_gru.

    weights_layer (1, D, I, G, H), weights_iter (1, D, O, G, H), bias (1, D, G, H), or (1, D, 4, H) of lbr_gru, unless
    the layer has no biases, weights_peephole (1, D, 3, H), weights_projection (1, D, H, O): dense arrays in the formats
    ldigo, ldgo and ldio. Two directions are ``bidirectional_concat``.
    """
    and_of_n, layers = checks.flag(reset_after, "reset_after") and cell == "GRU", []
    for directions in _split(state_dict, cell, _ONEDNN):
        layer = {name: [] for name in _ONEDNN_NAMES}
        for w in directions:
            layer["weights_layer"].append(w.W.transpose(2, 0, 1))
            layer["weights_iter"].append(w.R.transpose(2, 0, 1))
            if w.b_ih is not None:
                layer["bias"].append(_one_bias(w, and_of_n=and_of_n))
            if w.p is not None:
                layer["weights_peephole"].append(w.p)
            if w.P is not None:
                layer["weights_projection"].append(w.P[0].T)
        layers.append({name: np.ascontiguousarray([arrays]) for name, arrays in layer.items() if arrays})
    return layers


def from_onednn(
    layers: Iterable[Mapping[str, np.ndarray]], cell: str, *, reset_after: bool = True
) -> dict[str, np.ndarray]:
    """A state dict from each layer's weights; see ``to_onednn``. All but the first two may be missing."""
    G = len(_gates(cell))
    blocks = G + 1 if checks.flag(reset_after, "reset_after") and cell == "GRU" else G
    stack = []
    for k, layer in enumerate(_list(layers, "layers")):
        name = f"layers[{k}]"
        _check_keys(layer, name, _ONEDNN_NAMES[:2], _ONEDNN_NAMES[2:] if cell == "LSTM" else _ONEDNN_NAMES[2:3])
        W = _array(layer["weights_layer"], f"{name}['weights_layer']", (1, None, None, G, None))[0]
        D, _, _, H = W.shape
        O = None if "weights_projection" in layer else H
        R = _array(layer["weights_iter"], f"{name}['weights_iter']", (1, D, O, G, H))[0]
        shapes = ((1, D, blocks, H), (1, D, 3, H), (1, D, H, R.shape[1]))
        b, p, P = (
            _array(layer[part], f"{name}[{part!r}]", shape)[0] if part in layer else [None] * D
            for part, shape in zip(_ONEDNN_NAMES[2:], shapes, strict=True)
        )
        stack.append(
            [
                Weights(
                    W[d].transpose(1, 2, 0),
                    R[d].transpose(1, 2, 0),
                    *_two_biases(b[d], G),
                    P=None if P[d] is None else P[d].T[np.newaxis],
                    p=p[d],
                )
                for d in range(D)
            ]
        )
    return _join(stack, cell, _ONEDNN, "layers")


# ---- State dicts. ----


def _gates(cell, coupled=False):
    """Our gates in our order."""
    checks.choice(cell, "cell", ("RNN", "LSTM", "GRU"))
    if checks.flag(coupled, "coupled") and cell != "LSTM":
        raise ValueError(f"coupled: expected False for {cell}, got {coupled!r}")
    return "igo" if coupled else _OURS[cell]


def _split(state_dict, cell, order, coupled=False) -> list[list[Weights]]:
    """The directions of the layers of a state dict, with the gates in the order of a format."""
    gates = _gates(cell, coupled)
    rest = dict(checks.mapping(state_dict, "state_dict", "names to arrays"))

    def array(name, *shape):
        if name not in rest:
            raise ValueError(f"state_dict: expected a key {name!r}, got {', '.join(map(repr, state_dict)) or 'none'}")
        return _array(rest[name], f"state_dict[{name!r}]", shape)

    def take(name, shape):
        value = array(name, shape[0] * shape[1], *shape[2:])
        del rest[name]
        return value.reshape(shape)

    held = {"weight_ih", "weight_hh"}
    if "bias_ih_l0" in rest or "bias_hh_l0" in rest:
        held |= {"bias_ih", "bias_hh"}
    if cell == "LSTM":
        held |= {stem for stem in ("weight_hr", "weight_peep") if f"{stem}_l0" in rest}
    rows, I = array("weight_ih_l0", None, None).shape
    O, H = array("weight_hr_l0" if "weight_hr" in held else "weight_hh_l0", None, None).shape
    G, O = len(gates), O if "weight_hr" in held else H
    if rows != G * H:
        kind = f"a coupled {cell}" if coupled else f"cell {cell!r}"
        raise ValueError(
            f"state_dict['weight_ih_l0']: expected shape {(G * H, I)}, {G} blocks of {H} units as {kind} has them, "
            f"got {(rows, I)}"
        )
    D = 2 if "weight_ih_l0_reverse" in rest else 1
    layers = []
    while not layers or f"weight_ih_l{len(layers)}" in rest:
        shapes = ((G, H, I), (G, H, O), (G, H), (G, H), (1, O, H), (3, H))
        directions = []
        for suffix in suffixes(len(layers), D == 2):
            arrays = [
                take(stem + suffix, shape) if stem in held else None for stem, shape in zip(STEMS, shapes, strict=True)
            ]
            directions.append(_in_order(Weights(*arrays), gates, order[cell]))
        layers.append(directions)
        I = D * O
    if rest:
        raise ValueError(f"state_dict: expected no key {', '.join(map(repr, rest))} beside the others of {cell}")
    return layers


def _join(layers, cell, order, what, coupled=False) -> dict[str, np.ndarray]:
    """The opposite: a state dict of layers whose gates are in the order of a format."""
    gates = _gates(cell, coupled)
    if not layers:
        raise ValueError(f"{what}: expected one layer or more, got none")
    D = len(layers[0])
    expected, state_dict = None, {}
    for k, directions in enumerate(layers):
        if len(directions) not in (1, 2) or len(directions) != D:
            wanted = D if D in (1, 2) else "1 or 2"
            raise ValueError(f"{what}[{k}]: expected directions: {wanted}, got {len(directions)}")
        for w, suffix in zip(directions, suffixes(k, D == 2), strict=True):
            shapes = {stem: a.shape for stem, a in zip(STEMS, w, strict=True) if a is not None}
            expected = expected or shapes
            if shapes != expected:
                raise ValueError(f"{what}[{k}]: expected shapes (of parts of) {expected}, got {shapes}")
            for stem, a in zip(STEMS, _in_order(w, order[cell], gates), strict=True):
                if a is not None:
                    state_dict[stem + suffix] = np.array(a.reshape(-1, *a.shape[2:]), order="C")
        G, H, O = expected["weight_hh"]
        expected = expected | {"weight_ih": (G, H, D * O)}
    return state_dict


# ---- Biases and gates. ----


def _one_bias(w: Weights, and_of_n=False) -> np.ndarray:
    """b_ih + b_hh, (G, H). With ``and_of_n``, (G + 1, H): b_ih and b_hh of the last gate stand side by side, which is
    n = tanh(W x + b_ih + r * (R h + b_hh)) in every order of the GRU's."""
    if w.b_ih is None:
        return np.zeros((len(w.W) + and_of_n, w.W.shape[1]), w.W.dtype)
    total = np.where(w.b_hh == 0, w.b_ih, w.b_ih + w.b_hh)  # -0.0 + 0.0 is 0.0
    return np.concatenate([total[:-1], w.b_ih[-1:], w.b_hh[-1:]]) if and_of_n else total


def _two_biases(bias: np.ndarray | None, G: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """b_ih and b_hh, from what ``_one_bias`` returns."""
    if bias is None:
        return None, None
    b_hh = np.zeros_like(bias[:G])
    if len(bias) > G:
        b_hh[-1] = bias[G]
    return bias[:G], b_hh


def _in_order(w: Weights, given: str, wanted: str) -> Weights:
    arrays = {name: getattr(w, name) for name in ("W", "R", "b_ih", "b_hh")}
    return w._replace(**{name: _reorder(a, given, wanted) for name, a in arrays.items() if a is not None})


def _reorder(a: np.ndarray, given: str, wanted: str) -> np.ndarray:
    """The blocks of ``a`` in another order of the gates; zeros for one that is not given."""
    blocks = [a[given.index(gate)] if gate in given else np.zeros_like(a[0]) for gate in wanted]
    return np.ascontiguousarray(np.stack(blocks))


# ---- Checks. ----


def _refuse(whose, **parts):
    for name, part in parts.items():
        if part is not None:
            raise ValueError(f"state_dict: expected no {name}, which {whose} does not have")


def _list(value, name):
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a list, got {type(value).__name__}")
    return list(value)


def _check_keys(value, name, required, optional=()):
    checks.mapping(value, name, "names to arrays")
    if not set(required) <= value.keys() <= {*required, *optional}:
        maybe = f", and possibly {', '.join(optional)}" if optional else ""
        raise ValueError(f"{name}: expected the keys {', '.join(required)}{maybe}, got {', '.join(map(str, value))}")


def _array(value, name, shape):
    """``value`` as an array of floating-point numbers and of this shape, None for any size but 0."""
    array = checks.array(value, name)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected an array of floating-point numbers, got dtype {array.dtype}")
    if array.ndim != len(shape) or any(n != m if m else n == 0 for n, m in zip(array.shape, shape, strict=True)):
        sizes = str(tuple("any" if n is None else n for n in shape)).replace("'", "")
        raise ValueError(f"{name}: expected shape {sizes}, got {array.shape}")
    return array
