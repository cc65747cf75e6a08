"""Exact mode: data on which every order of summation is exact, against integer arithmetic: zero differing bits."""

from collections import namedtuple

import numpy as np
import oracles
import pytest
from helpers import EXACT, assert_same_bits, infer, make, train

import fastrnn

Shape = namedtuple("Shape", "steps batch inputs hidden layers directions")


@pytest.fixture(params=EXACT, ids=[row.id for row in EXACT])
def row(request):
    return request.param


def power_of_two_weights(layer, rng):
    """Entries +-1, +-2; in weight_hh two to a row, so that sums stay small over the steps."""
    params = {}
    for name, p in layer.params.items():
        values = rng.choice([-2, -1, 1, 2], p.shape)
        if name.startswith("weight_hh"):
            keep = np.argsort(rng.random(p.shape), axis=1)[:, :2]
            mask = np.zeros(p.shape, bool)
            np.put_along_axis(mask, keep, True, axis=1)
            values = values * mask
        params[name] = values.astype(np.int64)
    layer.load_state_dict({name: p.astype(layer.params[name].dtype) for name, p in params.items()})
    return params


# ---- Backward through one layer of one direction, in integers. ----


def elman_backward(x, y, state, params, dy, dstate):
    """delta_t = dy_t + dh_t, dh_{t-1} = delta_t W_hh"""
    deltas, (h,), (dh,) = np.zeros_like(dy), state, dstate
    dh = dh[0]
    for t in reversed(range(len(x))):
        deltas[t] = dy[t] + dh
        dh = deltas[t] @ params["weight_hh_l0"]
    before, bias = np.concatenate([h, y[:-1]]), deltas.sum(axis=(0, 1))
    return {
        "grads.x": deltas @ params["weight_ih_l0"],
        "grads.state[0]": dh[None],
        "grads.weight_ih_l0": np.einsum("tbh,tbi->hi", deltas, x),
        "grads.weight_hh_l0": np.einsum("tbh,tbi->hi", deltas, before),
        "grads.bias_ih_l0": bias,
        "grads.bias_hh_l0": bias,
    }


def cec_backward(x, y, state, params, dy, dstate):
    """dc_t = dy_t + dc_{t+1}"""
    (dc,) = dstate
    deltas = np.cumsum(dy[::-1], axis=0)[::-1] + dc
    return {
        "grads.x": deltas @ params["weight_ih_l0"],
        "grads.state[0]": deltas[:1],
        "grads.weight_ih_l0": np.einsum("tbh,tbi->hi", deltas, x),
        "grads.bias_ih_l0": deltas.sum(axis=(0, 1)),
    }


def tdnn_backward(x, y, state, params, dy, dstate, context):
    """dx_{t + context[k]} is the sum of dy_t W_k."""
    dx, dW = np.zeros_like(x), np.zeros_like(params["weight_l0"])
    for k, offset in enumerate(context):
        for t in range(max(0, -offset), min(len(x), len(x) - offset)):
            dx[t + offset] += dy[t] @ params["weight_l0"][:, k]
            dW[:, k] += dy[t].T @ x[t + offset]
    return {"grads.x": dx, "grads.weight_l0": dW, "grads.bias_l0": dy.sum(axis=(0, 1))}


def backward(row, *arguments):
    if row.cls == "TDNN":
        return tdnn_backward(*arguments, row.options["context"])
    return {"RNN": elman_backward, "CEC": cec_backward}[row.cls](*arguments)


# ---- Comparisons. ----


def magnitudes(function, *arguments):
    """An upper bound of every partial sum: the same computation on absolute values."""

    def absolute(a):
        if isinstance(a, dict):
            return {name: np.abs(value) for name, value in a.items()}
        return tuple(np.abs(s) for s in a) if isinstance(a, tuple) else np.abs(a)

    return max(a.max() for a in function(*map(absolute, arguments)).values())


def assert_exact(got, want, limit):
    """Bit for bit, but that zero has either sign; `limit` is the largest partial sum there can have been."""
    dtype = got["y"].dtype
    assert limit < 2 ** (np.finfo(dtype).nmant + 1), f"not a test: sums up to {limit} round"
    for name, integers in want.items():
        assert np.count_nonzero(integers) > integers.size // 2, f"not a test: {name} is mostly zeros"
    got = {name: got[name] + 0 for name in want}
    assert_same_bits(got, {name: integers.astype(dtype) for name, integers in want.items()})


def draw_integers(rng, *shape):
    return rng.integers(-2, 3, shape)


# The weights of the last one are far: written past the caches, and their panels asked for ahead, in its steps too, as
# they have four sequences or more.
SHAPES = [
    Shape(5, 3, 4, 8, 1, 1),
    Shape(5, 33, 19, 67, 1, 1),
    Shape(4, 1, 3, 129, 1, 1),
    Shape(3, 5, 1024, 1024, 1, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(isa, row, dtype, threads, shape, rng):
    layer = make(row, fastrnn, shape.inputs, shape.hidden, dtype=dtype)
    params = power_of_two_weights(layer, rng)
    x = draw_integers(rng, shape.steps, shape.batch, shape.inputs)
    dy = draw_integers(rng, shape.steps, shape.batch, shape.hidden)
    state, dstate = (
        tuple(draw_integers(rng, *dims) for dims in row.state_shapes(1, shape.batch, shape.hidden)) for _ in range(2)
    )

    def integers(x, params, state, dy, dstate):
        lengths = [shape.steps] * shape.batch
        results = oracles.run(row.cls, row.options, params, x, state, lengths).results
        return results | backward(row, x, results["y"], state, params, dy, dstate)

    want = integers(x, params, state, dy, dstate)
    data = {"x": x, "dy": dy} | ({"state": state[0], "dstate": dstate[0]} if row.parts else {})
    got = train(layer, **{name: a.astype(dtype) for name, a in data.items()})
    assert got.keys() == want.keys()
    assert_exact(got, want, magnitudes(integers, x, params, state, dy, dstate))


@pytest.mark.parametrize("shape", [Shape(3, 4, 5, 9, 2, 2), Shape(3, 17, 3, 33, 2, 1)], ids=str)
def test_deep_with_lengths(isa, row, dtype, threads, shape, rng):
    layer = make(row, fastrnn, shape.inputs, shape.hidden, 2, bidirectional=shape.directions == 2, dtype=dtype)
    params = power_of_two_weights(layer, rng)
    lengths = rng.integers(1, shape.steps + 1, shape.batch)
    lengths[0], lengths[1] = 0, shape.steps
    x = draw_integers(rng, shape.steps, shape.batch, shape.inputs)
    shapes = row.state_shapes(2 * shape.directions, shape.batch, shape.hidden)
    state = tuple(draw_integers(rng, *dims) for dims in shapes)

    def integers(x, params, state):
        result = oracles.run(row.cls, row.options, params, x, state, lengths)
        return result.results | {"pre": result.pre}

    want = integers(x, params, state)
    del want["pre"]
    start = state[0].astype(dtype) if row.parts else None
    limit = magnitudes(integers, x, params, state)
    assert_exact(infer(layer, x.astype(dtype), start, lengths), want, limit)
