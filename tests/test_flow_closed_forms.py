"""The gradient flow where it is known in closed form."""

import numpy as np
import pytest
from helpers import normal, orthogonal

from fastrnn import reference

STEPS, INPUTS, HIDDEN = 40, 3, 5


def study(gradient_flow, layer, rng, **options):
    x = normal(rng, (STEPS, 2, INPUTS))
    y, _, tape = layer.forward(x)
    return gradient_flow(layer, x, normal(rng, y.shape), **options), x, tape


def linear(R, rng):
    layer = reference.RNN(INPUTS, HIDDEN, nonlinearity="identity", dtype=np.float64, seed=1)
    layer.params["weight_hh_l0"] = R
    return layer


def powers(rate):
    """(STEPS + 1, 1), rate^(STEPS - k)"""
    return rate ** np.arange(STEPS, -1.0, -1)[:, None]


@pytest.mark.parametrize("diagonal", [(0.5, -0.9, 0.1, 0.0, 0.3), (0.5, -1.5, 1.0, 0.2, 1.2)])
def test_diagonal_weights(gradient_flow, close, diagonal, rng):
    greatest = np.abs(diagonal).max()
    flow, _, _ = study(gradient_flow, linear(np.diag(diagonal), rng), rng)
    np.testing.assert_allclose(flow.gamma, np.full((STEPS, 2), greatest), rtol=close)
    np.testing.assert_allclose(flow.flow, np.broadcast_to(powers(greatest), flow.flow.shape), rtol=close)
    assert flow.gamma_u == pytest.approx(greatest, rel=close)
    assert (flow.gamma_f == 1).all()
    np.testing.assert_allclose(flow.bound, flow.gamma, rtol=close)
    assert flow.verdict == ("vanishing" if greatest < 1 else "exploding")


@pytest.mark.parametrize(
    ("gain", "verdict", "horizon"), [(0.8, "vanishing", 30), (1, "stable", 40), (1.25, "exploding", 40)]
)
def test_scaled_orthogonal_weights(gradient_flow, close, gain, verdict, horizon, rng):
    flow, _, _ = study(gradient_flow, linear(gain * orthogonal(rng, HIDDEN, HIDDEN), rng), rng)
    np.testing.assert_allclose(flow.flow, np.broadcast_to(powers(gain), flow.flow.shape), rtol=close)
    assert (flow.verdict, flow.horizon.tolist()) == (verdict, [horizon, horizon])


@pytest.mark.parametrize("log2", [-30, 30])
def test_beyond_float32_and_float64(gradient_flow, close, log2, rng):
    """2^(+-30 (T - k)) passes the range of float32 after 4 steps and that of float64 after 34, and is kept."""
    layer = linear(np.eye(HIDDEN) * 2.0**log2, rng)
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        layer.params[name] = np.zeros(layer.params[name].shape)
    flow, _, _ = study(gradient_flow, layer, rng)
    with np.errstate(over="ignore", under="ignore"):
        want = np.ldexp(1.0, log2 * np.arange(STEPS, -1, -1))
    assert np.isfinite(want).sum() > 30
    np.testing.assert_allclose(flow.flow, np.stack([want, want], 1), rtol=close)
    assert flow.verdict == ("vanishing" if log2 < 0 else "exploding")
    if log2 > 0:
        assert np.isinf(flow.grad_norm[0]).all()
        assert np.isfinite(flow.grad_norm[-10:]).all()


def test_one_tanh_unit(gradient_flow, close, rng):
    layer = reference.RNN(INPUTS, 1, dtype=np.float64, seed=1)
    layer.params["weight_hh_l0"] = [[-1.7]]
    flow, _, tape = study(gradient_flow, layer, rng)
    derivative = 1 - tape.h[..., 0] ** 2
    np.testing.assert_allclose(flow.gamma, 1.7 * derivative, rtol=close)
    np.testing.assert_allclose(flow.bound, flow.gamma, rtol=close)
    products = np.cumprod((1.7 * derivative)[::-1], axis=0)[::-1]
    np.testing.assert_allclose(flow.flow, np.concatenate([products, np.ones((1, 2))]), rtol=close)


@pytest.mark.parametrize("nonlinearity", ["tanh", "logistic", "relu", "identity"])
def test_elman_is_within_its_bound(gradient_flow, close, nonlinearity, rng):
    layer = reference.RNN(INPUTS, HIDDEN, nonlinearity=nonlinearity, dtype=np.float64, seed=3)
    flow, _, tape = study(gradient_flow, layer, rng)
    y = tape.h
    derivative = {"tanh": 1 - y**2, "logistic": y * (1 - y), "relu": (y > 0) * 1.0, "identity": np.ones_like(y)}
    np.testing.assert_allclose(flow.gamma_f, derivative[nonlinearity].max(-1), rtol=close)
    assert flow.gamma_u == pytest.approx(np.linalg.norm(layer.params["weight_hh_l0"], 2))
    np.testing.assert_allclose(flow.bound, flow.gamma_u * flow.gamma_f)
    assert (flow.gamma <= flow.bound * (1 + close)).all()
    through = np.cumprod(flow.bound[::-1], axis=0)[::-1]
    assert (flow.flow[:-1] <= through * (1 + close)).all()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_constant_error_carousel(gradient_flow, nonlinearity, rng):
    """Exactly 1 at every lag, whatever the inputs."""
    layer = reference.CEC(INPUTS, HIDDEN, nonlinearity=nonlinearity, dtype=np.float64, seed=1)
    flow, _, _ = study(gradient_flow, layer, rng)
    assert (flow.flow == 1).all()
    assert (flow.gamma == 1).all()
    assert (flow.verdict, flow.horizon.tolist()) == ("stable", [STEPS, STEPS])
    assert (flow.bound, flow.gamma_u, flow.gamma_f, flow.gates) == (None, None, None, {})


def test_carousel_with_a_readout(gradient_flow, close, rng):
    """What is lost, is lost in the readout, once."""
    layer = reference.CEC(INPUTS, HIDDEN, readout="tanh", dtype=np.float64, seed=1)
    flow, _, tape = study(gradient_flow, layer, rng)
    want = (1 - np.tanh(tape.c[-1]) ** 2).max(-1)
    np.testing.assert_allclose(flow.flow, np.broadcast_to(want, flow.flow.shape), rtol=close)


def test_lags_of_a_carousel(gradient_flow, rng):
    """With the identity readout, delta_k of lag l is dy_{k+l}."""
    layer = reference.CEC(INPUTS, HIDDEN, dtype=np.float64, seed=1)
    x, dy = normal(rng, (STEPS, 2, INPUTS)), normal(rng, (STEPS, 2, HIDDEN))
    flow = gradient_flow(layer, x, dy, max_lag=7, lag_matrices=True)
    for lag in range(8):
        want = np.einsum("tbo,tbi->oi", dy[lag:], np.tanh(x[: STEPS - lag]))
        np.testing.assert_allclose(flow.lag_matrices[lag], want, rtol=1e-12, atol=1e-13)


def test_lstm_of_1997_without_recurrent_weights(gradient_flow, close, rng):
    """c is kept for ever, and reaches h through o (1 - tanh(c)^2) alone: J = [[0, that], [0, 1]]."""
    layer = reference.LSTM(INPUTS, HIDDEN, forget_gate=False, dtype=np.float64, seed=1)
    layer.params["weight_hh_l0"] = np.zeros((3 * HIDDEN, HIDDEN))
    flow, _, tape = study(gradient_flow, layer, rng)
    out = tape.gates[..., 2 * HIDDEN :] * (1 - np.tanh(tape.c) ** 2)
    np.testing.assert_allclose(flow.gamma, np.sqrt(1 + out.max(-1) ** 2), rtol=close)
    np.testing.assert_allclose(flow.flow[:-1], np.broadcast_to(out[-1].max(-1), (STEPS, 2)), rtol=close)
    np.testing.assert_allclose(flow.flow[-1], 1, rtol=close)


def test_gru_without_recurrent_weights(gradient_flow, close, rng):
    """h_t = (1 - z) n + z h_{t-1}: J = diag(z)."""
    layer = reference.GRU(INPUTS, HIDDEN, dtype=np.float64, seed=1)
    layer.params["weight_hh_l0"] = np.zeros((3 * HIDDEN, HIDDEN))
    flow, _, tape = study(gradient_flow, layer, rng)
    z = tape.gates[..., HIDDEN : 2 * HIDDEN]
    np.testing.assert_allclose(flow.gamma, z.max(-1), rtol=close)
    products = np.cumprod(z[::-1], axis=0)[::-1].max(-1)
    np.testing.assert_allclose(flow.flow[:-1], products, rtol=close)


def test_gates(gradient_flow, rng):
    """The means over the units, by letter."""
    for cls, options, letters in (("LSTM", {}, "ifgo"), ("LSTM", {"coupled": True}, "igo"), ("GRU", {}, "rzn")):
        layer = getattr(reference, cls)(INPUTS, HIDDEN, dtype=np.float64, seed=1, **options)
        flow, _, tape = study(gradient_flow, layer, rng)
        assert "".join(flow.gates) == letters
        for k, letter in enumerate(letters):
            want = tape.gates[..., k * HIDDEN : (k + 1) * HIDDEN].mean(-1)
            np.testing.assert_allclose(flow.gates[letter], want, rtol=1e-12)
