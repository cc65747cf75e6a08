"""What the tests share: rows under test, drawn data, layouts, comparisons, and an oracle."""

import os
import subprocess
import sys
from collections import namedtuple
from contextlib import contextmanager

import numpy as np
import pytest

import fastrnn
from fastrnn import _core

# One row per cell of the C table `_core.cells()`. `cls` and `options` make the layer, `gates` is G in the
# shapes of its parameters, and `gain` scales an orthogonal weight_hh so that neither states nor gradients
# vanish or explode in 50 steps.
Row = namedtuple("Row", "cell cls options gates gain")

ROWS = (
    Row("rnn_tanh", "RNN", {"nonlinearity": "tanh"}, gates=1, gain=1.25),
    Row("rnn_relu", "RNN", {"nonlinearity": "relu"}, gates=1, gain=1.2),
    Row("rnn_logistic", "RNN", {"nonlinearity": "logistic"}, gates=1, gain=4.0),
    Row("rnn_identity", "RNN", {"nonlinearity": "identity"}, gates=1, gain=1.0),
)

IDENTITY = next(row for row in ROWS if row.cell == "rnn_identity")

# These agree bit for bit; the generic one multiplies, rounds, then adds.
FMA_ISAS = tuple(name for name in _core.isas() if name != "generic")


def make(row, backend, *sizes, **options):
    """The layer of `row` from `fastrnn` or `fastrnn.reference`."""
    return getattr(backend, row.cls)(*sizes, **row.options, **options)


def twin(layer, row, backend, *sizes, **options):
    """A layer with the parameters of `layer`, in another backend, dtype or layout."""
    other = make(row, backend, *sizes, **options)
    other.load_state_dict(layer.state_dict())
    return other


def enliven(layer, row, rng):
    """Overwrite the parameters in place with values that keep states and gradients alive, at any size."""
    for name, p in layer.params.items():
        if name.startswith("weight_hh"):
            p[...] = row.gain * np.linalg.qr(rng.standard_normal(p.shape))[0]
        elif p.ndim == 2:
            p[...] = 0.5 * rng.standard_normal(p.shape) / np.sqrt(p.shape[1])
        else:
            p[...] = 0.25 * rng.standard_normal(p.shape)
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
    return tuple(function(s) for s in state) if isinstance(state, tuple) else function(state)


def normal_like(rng, state):
    return map_state(lambda s: normal(rng, s.shape, s.dtype), state)


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


# ---- The oracle. ----

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "logistic": lambda a: 1 / (1 + np.exp(-a)),
    "identity": lambda a: a,
}


def elman(x, params, state, lengths, nonlinearity):
    """h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), step by step, in the dtype of its inputs.

    x (T, B, I), state (L*D, B, H) -> y (T, B, D*H), final state, all pre-activations (n, H).
    """
    f = ACTIVATIONS[nonlinearity]
    directions = 1 + ("weight_ih_l0_reverse" in params)
    end, pre, outputs = state.copy(), [], []
    for k in range(len(end)):
        layer, reverse = divmod(k, directions)
        suffix = f"l{layer}" + "_reverse" * reverse
        w_ih, w_hh = params[f"weight_ih_{suffix}"], params[f"weight_hh_{suffix}"]
        bias = sum(params[name] for name in (f"bias_ih_{suffix}", f"bias_hh_{suffix}") if name in params)
        y = np.zeros((*x.shape[:2], len(w_hh)), x.dtype)
        for j, n in enumerate(lengths):
            for t in reversed(range(n)) if reverse else range(n):
                pre.append(w_ih @ x[t, j] + w_hh @ end[k, j] + bias)
                end[k, j] = y[t, j] = f(pre[-1])
        outputs.append(y)
        if len(outputs) == directions:
            x, outputs = np.concatenate(outputs, axis=-1), []
    return x, end, np.array(pre)


# ---- Other processes. ----


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
