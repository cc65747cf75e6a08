"""Initial values of the parameters."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping

import numpy as np

from . import checks

Init = str | Iterable[str] | Mapping[str, float] | None

_NAMES = ("identity", "orthogonal", "forget_bias", "chrono")

_AT_ONCE = 2**20  # numbers drawn at a time, so that Ctrl-C need not wait for all of them

# The gates of a cell, in the order of the parameters, by how many there are.
_GATES = {"RNN": {1: "h"}, "LSTM": {3: "igo", 4: "ifgo"}, "GRU": {3: "rzn"}}


def initialise(
    params: dict[str, np.ndarray],
    cell: str,
    hidden_size: int,
    init: Init,
    rng: np.random.Generator,
    coupled: bool = False,
) -> None:
    """Fill ``params`` in place: with values from U(-1/sqrt(H), 1/sqrt(H)), then with what ``init`` asks for.

    ``init`` is a name, several names, or a mapping from names to numbers:

    "identity"
        RNN: weight_hh is the identity times a scale, 1 unless given, and the biases are 0, so that a rectifier at first
        repeats its state (Le, Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear
        units", 2015).
    "orthogonal"
        RNN, LSTM, GRU: each gate's block of weight_hh is orthogonal, times a gain, 1 unless given (Saxe, McClelland &
        Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014). With a
        projection to P < H outputs a block is (H, P), with orthonormal columns.
    "forget_bias"
        LSTM: the forget gate's bias, b_ih + b_hh, is b, 1 unless given (Gers, Schmidhuber & Cummins, "Learning to
        forget", 2000; Jozefowicz, Zaremba & Sutskever, "An empirical exploration of recurrent network architectures",
        2015). With ``coupled``, f = 1 - i, the input gate's bias is -b.
    "chrono"
        LSTM, GRU: for dependencies over up to T_max steps, a number which must be given, as in ``{"chrono": 784}``.
        The biases are b_f = log u and b_i = -b_f, u from U(1, T_max - 1) for each unit (Tallec & Ollivier, "Can
        recurrent neural networks warp time?", 2018). In a GRU it is the update gate z, the part of the state that is
        kept, whose bias is log u; with ``coupled`` there is b_i = -log u alone.

    Parameters
    ----------
    params : a layer's parameters by name, drawn in the order of the dictionary
    cell : the name of the layer's class: "RNN", "LSTM", "GRU", "CEC" or "TDNN"
    hidden_size : H
    init : see above; None for the uniform values alone
    rng : equal generators give equal values
    coupled : whether an LSTM is

    Raises
    ------
    ValueError, TypeError
        naming ``init``, if it is none of these, does not suit the cell, or asks for two things that exclude each other.
    """
    wanted = _parse(init)
    gates = next((_GATES[cell][len(p) // hidden_size] for p in params.values() if cell in _GATES), "")
    # The gate that keeps the state, and the sign with which its bias does.
    keep, sign = ("i", -1) if coupled else ("f", 1) if "f" in gates else ("z", 1) if "z" in gates else (None, 0)
    _check_cell(wanted, params, cell, gates, keep)

    bound = 1 / math.sqrt(hidden_size)
    for param in params.values():
        rows = max(1, _AT_ONCE * len(param) // max(1, param.size))
        for begin in range(0, len(param), rows):
            part = param[begin : begin + rows]
            part[...] = rng.uniform(-bound, bound, part.shape)

    # By gate: weight_hh as (G, H, O), biases as (G, H).
    R, b_ih, b_hh = (
        [p.reshape(len(gates), hidden_size, *p.shape[1:]) for name, p in params.items() if gates and stem in name]
        for stem in ("weight_hh", "bias_ih", "bias_hh")
    )
    if "identity" in wanted:
        for array in R:
            array[0] = wanted["identity"] * np.eye(hidden_size)
        for array in b_ih + b_hh:
            array[...] = 0
    if "orthogonal" in wanted:
        for array in R:
            for block in array:
                block[...] = wanted["orthogonal"] * _orthogonal(block.shape, rng)
    for b, zero in zip(b_ih, b_hh, strict=True):
        biases = {}
        if "forget_bias" in wanted:
            biases = {keep: sign * wanted["forget_bias"]}
        if "chrono" in wanted:
            log_u = np.log(rng.uniform(1, wanted["chrono"] - 1, hidden_size))
            biases = {"f": log_u, "i": -log_u} if keep == "f" else {keep: sign * log_u}
        for gate, value in biases.items():
            b[gates.index(gate)] = value
            zero[gates.index(gate)] = 0


def _parse(init: Init) -> dict[str, float]:
    """``init`` as a mapping from names to numbers."""
    if init is None:
        return {}
    if isinstance(init, str):
        init = (init,)
    if not isinstance(init, Iterable):
        raise TypeError(f"init: expected None, a name, names, or a mapping from names to numbers, got {init!r}")
    names = [checks.choice(name, "init", _NAMES) for name in init]
    # A bare "chrono" is one without T_max.
    wanted = {name: init[name] if isinstance(init, Mapping) else 0 if name == "chrono" else 1 for name in names}
    for name, number in wanted.items():
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise TypeError(f"init: expected a number for {name!r}, got {number!r}")
        if not math.isfinite(checks.real_number(number, "init")):
            raise ValueError(f"init: expected a finite number for {name!r}, got {number!r}")
    if wanted.get("chrono", 2) < 2:
        came = init["chrono"] if isinstance(init, Mapping) else "none"
        raise ValueError(f'init: expected T_max of 2 or more, as in {{"chrono": 784}}, got {came}')
    for one, other in (("identity", "orthogonal"), ("forget_bias", "chrono")):
        if one in wanted and other in wanted:
            raise ValueError(f"init: expected at most one of {one!r} and {other!r}, got both")
    return wanted


def _check_cell(wanted, params, cell, gates, keep):
    """Refuse what the cell does not have."""
    reasons = {}
    if cell != "RNN":
        reasons["identity"] = f"a layer without gates, RNN, got {cell}"
    if not gates:
        reasons["orthogonal"] = f"a layer with weight_hh, got {cell}"
    if not any(name.startswith("bias") for name in params):
        reasons["forget_bias"] = reasons["chrono"] = "biases, got bias=False"
    if keep is None:
        came = "LSTM with forget_gate=False" if cell == "LSTM" else cell
        reasons["forget_bias"] = reasons["chrono"] = f"a layer with a gate that forgets, got {came}"
    if cell == "GRU":
        reasons["forget_bias"] = 'an LSTM, got GRU, whose update gate "chrono" sets'
    for name in wanted:
        if name in reasons:
            raise ValueError(f"init: {name!r} needs {reasons[name]}")


def _orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A matrix (H, P), H >= P, with orthonormal columns, uniformly distributed among them: the Q of a normal matrix's
    QR with the signs that make the diagonal of R positive (Mezzadri, "How to generate random matrices from the
    classical compact groups", 2007)."""
    q, r = np.linalg.qr(rng.standard_normal(shape))
    return q * np.where(np.diagonal(r) < 0, -1, 1)
