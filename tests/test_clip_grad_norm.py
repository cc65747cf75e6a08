"""clip_grad_norm scales a dict of arrays in place to a norm, and returns the norm there was."""

import math

import numpy as np
import pytest
from helpers import make

import fastrnn


@pytest.fixture
def grads(rng, dtype):
    return {"a": rng.standard_normal((7, 5)).astype(dtype), "b": rng.standard_normal(9).astype(dtype)}


def norm(grads):
    return math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads.values()))


def close(dtype):
    # Each scaled element rounds twice at most, and so does the factor.
    return 10 * float(np.finfo(dtype).eps)


@pytest.mark.parametrize("factor", [1e-6, 0.25, 0.999])
def test_a_larger_norm_is_brought_down_in_place(grads, dtype, factor):
    arrays, before, size = dict(grads), {name: g.copy() for name, g in grads.items()}, norm(grads)
    returned = fastrnn.clip_grad_norm(grads, factor * size)
    assert type(returned) is float
    assert returned == pytest.approx(size, rel=close(dtype))
    # A guard against division by zero, as PyTorch's 1e-6 beside the norm, may make it slightly smaller.
    assert norm(grads) == pytest.approx(factor * size, rel=close(dtype) + 1e-6)
    for name, g in grads.items():
        assert g is arrays[name]
        assert g.dtype == dtype
        assert np.allclose(g, factor * before[name], rtol=close(dtype) + 1e-6, atol=0)


@pytest.mark.parametrize("factor", [1.001, 50, math.inf])
def test_a_smaller_norm_is_left_alone(grads, dtype, factor):
    before = {name: g.copy() for name, g in grads.items()}
    assert fastrnn.clip_grad_norm(grads, factor * norm(grads)) == pytest.approx(norm(before), rel=close(dtype))
    assert all(np.array_equal(g, before[name]) for name, g in grads.items())


def test_nothing_and_zeros(dtype):
    zeros = {"a": np.zeros((3, 2), dtype)}
    assert fastrnn.clip_grad_norm(zeros, 1.0) == 0
    assert not zeros["a"].any()
    assert fastrnn.clip_grad_norm({}, 1.0) == 0


def test_squares_that_overflow_float32():
    grads = {"a": np.full(4, 1e30, np.float32)}
    assert fastrnn.clip_grad_norm(grads, 1.0) == pytest.approx(2e30, rel=1e-6)
    assert np.allclose(grads["a"], 0.5, rtol=2e-6)


def test_the_gradients_of_a_layer(backend, row, rng):
    layer = make(row, backend, 3, 4, seed=1)
    y, _, tape = layer.forward(rng.standard_normal((5, 2, 3)))
    grads = layer.backward(tape, np.ones_like(y))
    size = norm(grads.params)
    assert fastrnn.clip_grad_norm(grads.params, size / 3) == pytest.approx(size, rel=1e-6)
    assert norm(grads.params) == pytest.approx(size / 3, rel=1e-5)


@pytest.mark.parametrize("max_norm", [-1.0, math.nan, "one", None, True])
def test_bad_limits_are_refused(grads, max_norm):
    before = {name: g.copy() for name, g in grads.items()}
    with pytest.raises((ValueError, TypeError), match="max_norm"):
        fastrnn.clip_grad_norm(grads, max_norm)
    assert all(np.array_equal(g, before[name]) for name, g in grads.items())


def test_squares_beyond_float64():
    grads = {"a": np.full(10, 1e300), "b": np.full(6, 1e300)}
    assert fastrnn.clip_grad_norm(grads, 1.0) == pytest.approx(4e300, rel=1e-14)
    assert np.allclose(np.concatenate(list(grads.values())), 0.25, rtol=1e-14, atol=0)
    assert fastrnn.clip_grad_norm({"a": np.full(16, 1e-300)}, 1.0) == pytest.approx(4e-300, rel=1e-14)


@pytest.mark.parametrize("worst", [math.inf, math.nan, 1e308])
def test_a_norm_that_is_not_finite_changes_nothing(worst):
    grads = {"a": np.zeros(2), "b": np.full(9, worst), "c": np.ones(2)}  # 3e308 is beyond float64
    before = {name: g.copy() for name, g in grads.items()}
    assert not math.isfinite(fastrnn.clip_grad_norm(grads, 1.0))
    assert all(np.array_equal(g, before[name], equal_nan=True) for name, g in grads.items())


def test_not_a_number_among_zeros():
    assert math.isnan(fastrnn.clip_grad_norm({"a": np.zeros(2), "b": np.array([1.0, math.nan]), "c": np.zeros(2)}, 1.0))


def test_what_backward_returned(backend, rng):
    layer = backend.RNN(3, 4, seed=0)
    y, _, tape = layer.forward(rng.standard_normal((5, 2, 3)))
    grads = layer.backward(tape, y)
    size, dx = norm(grads.params), grads.x.copy()
    assert fastrnn.clip_grad_norm(grads, size / 3) == pytest.approx(size, rel=1e-6)
    assert norm(grads.params) == pytest.approx(size / 3, rel=1e-6)
    assert np.array_equal(grads.x, dx)


@pytest.mark.parametrize(
    ("grads", "error"),
    [
        ([np.ones(2)], TypeError),
        ({"a": np.ones(2), "b": [1.0]}, TypeError),
        ({"a": np.ones(2), "b": np.ones(2, int)}, TypeError),
        ({"a": np.ones(2), "b": np.broadcast_to(1.0, 2)}, ValueError),
    ],
)
def test_gradients_that_cannot_be_scaled(grads, error):
    with pytest.raises(error, match=r"^grads"):
        fastrnn.clip_grad_norm(grads, 0.1)
    if isinstance(grads, dict):
        assert np.array_equal(grads["a"], np.ones(2))
