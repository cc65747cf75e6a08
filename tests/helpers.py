"""What the tests share: rows under test, drawn data, layouts, comparisons."""

import os
import random
import re
import subprocess
import sys
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import fastrnn
from fastrnn import _core


class Row(NamedTuple):
    """One way to make a layer: for each cell of the C table `_core.cells()`, and some cells with a projection."""

    id: str
    cell: str  # its name in the C table
    cls: str
    options: dict
    gates: int  # G in the shapes of its parameters
    gain: float  # what `enliven` scales its recurrent weights by, or all of its weights if it has none
    kept: tuple = ()  # (gate, bias): the gate, by number, that protects the memory, and the bias that makes it do so
    projected: bool = False

    @property
    def parts(self):
        """What its state consists of."""
        return {"LSTM": ("h", "c"), "CEC": ("c",), "TDNN": ()}.get(self.cls, ("h",))

    @property
    def records(self):
        """What a tape of it shows."""
        return {"LSTM": ("h", "c", "gates"), "GRU": ("h", "gates"), "CEC": ("h", "c")}.get(self.cls, ("h",))

    @property
    def forgets(self):
        """Whether what once entered its state fades."""
        return self.cls != "CEC" and self.options.get("forget_gate", True)

    def output_size(self, hidden_size):
        """O; a single hidden unit cannot be projected."""
        return max(1, 2 * hidden_size // 3) if self.projected else hidden_size

    def options_for(self, hidden_size):
        """The options of a layer of this size."""
        if not self.projected or not isinstance(hidden_size, int) or hidden_size < 2:
            return self.options
        return self.options | {"proj_size": self.output_size(hidden_size)}

    def state_shapes(self, rows, batch, hidden_size):
        """Of a tuple of states with that many rows, L*D."""
        sizes = {"h": self.output_size(hidden_size), "c": hidden_size}
        return tuple((rows, batch, sizes[part]) for part in self.parts)


def lstm_rows():
    """About a tenth of c is lost in a step, or in the form of 1997 nothing, and little added."""
    projected = ("lstm", "lstm_peephole", "lstm_original", "lstm_coupled_peephole")
    for name, gates, kept, options in (
        ("lstm", 4, (1, 2.0), {}),
        ("lstm_original", 3, (0, -3.0), {"forget_gate": False}),
        ("lstm_coupled", 3, (0, -2.0), {"coupled": True}),
    ):
        for cell, peephole in ((name, {}), (f"{name}_peephole", {"peephole": True})):
            row = Row(cell, cell, "LSTM", options | peephole, gates, 1.5, kept)
            yield row
            if cell in projected:
                yield row._replace(id=f"{cell}_projected", projected=True)


NONLINEARITIES = ("tanh", "relu", "logistic", "identity")
CONTEXTS = ((-2, 0, 1), (-2, -1, 0, 1, 2), (1, -3, 0), (0, -1))

ROWS = (
    *(
        Row(f"rnn_{f}", f"rnn_{f}", "RNN", {"nonlinearity": f}, 1, gain)
        for f, gain in zip(NONLINEARITIES, (1.25, 1.2, 4.0, 1.0), strict=True)
    ),
    *lstm_rows(),
    Row("gru", "gru", "GRU", {"reset_after": True}, 3, 1.5, (1, 2.0)),
    Row("gru_reset_before", "gru_reset_before", "GRU", {"reset_after": False}, 3, 1.5, (1, 2.0)),
    *(
        Row(f"cec_{g}_{readout}", f"cec_{g}_{readout}", "CEC", {"nonlinearity": g, "readout": readout}, 1, 0.1)
        for readout in ("identity", "tanh")
        for g in NONLINEARITIES
    ),
    *(
        Row(f"tdnn_{f}", f"tdnn_{f}", "TDNN", {"nonlinearity": f, "context": context}, 1, gain)
        for f, context, gain in zip(NONLINEARITIES, CONTEXTS, (1.25, 1.4, 2.0, 1.0), strict=True)
    ),
)


def row_of(row_id):
    return next(row for row in ROWS if row.id == row_id)


# One of each kind, and of each loop that a kernel has: these go through every combination of every test, and of the
# other rows a test marked `drawn` takes some.
REPRESENTATIVES = tuple(
    row_of(name)
    for name in ("rnn_tanh", "lstm", "lstm_peephole_projected", "gru", "gru_reset_before", "cec_tanh_tanh", "tdnn_relu")
)

# Linear in everything but products of weights: with integers, all that they compute is exact.
EXACT = tuple(row_of(name) for name in ("rnn_identity", "cec_identity_identity", "tdnn_identity"))
IDENTITY = EXACT[0]

# These agree bit for bit; the generic one multiplies, rounds, then adds.
FMA_ISAS = tuple(name for name in _core.isas() if name != "generic")


MOST_DRAWN = 4  # combinations of a test with one representative


def drawn(items):
    """Those that run of tests marked `drawn`: the same in every run and process, others for another row."""

    def group_of(item):
        row, backend = item.callspec.params["row"], item.callspec.params.get("backend")
        return item.nodeid.partition("[")[0], row.id, getattr(backend, "__name__", ""), row in REPRESENTATIVES

    chosen = set()
    in_order = sorted(items, key=lambda item: (group_of(item), item.nodeid))
    for (*key, representative), group in groupby(in_order, group_of):
        group = list(group)
        mark = group[0].get_closest_marker("drawn")
        count = mark.kwargs.get("representatives", MOST_DRAWN) if representative else mark.args[0]
        if count >= len(group):
            chosen.update(group)
        else:
            chosen.update(random.Random(str(key)).sample(group, count))
    return chosen


def make(row, backend, input_size, hidden_size, *sizes, **options):
    """The layer of `row` from `fastrnn` or `fastrnn.reference`."""
    given = row.options_for(hidden_size) | options
    return getattr(backend, row.cls)(input_size, hidden_size, *sizes, **given)


def twin(layer, row, backend, *sizes, **options):
    """A layer with the parameters of `layer`, in another backend, dtype or layout."""
    other = make(row, backend, *sizes, **options)
    other.load_state_dict(layer.state_dict())
    return other


def steps_of(row, layer):
    """The calls that take one step, for the cells that have them."""
    return () if row.cls == "TDNN" else (layer.step, layer.frozen().step)


def orthogonal(rng, rows, columns):
    """Orthonormal columns, or rows where those are fewer."""
    q = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return q if rows >= columns else q.T


def enliven(layer, row, rng):
    """Overwrite the parameters in place with values that keep states, gates and gradients alive, at any size."""
    for name, p in layer.params.items():
        if name.startswith(("weight_hh", "weight_hr")):
            p[...] = row.gain * orthogonal(rng, *p.shape)
        elif name.startswith("weight_peep"):
            p[...] = 0.5 * rng.standard_normal(p.shape)
        elif p.ndim > 1:
            # Without recurrent weights the sums over time alone must not run away (CEC), nor the layers fade (TDNN).
            gain = row.gain if row.cls in ("CEC", "TDNN") else 0.5 if row.gates == 1 else 1.0
            p[...] = gain * rng.standard_normal(p.shape) / np.sqrt(p[0].size)
        else:
            p[...] = (0.02 if row.cls == "CEC" else 0.25) * rng.standard_normal(p.shape)
            if name.startswith("bias_ih") and row.kept:
                gate, bias = row.kept
                p.reshape(row.gates, -1)[gate] += bias
    return layer


def normal(rng, shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


def as_tuple(state):
    """A state as a tuple of arrays: (), (h,) or (h, c)."""
    if state is None:
        return ()
    return state if isinstance(state, tuple) else (state,)


def map_state(function, state):
    """`function` of every array of a state, in the state's own form."""
    if state is None:
        return None
    return tuple(function(s) for s in state) if isinstance(state, tuple) else function(state)


def normal_like(rng, state):
    return map_state(lambda s: normal(rng, s.shape, s.dtype), state)


def arguments_for(layer, x, rng):
    """Those of `train`: x, an initial state and gradients of all that the layer makes of it."""
    y, state = layer(x)
    data = {"x": x, "state": normal_like(rng, state)}
    return data | {"dy": normal_like(rng, y), "dstate": normal_like(rng, state)}


@contextmanager
def using_isa(name):
    previous = _core.get_isa()
    _core.set_isa(name)
    try:
        yield
    finally:
        _core.set_isa(previous)


@contextmanager
def using_threads(n):
    previous = fastrnn.get_num_threads()
    fastrnn.set_num_threads(n)
    try:
        yield
    finally:
        fastrnn.set_num_threads(previous)


# ---- Layouts. The canonical one is time-major with padding, (T, B, ...). ----


def mask_of(lengths, steps):
    """(T, B), true where a sequence has a step."""
    return np.arange(steps)[:, None] < np.asarray(lengths)[None, :]


def pack(a, lengths):
    """Padded (T, B, ...) to ragged (sum(lengths), ...)."""
    return np.concatenate([a[:n, j] for j, n in enumerate(lengths)])


def poison(a, lengths):
    """A copy whose padding is NaN."""
    return np.where(mask_of(lengths, len(a))[:, :, None], a, np.nan).astype(a.dtype)


# ---- One training pass, as named arrays. ----


def numbered(name, state):
    return {f"{name}[{i}]": s for i, s in enumerate(as_tuple(state))}


def infer(layer, x, state=None, lengths=None):
    y, end = layer(x, state, lengths=lengths)
    return {"y": y, **numbered("state", end)}


def train(layer, x, state=None, lengths=None, dy=None, dstate=None, **options):
    """Forward, then backward: outputs, final state and the gradients of everything, by name."""
    y, end, tape = layer.forward(x, state, lengths=lengths, **options)
    grads = layer.backward(tape, dy, dstate)
    results = {"y": y, **numbered("state", end), "grads.x": grads.x, **numbered("grads.state", grads.state)}
    return results | {f"grads.{name}": g for name, g in grads.params.items()}


# ---- Comparisons. ----


def why_meaningless(results):
    """Why a comparison against `results` would prove nothing, or None if it would prove something."""
    for name, a in results.items():
        if a.size == 0:
            return f"{name} is empty"
        if not np.isfinite(a).all():
            return f"{name} is not finite"
        if 8 * np.count_nonzero(a) < a.size:  # one step of rectifiers leaves a quarter of a weight's gradient
            return f"{name} is mostly zeros"
        if np.abs(a).max() < 1e-8:
            return f"{name} has vanished"
    return None


def meaningful_part(results, valid=None):
    """`results` without the padding, zero by contract; `valid`, like y[..., 0], is true at real steps."""
    if valid is None:
        return results
    return {name: a[valid] if name in ("y", "grads.x") else a for name, a in results.items()}


def assert_meaningful(results, valid=None):
    reason = why_meaningless(meaningful_part(results, valid))
    if reason:
        pytest.fail(f"not a test: {reason}")


def normalised_error(got, want):
    """max |got - want| / max |want|; where want is all zeros, so must got be."""
    if want.size == 0:
        return 0.0
    scale = np.abs(want).max()
    if scale == 0:
        return np.inf if np.any(got != 0) else 0.0
    return np.abs(got.astype(want.dtype) - want).max() / scale


def assert_close(got, want, forward, gradient, note=""):
    """Every named array within its limit of normalised error: `gradient` for gradients, else `forward`."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, f"{note} {name}: {got[name].shape} is not {expected.shape}"
        limit = gradient if name.startswith("grads.") else forward
        error = normalised_error(got[name], expected)
        assert error <= limit, f"{note} {name}: normalised error {error:.3g}, limit {limit:.3g}"


def differences(loss, a, step=1e-5):
    """d loss / d a by central differences, element by element, by changes of `a` in place."""
    gradient = np.zeros_like(a)
    for place in np.ndindex(a.shape):
        kept = a[place]
        a[place] = kept + step
        above = loss()
        a[place] = kept - step
        gradient[place] = (above - loss()) / (2 * step)
        a[place] = kept
    return gradient


def differing_bits(a, b):
    """How many elements differ in any bit."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    as_bits = np.dtype(f"u{a.dtype.itemsize}")
    return np.count_nonzero(np.ascontiguousarray(a).view(as_bits) != np.ascontiguousarray(b).view(as_bits))


def assert_same_bits(got, want, note=""):
    assert got.keys() == want.keys()
    for name, expected in want.items():
        count = differing_bits(got[name], expected)
        assert count == 0, f"{note} {name}: {count} of {expected.size} elements differ"


# ---- Other processes. ----


def c_constant(name):
    """A number that the C source gives in an enum, as a product or a power of two."""
    source = "".join(path.read_text() for path in sorted((Path(__file__).parents[1] / "csrc").rglob("*.h")))
    (factor, shift) = re.search(rf"\b{name} = (\d+)(?: << (\d+))?[,\s]", source).groups(default="0")
    return int(factor) << int(shift)


def run_script(script, *arguments, timeout=60, **environment):
    """Run Python source in a process of its own, and return what it printed. None removes a variable."""
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
