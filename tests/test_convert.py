"""Parameters of other libraries: the same function there as here, by their documented equations and by themselves where
they are installed; the same bits after a round trip; errors."""

import importlib.util
import itertools
import os
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import oracles
import pytest
from helpers import assert_close, assert_meaningful, assert_same_bits, orthogonal

from fastrnn import convert
from fastrnn.storage import parameter_shapes

STEPS, BATCH, INPUTS, HIDDEN, PROJECTED = 7, 3, 5, 4, 2


class Case(NamedTuple):
    cell: str
    options: Mapping = MappingProxyType({})
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True

    def __str__(self):
        options = [name if value else f"not_{name}" for name, value in self.options.items()]
        return "-".join([self.cell, *options, f"L{self.num_layers}", f"D{self.directions}", "b" * self.bias])

    @property
    def directions(self):
        return 1 + self.bidirectional

    @property
    def arguments(self):
        """What a conversion must be told."""
        return {name: self.options[name] for name in ("reset_after", "coupled") if name in self.options}

    @property
    def output_size(self):
        return self.options.get("proj_size", HIDDEN)


def cases(*cells):
    """Of each (cell, options), every combination of layers, directions and biases."""
    every = [Case(*cell, *rest) for cell in cells for rest in itertools.product((1, 2), (False, True), (True, False))]
    return pytest.mark.parametrize("case", every, ids=str)


RNN, LSTM = ("RNN", {}), ("LSTM", {})
GRU, GRU_BEFORE = ("GRU", {"reset_after": True}), ("GRU", {"reset_after": False})
PEEPHOLE, COUPLED = ("LSTM", {"peephole": True}), ("LSTM", {"coupled": True})
COUPLED_PEEPHOLE = ("LSTM", {"coupled": True, "peephole": True})
LSTMP, LSTMP_PEEPHOLE = ("LSTM", {"proj_size": PROJECTED}), ("LSTM", {"proj_size": PROJECTED, "peephole": True})

KERAS = cases(RNN, LSTM, GRU, GRU_BEFORE)
ONNX = cases(RNN, LSTM, PEEPHOLE, COUPLED, COUPLED_PEEPHOLE, GRU, GRU_BEFORE)
FLAX = cases(RNN, LSTM, ("GRU", {}))
ONEDNN = cases(RNN, LSTM, PEEPHOLE, LSTMP, LSTMP_PEEPHOLE, GRU, GRU_BEFORE)


def drawn(case, rng, dtype=np.float64):
    """A state dict whose parameters all differ, and matter."""
    options = {"input_size": INPUTS, "hidden_size": HIDDEN, "num_layers": case.num_layers, "bias": case.bias}
    options |= {"bidirectional": case.bidirectional, **case.options}
    state_dict = {}
    for name, shape in parameter_shapes(case.cell, options):
        recurrent = name.startswith(("weight_hh", "weight_hr"))
        p = 1.2 * orthogonal(rng, *shape) if recurrent else 0.7 * rng.standard_normal(shape)
        state_dict[name] = p.astype(dtype)
    return state_dict


def inputs(case, rng, dtype=np.float64):
    """x (T, B, I) and the initial states (L*D, B, .)"""
    x = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(dtype)
    sizes = (case.output_size, HIDDEN)[: 2 if case.cell == "LSTM" else 1]
    rows = case.num_layers * case.directions
    return x, tuple(0.5 * rng.standard_normal((rows, BATCH, size)).astype(dtype) for size in sizes)


def ours(case, state_dict, x, state):
    options = {name: value for name, value in case.options.items() if name != "reset_after" or case.cell == "GRU"}
    wide = {name: p.astype(np.float64) for name, p in state_dict.items()}
    state = tuple(s.astype(np.float64) for s in state)
    results = oracles.run(case.cell, options, wide, x.astype(np.float64), state, [STEPS] * BATCH).results
    assert_meaningful(results)
    return results


def through(case, layers, x, state):
    """A stack, each of its layers a function of x and its states (D, B, .) that returns y and the new states."""
    D, ends = case.directions, []
    for k, layer in enumerate(layers):
        x, end = layer(x, tuple(s[k * D : (k + 1) * D] for s in state))
        ends.append(end)
    return {"y": x} | {f"state[{i}]": np.concatenate(s) for i, s in enumerate(zip(*ends, strict=True))}


def stepwise(directions):
    """A layer of directions, each a function step(x_t, *states) that returns the new states, the output first."""

    def layer(x, state):
        outputs, ends = [], []
        for d, step in enumerate(directions):
            now, y = tuple(s[d] for s in state), []
            for x_t in x[::-1] if d else x:
                now = step(x_t, *now)
                y.append(now[0])
            outputs.append(y[::-1] if d else y)
            ends.append(now)
        return np.concatenate(outputs, axis=-1), tuple(np.stack(s) for s in zip(*ends, strict=True))

    return layer


def sigma(a):
    return 1 / (1 + np.exp(-a))


# ---- Keras: https://keras.io/api/layers/recurrent_layers ----


def keras_step(cell, arrays, reset_after=True):
    kernel, recurrent, bias = arrays if len(arrays) == 3 else (*arrays, np.zeros((2, 1)) if reset_after else 0)

    def simple(x, h):
        return (np.tanh(x @ kernel + h @ recurrent + bias),)

    def lstm(x, h, c):
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigma(f) * c + sigma(i) * np.tanh(g)
        return sigma(o) * np.tanh(c), c

    def gru(x, h):
        if reset_after:
            x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, axis=1)
            h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
            z, r = sigma(x_z + h_z), sigma(x_r + h_r)
            candidate = np.tanh(x_h + r * h_h)
        else:
            x_z, x_r, x_h = np.split(x @ kernel + bias, 3, axis=1)
            U_z, U_r, U_h = np.split(recurrent, 3, axis=1)
            z, r = sigma(x_z + h @ U_z), sigma(x_r + h @ U_r)
            candidate = np.tanh(x_h + (r * h) @ U_h)
        return (z * h + (1 - z) * candidate,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[cell]


@KERAS
def test_keras_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    layers = []
    for arrays in convert.to_keras(state_dict, case.cell, **case.arguments):
        each, reset_after = len(arrays) // case.directions, case.options.get("reset_after", False)
        halves = [arrays[start : start + each] for start in range(0, len(arrays), each)]
        layers.append(stepwise([keras_step(case.cell, half, reset_after) for half in halves]))
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


@pytest.fixture(scope="session")
def keras():
    if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("jax"):
        os.environ["KERAS_BACKEND"] = "jax"
    return pytest.importorskip("keras", exc_type=ImportError)


def keras_layer(keras, case):
    kind = {"RNN": keras.layers.SimpleRNN, "LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU}[case.cell]
    options = {"use_bias": case.bias, **({"reset_after": case.options["reset_after"]} if case.cell == "GRU" else {})}
    layer = kind(HIDDEN, return_sequences=True, return_state=True, **options)
    return keras.layers.Bidirectional(layer, merge_mode="concat") if case.bidirectional else layer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's own
@KERAS
def test_keras(case, keras, rng):
    state_dict = drawn(case, rng, np.float32)
    x, state = inputs(case, rng, np.float32)

    def layer(arrays, x, state):
        theirs = keras_layer(keras, case)
        x = x.swapaxes(0, 1)
        theirs.build(x.shape)
        theirs.set_weights(arrays)
        initial = [np.asarray(s[d]) for d in range(case.directions) for s in state]
        y, *end = (np.asarray(a) for a in theirs(x, initial_state=initial))
        assert_same_bits(convert_keras(case, [theirs.get_weights()]), convert_keras(case, [arrays]))
        return y.swapaxes(0, 1), tuple(np.stack(end[i :: len(state)]) for i in range(len(state)))

    layers = [partial(layer, arrays) for arrays in convert.to_keras(state_dict, case.cell, **case.arguments)]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 2e-6, 0)


def convert_keras(case, weights):
    return convert.from_keras(weights, case.cell, **{"reset_after": True, **case.arguments})


# ---- ONNX: https://onnx.ai/onnx/operators ----


def onnx_step(case, node, d):
    W, R = node["W"][d], node["R"][d]
    W_b, R_b = np.split(node["B"][d], 2) if "B" in node else (np.zeros(len(W)), np.zeros(len(W)))
    p_i, p_o, p_f = np.split(node["P"][d], 3) if "P" in node else (0, 0, 0)

    def simple(x, h):
        return (np.tanh(x @ W.T + h @ R.T + W_b + R_b),)

    def lstm(x, h, c):
        i, o, f, g = np.split(x @ W.T + h @ R.T + W_b + R_b, 4, axis=1)
        i = sigma(i + p_i * c)
        f = 1 - i if case.options.get("coupled") else sigma(f + p_f * c)
        c = f * c + i * np.tanh(g)
        return sigma(o + p_o * c) * np.tanh(c), c

    def gru(x, h):
        x_z, x_r, x_h = np.split(x @ W.T + W_b, 3, axis=1)
        (R_z, R_r, R_h), (b_z, b_r, b_h) = np.split(R, 3), np.split(R_b, 3)
        z, r = sigma(x_z + h @ R_z.T + b_z), sigma(x_r + h @ R_r.T + b_r)
        recurrent = r * (h @ R_h.T + b_h) if case.options["reset_after"] else (r * h) @ R_h.T + b_h
        return ((1 - z) * np.tanh(x_h + recurrent) + z * h,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[case.cell]


def onnx_arguments(case):
    return {name: value for name, value in case.arguments.items() if name == "coupled"}


@ONNX
def test_onnx_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    nodes = convert.to_onnx(state_dict, case.cell, **onnx_arguments(case))
    layers = [stepwise([onnx_step(case, node, d) for d in range(case.directions)]) for node in nodes]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


@ONNX
def test_onnxruntime(case, rng):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    state_dict = drawn(case, rng, np.float32)
    x, state = inputs(case, rng, np.float32)
    attributes = {"hidden_size": HIDDEN, "direction": "bidirectional" if case.bidirectional else "forward"}
    if case.cell == "GRU":
        attributes["linear_before_reset"] = int(case.options["reset_after"])
    if case.options.get("coupled"):
        attributes["input_forget"] = 1
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(state)]

    def layer(node, x, state):
        feeds = {"X": x, **node} | dict(zip(("initial_h", "initial_c"), state, strict=False))
        names = ("X", "W", "R", "B", "", "initial_h", "initial_c", "P")
        names = [name if name in feeds else "" for name in names]
        while not names[-1]:
            names.pop()
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(case.cell, names, outputs, **attributes)],
            "layer",
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, a.shape) for name, a in feeds.items()],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        y, *end = session.run(None, feeds)
        return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1), tuple(end)

    nodes = convert.to_onnx(state_dict, case.cell, **onnx_arguments(case))
    assert_close(through(case, [partial(layer, n) for n in nodes], x, state), ours(case, state_dict, x, state), 2e-6, 0)


# ---- Flax: the docstrings of flax.linen.SimpleCell, LSTMCell, GRUCell ----


def flax_step(cell, tree):
    def part(name, a):
        return a @ tree[name]["kernel"] + tree[name].get("bias", 0)

    def simple(x, h):
        return (np.tanh(part("i", x) + part("h", h)),)

    def lstm(x, h, c):
        i, f, o = (sigma(part("i" + gate, x) + part("h" + gate, h)) for gate in "ifo")
        c = f * c + i * np.tanh(part("ig", x) + part("hg", h))
        return o * np.tanh(c), c

    def gru(x, h):
        r, z = (sigma(part("i" + gate, x) + part("h" + gate, h)) for gate in "rz")
        n = np.tanh(part("in", x) + r * part("hn", h))
        return ((1 - z) * n + z * h,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[cell]


@FLAX
def test_flax_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    layers = [
        stepwise([flax_step(case.cell, tree) for tree in trees]) for trees in convert.to_flax(state_dict, case.cell)
    ]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


@FLAX
def test_flax(case, rng):
    pytest.importorskip("jax")
    linen = pytest.importorskip("flax.linen")
    kinds = {"RNN": [linen.SimpleCell], "LSTM": [linen.LSTMCell, linen.OptimizedLSTMCell], "GRU": [linen.GRUCell]}
    state_dict = drawn(case, rng, np.float32)
    x, state = inputs(case, rng, np.float32)
    converted = convert.to_flax(state_dict, case.cell)

    def step(cell, tree, x, *state):
        carry, _ = cell.apply({"params": tree}, state[::-1] if case.cell == "LSTM" else state[0], x)
        return tuple(np.asarray(s) for s in (carry[::-1] if case.cell == "LSTM" else (carry,)))

    for kind in kinds[case.cell]:
        cell = kind(HIDDEN)
        layers = [stepwise([partial(step, cell, tree) for tree in trees]) for trees in converted]
        assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 2e-6, 0)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_initial_flax_parameters(cell):
    """What Flax itself makes is what `from_flax` takes."""
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    kind = {"RNN": linen.SimpleCell, "LSTM": linen.OptimizedLSTMCell, "GRU": linen.GRUCell}[cell](HIDDEN)
    x = np.zeros((BATCH, INPUTS), np.float32)
    tree = kind.init(jax.random.key(0), kind.initialize_carry(jax.random.key(1), x.shape), x)["params"]
    state_dict = convert.from_flax([[tree]], cell)
    back = convert.to_flax(state_dict, cell)[0][0]
    assert_same_bits(dict(leaves(back)), dict(leaves(tree)))


# ---- oneDNN: https://uxlfoundation.github.io/oneDNN/dev_guide_rnn.html ----


def onednn_step(case, layer, d):
    W, U = layer["weights_layer"][0, d], layer["weights_iter"][0, d]  # (I, G, H), (O, G, H)
    B = layer["bias"][0, d] if "bias" in layer else np.zeros((4, 1))
    P_i, P_f, P_o = layer["weights_peephole"][0, d] if "weights_peephole" in layer else (0, 0, 0)
    G = W.shape[1]

    def simple(x, h):
        return (np.tanh(x @ W[:, 0] + h @ U[:, 0] + B[0]),)

    def lstm(x, h, c):
        i, f, g, o = (x @ W[:, gate] + h @ U[:, gate] + B[gate] for gate in range(G))
        c = sigma(f + P_f * c) * c + sigma(i + P_i * c) * np.tanh(g)
        h = np.tanh(c) * sigma(o + P_o * c)
        return h @ layer["weights_projection"][0, d] if "weights_projection" in layer else h, c

    def gru(x, h):
        u, r = (sigma(x @ W[:, gate] + h @ U[:, gate] + B[gate]) for gate in range(2))
        if case.options["reset_after"]:
            o = np.tanh(x @ W[:, 2] + r * (h @ U[:, 2] + B[3]) + B[2])
        else:
            o = np.tanh(x @ W[:, 2] + (r * h) @ U[:, 2] + B[2])
        return (u * h + (1 - u) * o,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[case.cell]


@ONEDNN
def test_onednn_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    converted = convert.to_onednn(state_dict, case.cell, **case.arguments)
    layers = [stepwise([onednn_step(case, layer, d) for d in range(case.directions)]) for layer in converted]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


# ---- Round trips. ----


def leaves(tree, path=""):
    """The arrays of nested lists, tuples and dicts, with where they stand."""
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not hasattr(tree, "items"):
        yield path, np.asarray(tree)
        return
    for name, part in tree.items():
        yield from leaves(part, f"{path}[{name!r}]")


def refilled(tree, rng):
    """The same tree with other numbers, zeros of both signs, infinities and NaN among them; blocks of zeros remain."""
    for _, a in leaves(tree):
        assert a.flags.c_contiguous
        assert a.flags.owndata or a.base.flags.owndata
        special = np.array([-0.0, 0.0, np.inf, np.nan, 1e-310, -1e-45])
        values = np.where(rng.random(a.shape) < 0.2, rng.choice(special, a.shape), rng.standard_normal(a.shape))
        with np.errstate(under="ignore"):
            a[...] = np.where(a == 0, a, values)
    return tree


FORMATS = {
    "keras": (convert.to_keras, convert.from_keras, KERAS),
    "onnx": (convert.to_onnx, convert.from_onnx, ONNX),
    "flax": (convert.to_flax, convert.from_flax, FLAX),
    "onednn": (convert.to_onednn, convert.from_onednn, ONEDNN),
}
EVERY = [
    pytest.param(name, case, id=f"{name}-{case}") for name, (_, _, mark) in FORMATS.items() for case in mark.args[1]
]


def pair(name, case):
    to, back, _ = FORMATS[name]
    arguments = onnx_arguments(case) if name == "onnx" else case.arguments
    return partial(to, cell=case.cell, **arguments), partial(back, cell=case.cell, **arguments)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_from_a_format_and_back_bit_for_bit(name, case, dtype, rng):
    to, back = pair(name, case)
    theirs = refilled(to(drawn(case, rng, dtype)), rng)
    kept = {path: a.copy() for path, a in leaves(theirs)}
    state_dict = back(theirs)
    assert all(a.flags.c_contiguous and a.dtype == dtype for a in state_dict.values())
    assert_same_bits(dict(leaves(to(state_dict))), kept)
    for a in state_dict.values():  # they are copies
        a[...] = 0
    assert_same_bits(dict(leaves(theirs)), kept)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_arrays_of_any_layout(name, case, rng):
    to, _ = pair(name, case)
    state_dict = drawn(case, rng)
    theirs = to({p: np.asfortranarray(a) if a.ndim == 2 else np.repeat(a, 2)[::2] for p, a in state_dict.items()})
    assert all(a.flags.c_contiguous for _, a in leaves(theirs))
    assert_same_bits(dict(leaves(theirs)), dict(leaves(to(state_dict))))


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_from_a_state_dict_and_back(name, case, dtype, rng):
    to, back = pair(name, case)
    state_dict = drawn(case, rng, dtype)
    kept = {path: a.copy() for path, a in state_dict.items()}
    theirs = to(state_dict)
    got = back(theirs)
    for _, a in leaves(theirs):  # they are copies
        a[...] = 0
    assert_same_bits(state_dict, kept)
    if name == "flax" and not case.bias:
        assert not any(got.pop(name).any() for name in list(got) if name.startswith("bias"))
    both_biases = name == "onnx" or (name == "keras" and case.options.get("reset_after"))
    if case.bias and not both_biases:
        n = -HIDDEN if case.cell == "GRU" and case.options.get("reset_after", True) else None
        for b_ih in [b for b in state_dict if b.startswith("bias_ih")]:
            b_hh = b_ih.replace("ih", "hh")
            kept[b_ih][:n] += kept[b_hh][:n]
            kept[b_hh][:n] = 0
    assert_same_bits(got, kept)


def test_parameters_of_a_converted_layer_are_named_and_ordered_as_a_layers(rng):
    case = Case("LSTM", {"peephole": True, "proj_size": PROJECTED}, 2, True)
    state_dict = drawn(case, rng)
    got = convert.from_onednn(convert.to_onednn(state_dict, "LSTM"), "LSTM")
    assert list(got) == list(state_dict)


# ---- Errors. ----


def refused(error, call, *parts):
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), f"no {part!r} in: {caught.value}"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cell", ["lstm", "CEC", "TDNN", None, 3])
def test_unknown_cells(name, cell):
    to, back, _ = FORMATS[name]
    refused(ValueError, lambda: to({}, cell), "cell", "'LSTM'", repr(cell))
    refused(ValueError, lambda: back([], cell), "cell", "'LSTM'", repr(cell))


@pytest.mark.parametrize("name", FORMATS)
def test_state_dicts_that_are_none(name, rng):
    to = FORMATS[name][0]
    good = drawn(Case("LSTM", {}, 2, True), rng)
    refused(ValueError, lambda: to({}, "LSTM"), "state_dict", "'weight_ih_l0'", "none")
    for key in good:
        if key != "weight_ih_l1":
            refused(ValueError, lambda key=key: to({k: a for k, a in good.items() if k != key}, "LSTM"), "state_dict")
        refused(
            ValueError, lambda key=key: to(good | {key: good[key][:-1]}, "LSTM"), "state_dict", "expected shape", key
        )
        refused(
            ValueError, lambda key=key: to(good | {key: good[key][None]}, "LSTM"), "state_dict", "expected shape", key
        )
        refused(TypeError, lambda key=key: to(good | {key: good[key] * 1j}, "LSTM"), key, "complex128")
        refused(TypeError, lambda key=key: to(good | {key: good[key].astype(int)}, "LSTM"), key, "int64")
    refused(ValueError, lambda: to(good | {"weight_ih_l3": good["weight_ih_l1"]}, "LSTM"), "'weight_ih_l3'")
    refused(ValueError, lambda: to(good | {0: 1}, "LSTM"), "expected no key 0")
    for cell in ("RNN", "GRU"):
        refused(ValueError, lambda cell=cell: to(good, cell), "state_dict", "expected shape")


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("keras", {"peephole": True}, "Keras"),
        ("keras", {"proj_size": PROJECTED}, "Keras"),
        ("flax", {"peephole": True}, "Flax"),
        ("flax", {"proj_size": PROJECTED}, "Flax"),
        ("onnx", {"proj_size": PROJECTED}, "ONNX"),
        *((name, {"forget_gate": False}, "expected shape") for name in FORMATS),
        *((name, {"coupled": True}, "expected shape") for name in FORMATS),
    ],
)
def test_what_a_format_does_not_have(name, options, word, rng):
    refused(ValueError, lambda: FORMATS[name][0](drawn(Case("LSTM", options), rng), "LSTM"), "state_dict", word)


def test_coupled_is_for_the_lstm(rng):
    state_dict = drawn(Case("GRU"), rng)
    refused(ValueError, lambda: convert.to_onnx(state_dict, "GRU", coupled=True), "coupled", "GRU")
    refused(ValueError, lambda: convert.from_onnx([], "RNN", coupled=True), "coupled", "RNN")


@pytest.mark.parametrize(
    ("name", "what"), [("keras", "weights"), ("onnx", "nodes"), ("flax", "layers"), ("onednn", "layers")]
)
def test_what_is_no_list_of_layers(name, what, rng):
    to, back, _ = FORMATS[name]
    good = to(drawn(Case("LSTM", {}, 2, True), rng), "LSTM")
    refused(ValueError, lambda: back([], "LSTM"), what, "none")
    refused(TypeError, lambda: back(None, "LSTM"), what, "NoneType")
    refused(TypeError, lambda: back({0: 1}, "LSTM"), what, "dict")
    refused(TypeError, lambda: back([good[0], None], "LSTM"), f"{what}[1]", "NoneType")
    refused(ValueError, lambda: back([good[1], good[0]], "LSTM"), f"{what}[1]", str(INPUTS))
    one = to(drawn(Case("LSTM", {}, 1, False), rng), "LSTM")
    refused(ValueError, lambda: back([good[0], one[0]], "LSTM"), f"{what}[1]")
    without = to(drawn(Case("LSTM", {}, 2, True, False), rng), "LSTM")
    if name != "flax":
        refused(ValueError, lambda: back([good[0], without[1]], "LSTM"), f"{what}[1]", "bias")
    refused(ValueError, lambda: back(good, "GRU"), f"{what}[0]", "expected")


def replaced(tree, path, value):
    """A copy of nested lists, tuples and dicts with another leaf."""
    if not path:
        return value
    parts = dict(enumerate(tree)) if isinstance(tree, (list, tuple)) else dict(tree)
    parts[path[0]] = replaced(parts[path[0]], path[1:], value)
    return type(tree)(parts.values()) if isinstance(tree, (list, tuple)) else parts


@pytest.mark.parametrize(("name", "case"), [p for p in EVERY if p.values[1].num_layers == 1 and p.values[1].bias])
def test_arrays_of_a_wrong_shape(name, case, rng):
    to, back = pair(name, case)
    good = to(drawn(case, rng))
    back(good)
    for where, a in leaves(good):
        path = [int(key) if key.isdigit() else key.strip("'") for key in re.findall(r"\[(\w+|'\w+')\]", where)]
        assert path
        place = path[-1] if isinstance(path[-1], str) else f"[{path[-1]}]"
        for axis in range(a.ndim):
            wrongs = [np.take(a, [], axis=axis)]
            if a.shape[axis] != INPUTS:  # which may be any number
                wrongs.append(np.repeat(a, 2, axis=axis))
            for wrong in wrongs:
                refused(ValueError, lambda wrong=wrong, path=path: back(replaced(good, path, wrong)), "expected")
        refused(ValueError, lambda path=path: back(replaced(good, path, 1.0)), "expected", place, "got ()")
        refused(TypeError, lambda path=path, a=a: back(replaced(good, path, a.astype("U"))), place, "U")


@pytest.mark.parametrize("D", [0, 3])
def test_a_wrong_number_of_directions(D, rng):
    (node,), ((tree,),) = (to(drawn(Case("RNN"), rng), "RNN") for to in (convert.to_onnx, convert.to_flax))
    refused(ValueError, lambda: convert.from_flax([[tree] * D], "RNN"), "layers[0]", "directions", f"got {D}")
    node = {name: np.repeat(a, D, axis=0) for name, a in node.items()}
    refused(ValueError, lambda: convert.from_onnx([node], "RNN"), "nodes[0]", f"got {D}" if D else "got (0,")


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_keras_arrays_of_a_wrong_number(count):
    refused(ValueError, lambda: convert.from_keras([[np.ones((2, 2))] * count], "LSTM"), "weights[0]", str(count))


@pytest.mark.parametrize("name", ["keras", "onednn"])
@pytest.mark.parametrize("reset_after", [False, True])
def test_the_two_forms_of_the_gru_have_other_biases(name, reset_after, rng):
    to, back, _ = FORMATS[name]
    converted = to(drawn(Case("GRU"), rng), "GRU", reset_after=reset_after)
    refused(ValueError, lambda: back(converted, "GRU", reset_after=not reset_after), "bias", "expected shape")


@pytest.mark.parametrize(("name", "key"), [("onnx", "W"), ("onnx", "R"), ("onednn", "weights_layer"), ("flax", "hi")])
def test_keys_that_are_missing_or_unknown(name, key, rng):
    to, back, _ = FORMATS[name]
    good = to(drawn(Case("LSTM"), rng), "LSTM")
    entry, wrap = (good[0][0], lambda e: [(e,)]) if name == "flax" else (good[0], lambda e: [e])
    missing = {k: v for k, v in entry.items() if k != key}
    refused(ValueError, lambda: back(wrap(missing), "LSTM"), "expected the keys", key)
    refused(ValueError, lambda: back(wrap(entry | {"other": 0}), "LSTM"), "expected the keys", "other")


def test_biases_of_flax_stand_where_its_cells_have_them(rng):
    tree = convert.to_flax(drawn(Case("LSTM"), rng), "LSTM")[0][0]
    biases = {name for name, arrays in tree.items() if "bias" in arrays}
    assert biases == {"hi", "hf", "hg", "ho"}
    tree["ii"]["bias"] = tree["hi"].pop("bias")
    refused(ValueError, lambda: convert.from_flax([[tree]], "LSTM"), "layers[0][0]", "kernel, bias")
