"""gamma against dense Jacobians, over many layers: an iteration must not settle near another singular value."""

import numpy as np
import pytest

import fastrnn

EPS = np.finfo(np.float64).eps


def worst_error(units, seeds, init):
    """The largest relative error of gamma over RNNs, one for each seed; by the closed form J = diag(1 - h^2) W_hh."""
    worst = 0.0
    for seed in seeds:
        layer = fastrnn.RNN(2, units, dtype=np.float64, seed=seed, init=init)
        x = np.random.default_rng(seed).standard_normal((12, 2, 2))
        y, _, tape = layer.forward(x)
        gamma = fastrnn.gradient_flow(layer, x, y).gamma
        expected = np.linalg.norm((1 - tape.h**2)[..., None] * layer.params["weight_hh_l0"], 2, axis=(-2, -1))
        worst = max(worst, (abs(gamma - expected) / expected).max())
    return worst


@pytest.mark.parametrize("init", [None, "orthogonal", "identity"])
def test_small_states_are_exact(init):
    # The largest eigenvalue of J J^T errs by a few units of rounding for each row, and its root by half as many.
    assert worst_error(24, range(40), init) <= 24 * 8 * EPS


@pytest.mark.parametrize(("init", "most"), [(None, 1e-6), ("orthogonal", 1e-4)])
def test_larger_states_settle_at_the_largest(init, most):
    # Two steps that gain less than 1e-9 each end the iteration, so what is left is 1e-9 / (1 - rate), the rate at which
    # gains shrink: near 1 where values lie close together, as those of an orthogonal W_hh do.
    assert worst_error(96, range(10), init) <= most
