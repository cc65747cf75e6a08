"""`backward(..., clip_step=c)`: what passes from a step to the state before it is clipped, and nothing else."""

import numpy as np
import pytest
from helpers import (
    FMA_ISAS,
    REPRESENTATIVES,
    ROWS,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    enliven,
    make,
    map_state,
    mask_of,
    normal,
    normal_like,
    numbered,
    pack,
    poison,
    row_of,
    twin,
    using_isa,
    using_threads,
)
from test_errors import refused
from test_forward_backward import GRADIENT32, GRADIENT64

import fastrnn
from fastrnn import reference

STEPS, BATCH, INPUTS, HIDDEN = 7, 4, 3, 5
LENGTHS = (7, 0, 3, 5)
# With gradients of standard normal elements sent back, what returns from a step is of order 0.1 to 10.
CLIP = 0.3


def gradients(layer, tape, dy=None, dstate=None, clip_step=None):
    grads = layer.backward(tape, dy, dstate, clip_step=clip_step)
    named = {f"grads.{name}": g for name, g in grads.params.items()}
    return {"grads.x": grads.x, **numbered("grads.state", grads.state), **named}


def draw(row, backend, rng, num_layers=2, dims=(STEPS, BATCH, INPUTS, HIDDEN), **options):
    """A layer and the arguments of forward and of backward."""
    steps, batch, inputs, hidden = dims
    layer = enliven(make(row, backend, inputs, hidden, num_layers, seed=0, **options), row, rng)
    x = normal(rng, (steps, batch, inputs), layer.dtype)
    y, state = layer(x)
    return layer, (x, normal_like(rng, state)), (normal_like(rng, y), normal_like(rng, state))


# ---- The equations, step by step, of one layer in one direction. ----


def logistic(a):
    return 1 / (1 + np.exp(-a))


def clipped(a):
    return np.minimum(np.maximum(a, -CLIP), CLIP)


def rnn_by_hand(p, x, h0, dy, dh):
    W, R, b = p["weight_ih_l0"], p["weight_hh_l0"], p["bias_ih_l0"] + p["bias_hh_l0"]
    h = [h0]
    for x_t in x:
        h.append(np.tanh(x_t @ W.T + h[-1] @ R.T + b))
    dW, dR, dx = np.zeros_like(W), np.zeros_like(R), np.zeros_like(x)
    for t in reversed(range(len(x))):
        da = (dh + dy[t]) * (1 - h[t + 1] ** 2)
        dW, dR, dx[t] = dW + da.T @ x[t], dR + da.T @ h[t], da @ W
        dh = clipped(da @ R)
    return dx, (dh,), dW, dR


def lstm_by_hand(p, x, start, dy, end):
    W, R, b = p["weight_ih_l0"], p["weight_hh_l0"], p["bias_ih_l0"] + p["bias_hh_l0"]
    h, c, gates = [start[0]], [start[1]], []
    for x_t in x:
        i, f, g, o = np.split(x_t @ W.T + h[-1] @ R.T + b, 4, axis=-1)
        i, f, g, o = logistic(i), logistic(f), np.tanh(g), logistic(o)
        c.append(f * c[-1] + i * g)
        h.append(o * np.tanh(c[-1]))
        gates.append((i, f, g, o))
    (dh, dc), dW, dR, dx = end, np.zeros_like(W), np.zeros_like(R), np.zeros_like(x)
    for t in reversed(range(len(x))):
        i, f, g, o = gates[t]
        dh, tanh_c = dh + dy[t], np.tanh(c[t + 1])
        dc = dc + dh * o * (1 - tanh_c**2)
        da = [dc * g * i * (1 - i), dc * c[t] * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)]
        da = np.concatenate(da, axis=-1)
        dW, dR, dx[t] = dW + da.T @ x[t], dR + da.T @ h[t], da @ W
        dh, dc = clipped(da @ R), clipped(dc * f)
    return dx, (dh, dc), dW, dR


def gru_by_hand(p, x, h0, dy, dh):
    W, R, b, b_h = p["weight_ih_l0"], p["weight_hh_l0"], p["bias_ih_l0"], p["bias_hh_l0"]
    h, gates = [h0], []
    for x_t in x:
        r, z, n = np.split(x_t @ W.T + b, 3, axis=-1)
        q_r, q_z, q = np.split(h[-1] @ R.T + b_h, 3, axis=-1)
        r, z = logistic(r + q_r), logistic(z + q_z)
        n = np.tanh(n + r * q)
        h.append((1 - z) * n + z * h[-1])
        gates.append((r, z, n, q))
    dW, dR, dx = np.zeros_like(W), np.zeros_like(R), np.zeros_like(x)
    for t in reversed(range(len(x))):
        r, z, n, q = gates[t]
        dh = dh + dy[t]
        da_n, da_z = dh * (1 - z) * (1 - n**2), dh * (h[t] - n) * z * (1 - z)
        da_r = da_n * q * r * (1 - r)
        da, dq = np.concatenate([da_r, da_z, da_n], -1), np.concatenate([da_r, da_z, da_n * r], -1)
        dW, dR, dx[t] = dW + da.T @ x[t], dR + dq.T @ h[t], da @ W
        dh = clipped(dh * z + dq @ R)
    return dx, (dh,), dW, dR


def cec_by_hand(p, x, c0, dy, dc):
    W, b = p["weight_ih_l0"], p["bias_ih_l0"]
    c = [c0]
    for x_t in x:
        c.append(c[-1] + np.tanh(x_t) @ W.T + b)
    dW, dx = np.zeros_like(W), np.zeros_like(x)
    for t in reversed(range(len(x))):
        dc = dc + dy[t] * (1 - np.tanh(c[t + 1]) ** 2)
        dW, dx[t] = dW + dc.T @ np.tanh(x[t]), dc @ W * (1 - np.tanh(x[t]) ** 2)
        dc = clipped(dc)
    return dx, (dc,), dW, None


BY_HAND = {"rnn_tanh": rnn_by_hand, "lstm": lstm_by_hand, "gru": gru_by_hand, "cec_tanh_tanh": cec_by_hand}


@pytest.mark.parametrize("row", [row_of(name) for name in BY_HAND], ids=list(BY_HAND))
@pytest.mark.parametrize("without", [None, "dy", "dstate"])
def test_step_by_step(backend, row, without, rng):
    layer, given, (dy, dstate) = draw(row, backend, rng, num_layers=1, dtype=np.float64)
    x, state = given
    dy = dy * (without != "dy")
    dstate = map_state(lambda s: s * (without != "dstate"), dstate)
    ends = (tuple(s[0] for s in part) if isinstance(part, tuple) else part[0] for part in (state, dstate))
    start, end = ends
    dx, dstart, dW, dR = BY_HAND[row.id](layer.params, x, start, dy, end)
    want = {"grads.x": dx, "grads.weight_ih_l0": dW, **numbered("grads.state", tuple(s[None] for s in dstart))}
    if dR is not None:
        want["grads.weight_hh_l0"] = dR
    tape = layer.forward(*given)[2]
    sent = (None if without == "dy" else dy), (None if without == "dstate" else dstate)
    got = gradients(layer, tape, *sent, clip_step=CLIP)
    if without != "dy":  # some of it is clipped, some is not, of every part of the state
        assert all(0 < np.mean(np.abs(s) == CLIP) < 1 for s in dstart)
    assert not np.array_equal(got["grads.x"], gradients(layer, tape, *sent)["grads.x"])
    assert_close({name: got[name] for name in want}, want, 0, GRADIENT64)


# ---- Kernels and reference. ----


@pytest.mark.drawn(2)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layout", ["time", "padded", "batch", "ragged"])
def test_kernels_and_reference(isa, dtype, row, layout, bidirectional, rng):
    options = {"bidirectional": bidirectional, "batch_first": layout == "batch"}
    layer, (x, state), (dy, dstate) = draw(row, reference, rng, dtype=np.float64, bidirectional=bidirectional)
    kernels = twin(layer, row, fastrnn, INPUTS, HIDDEN, 2, dtype=dtype, **options)
    layer = twin(kernels, row, reference, INPUTS, HIDDEN, 2, dtype=np.float64, **options)
    x, dy, state, dstate = (map_state(lambda a: a.astype(dtype), a) for a in (x, dy, state, dstate))
    lengths = LENGTHS if layout in ("padded", "ragged") else None
    turn = {"time": lambda a: a, "padded": lambda a: poison(a, LENGTHS), "ragged": lambda a: pack(a, LENGTHS)}
    x, dy = (turn.get(layout, lambda a: a.swapaxes(0, 1))(a) for a in (x, dy))
    got, want = (
        gradients(one, one.forward(x, state, lengths=lengths)[2], dy, dstate, CLIP) for one in (kernels, layer)
    )
    if row.parts:  # something was clipped
        plain = gradients(layer, layer.forward(x, state, lengths=lengths)[2], dy, dstate)
        assert not np.array_equal(plain["grads.x"], want["grads.x"])
    # Clipping makes no difference larger.
    assert_close(got, want, 0, GRADIENT32 if dtype == np.float32 else GRADIENT64)


@pytest.mark.drawn(1, representatives=4)
@pytest.mark.parametrize(
    "dims",  # T, B, I, H
    [(23, 33, 19, 37), (60, 1, 24, 130), (50, 5, 17, 66)],
    ids=str,
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_threads_instruction_sets_and_batches_give_the_same_bits(dtype, row, dims, bidirectional, rng):
    steps, batch, inputs, hidden = dims
    layer, given, sent = draw(row, fastrnn, rng, dims=dims, dtype=dtype, bidirectional=bidirectional)
    lengths = np.append(rng.integers(0, steps, batch - 1), steps)
    want = None
    for name in FMA_ISAS or ("generic",):
        for n in (1, 2, 3):
            with using_isa(name), using_threads(n):
                got = gradients(layer, layer.forward(*given, lengths=lengths)[2], *sent, CLIP)
            want = want or got
            assert_same_bits(got, want, note=f"{name}, {n} threads:")
    exact = twin(layer, row, reference, inputs, hidden, 2, dtype=np.float64, bidirectional=bidirectional)
    expected = gradients(exact, exact.forward(*given, lengths=lengths)[2], *sent, CLIP)
    assert_close(want, expected, 0, GRADIENT32 if dtype == np.float32 else GRADIENT64)


# ---- What is clipped and what is not. ----


@pytest.mark.drawn(1)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("clip_step", [1e6, 1e30, 1e300])
def test_a_limit_that_is_not_reached(backend, row, dtype, lengths, bidirectional, clip_step, rng):
    layer, given, sent = draw(row, backend, rng, dtype=dtype, bidirectional=bidirectional)
    tape = layer.forward(*given, lengths=lengths)[2]
    plain = gradients(layer, tape, *sent)
    assert_same_bits(gradients(layer, tape, *sent, clip_step=None), plain)
    limits = (0, GRADIENT32 if dtype == np.float32 else GRADIENT64)
    assert_close(gradients(layer, tape, *sent, clip_step=clip_step), plain, *limits)


@pytest.mark.drawn(1)
def test_what_is_sent_is_not_clipped(backend, row, rng):
    """After one step only the gradient of the initial state is clipped; of a sequence of length 0 nothing is."""
    layer, (x, state), sent = draw(row, backend, rng, num_layers=1, dtype=np.float64)
    sent = tuple(map_state(lambda a: 100 * a, part) for part in sent)
    lengths = (1, 0, 1, 1)
    tape = layer.forward(x, state, lengths=lengths)[2]
    want, got = (gradients(layer, tape, *sent, clip_step=c) for c in (None, CLIP))
    for i, _ in enumerate(as_tuple(state)):
        s = want[f"grads.state[{i}]"]
        s[:, [0, 2, 3]] = np.clip(s[:, [0, 2, 3]], -CLIP, CLIP)
    assert_close(got, want, 0, GRADIENT64)
    for i, ds in enumerate(as_tuple(sent[1])):
        assert np.array_equal(got[f"grads.state[{i}]"][:, 1], ds[:, 1])


@pytest.mark.parametrize("steps", [1, 20, 200])
def test_an_exploding_gradient_stays_bounded(backend, dtype, steps):
    """h_t = 2 h_{t-1} + x_t, and J = sum of all h_t: every gradient doubles at each step, but for the limit."""
    layer = backend.RNN(2, 2, nonlinearity="identity", bias=False, dtype=dtype)
    layer.params["weight_ih_l0"][...], layer.params["weight_hh_l0"][...] = np.eye(2), 2 * np.eye(2)
    dy = np.ones((steps, 3, 2), dtype)
    tape = layer.forward(np.zeros_like(dy))[2]
    got = layer.backward(tape, dy, clip_step=5)
    # From the last step back: 1, 1 + 2, 1 + 5, 1 + 5, ...
    want = np.full(steps, 6.0)
    want[-2:] = [3, 1][-steps:]
    assert np.array_equal(got.x, np.broadcast_to(want[:, None, None], got.x.shape))
    assert np.array_equal(got.state, np.full((1, 3, 2), min(5, 2 * want[0])))
    if steps == 200:
        with np.errstate(over="ignore", invalid="ignore"):
            plain = layer.backward(tape, dy)
        assert not np.abs(plain.x).max() < 1e30


@pytest.mark.parametrize("row", [row for row in REPRESENTATIVES if row.parts], ids=lambda row: row.id)
def test_not_a_number_stays_and_infinity_is_clipped(isa, backend, row, rng):
    layer, given, (dy, dstate) = draw(row, backend, rng, num_layers=1, dtype=np.float64)
    tape = layer.forward(*given)[2]
    plain = gradients(layer, tape, dy, dstate, clip_step=CLIP)
    wrong = dy.copy()
    wrong[4, 2] = np.nan
    got = gradients(layer, tape, wrong, dstate, clip_step=CLIP)
    assert np.isnan(got["grads.x"][:5, 2]).all()
    assert np.isnan(got["grads.state[0]"][:, 2]).all()
    for name in ("grads.x", "grads.state[0]"):
        assert np.array_equal(np.delete(got[name], 2, 1), np.delete(plain[name], 2, 1))
    if row.cls == "CEC":
        wrong[4, 2] = np.inf
        with np.errstate(invalid="ignore"):
            got = gradients(layer, tape, wrong, dstate, clip_step=CLIP)
        assert np.isfinite(got["grads.x"][:4]).all()


# ---- Chunk by chunk. ----


@pytest.mark.drawn(1)
@pytest.mark.parametrize("row", [row for row in ROWS if row.parts], ids=lambda row: row.id)
@pytest.mark.parametrize("cuts", [[1], [6], [2, 3, 5]], ids=str)
@pytest.mark.parametrize("clip_step", [None, CLIP])
def test_chunks_with_states_handed_on_and_back(backend, row, dtype, cuts, clip_step, rng):
    layer, (x, state), (dy, dstate) = draw(row, backend, rng, num_layers=2, dtype=dtype)
    want = gradients(layer, layer.forward(x, state)[2], dy, dstate, clip_step)
    tapes = []
    for part in np.split(x, cuts):
        _, state, tape = layer.forward(part, state)
        tapes.append(tape)
    parts, total = [], dict.fromkeys(layer.params, 0)
    for tape, part in zip(reversed(tapes), reversed(np.split(dy, cuts)), strict=True):
        grads = layer.backward(tape, part, dstate, clip_step=clip_step)
        parts.insert(0, grads.x)
        dstate = grads.state
        total = {name: total[name] + g for name, g in grads.params.items()}
    got = {"grads.x": np.concatenate(parts), **numbered("grads.state", dstate)}
    if backend is fastrnn:
        assert_same_bits(got, {name: want[name] for name in got})
    got |= {f"grads.{name}": g for name, g in total.items()}
    assert_meaningful(want)
    assert_close(got, want, 0, GRADIENT32 if dtype == np.float32 else GRADIENT64)


def test_with_lengths_each_sequence_as_if_alone(backend, row, rng):
    layer, (x, state), (dy, dstate) = draw(row, backend, rng, dtype=np.float64, bidirectional=True)
    whole = gradients(layer, layer.forward(x, state, lengths=LENGTHS)[2], dy, dstate, CLIP)
    assert not whole["grads.x"][~mask_of(LENGTHS, STEPS)].any()
    for j, n in enumerate(LENGTHS):
        start, end = (map_state(lambda s, j=j: s[:, j : j + 1], part) for part in (state, dstate))
        one = gradients(layer, layer.forward(x[:n, j : j + 1], start)[2], dy[:n, j : j + 1], end, CLIP)
        got = {
            name: a[:, j : j + 1][:n] if name == "grads.x" else a[:, j : j + 1]
            for name, a in whole.items()
            if "_l" not in name
        }
        assert_close(got, {name: one[name] for name in got}, 0, GRADIENT64)


def test_a_limit_too_small_to_be_a_normal_number(backend, row, dtype, rng):
    """It lets next to nothing pass, and not everything."""
    layer = make(row, backend, INPUTS, HIDDEN, dtype=dtype)
    tape = layer.forward(normal(rng, (6, 3, INPUTS), dtype))[2]
    dy = normal(rng, tape.h.shape, dtype)
    tiny, small = (layer.backward(tape, dy, clip_step=limit).x for limit in (5e-324, 1e-30))
    assert np.allclose(tiny, small, rtol=1e-4, atol=1e-25)


# ---- Bad values. ----


@pytest.mark.drawn(1)
@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.nan, np.inf, -np.inf], ids=str)
def test_limits_that_are_none(backend, row, value):
    layer = make(row, backend, INPUTS, HIDDEN)
    tape = layer.forward(np.ones((2, 1, INPUTS)))[2]
    with pytest.raises(ValueError, match=r"^clip_step: expected a finite number > 0, got "):
        layer.backward(tape, clip_step=value)


@pytest.mark.parametrize("value", ["a", [1.0, 2.0], 1j], ids=str)
def test_limits_that_are_no_numbers(backend, value):
    layer = backend.GRU(INPUTS, HIDDEN)
    tape = layer.forward(np.ones((2, 1, INPUTS)))[2]
    refused(lambda: layer.backward(tape, clip_step=value), "clip_step")
    with pytest.raises(TypeError, match=r"^clip_step: expected a number, got "):
        layer.backward(tape, clip_step=value)
