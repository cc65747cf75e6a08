"""`bptt`: the whole gradient, whole or chunk by chunk, and the truncated one, against forward and backward of the
whole sequence, formulas written out and central differences."""

import tracemalloc

import numpy as np
import pytest
from helpers import (
    REPRESENTATIVES,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    differences,
    enliven,
    make,
    map_state,
    mask_of,
    normal,
    normal_like,
    numbered,
    pack,
    poison,
)

import fastrnn

STEPS, BATCH, INPUTS, HIDDEN = 11, 3, 2, 4
LENGTHS = (7, 0, STEPS)
ROWS_WITH_STATE = [row for row in REPRESENTATIVES if row.parts]
with_state = pytest.mark.parametrize("row", ROWS_WITH_STATE, ids=lambda row: row.id)


def draw(row, backend, rng, *, dtype=np.float64, num_layers=2, **options):
    """A layer, its input, an initial state and weights of a loss, time-major."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, num_layers, dtype=dtype, **options), row, rng)
    x = normal(rng, (STEPS, BATCH, INPUTS), dtype)
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    y, state = layer(x)
    return layer, x, normal_like(rng, state), normal_like(rng, y)


def quadratic(weights, axis=0):
    """J_t = sum of w y + y^2 / 2, whose gradient depends on y."""

    def loss(y, t0):
        w = weights[(slice(None),) * axis + (slice(t0, t0 + y.shape[axis]),)]
        return (w * y + y * y / 2).sum(-1), w + y

    return loss


def named(result):
    grads = {f"grads.{name}": g for name, g in result.grads.params.items()}
    states = numbered("state", result.state) | numbered("grads.state", result.grads.state)
    return {"loss": np.array(result.loss), "grads.x": result.grads.x} | states | grads


def whole(layer, x, loss, state=None, lengths=None):
    """The same through `forward` and `backward`, with losses past the lengths left out."""
    y, end, tape = layer.forward(x, state, lengths=lengths)
    losses, dy = loss(y, 0)
    if lengths is not None and y.ndim == 3:
        real = mask_of(lengths, STEPS)
        losses = losses[real.T if layer.batch_first else real]
    return fastrnn.BPTT(losses.sum(), layer.backward(tape, dy), end)


# ---- The whole sequence at once. ----


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("row", REPRESENTATIVES, ids=lambda row: row.id)
def test_without_chunks_the_same_bits(row, backend, dtype, options, lengths, rng):
    layer, x, state, w = draw(row, backend, rng, dtype=dtype, **options)
    loss = quadratic(w, int(layer.batch_first))
    got = backend.bptt(layer, x, loss, state=state, lengths=lengths)
    want = named(whole(layer, x, loss, state, lengths))
    assert_same_bits({**named(got), "loss": want["loss"]}, want)
    assert got.loss == pytest.approx(want["loss"], rel=1e-6)


@with_state
def test_ragged_without_chunks(row, backend, rng):
    layer, x, state, w = draw(row, backend, rng)
    x, w = pack(x, LENGTHS), pack(w, LENGTHS)
    got = backend.bptt(layer, x, quadratic(w), state=state, lengths=LENGTHS)
    assert_same_bits(named(got), named(whole(layer, x, quadratic(w), state, LENGTHS)))


# ---- Chunk by chunk, exactly. ----


@pytest.mark.parametrize("chunk", [1, 3, 10, STEPS, STEPS + 5])
@with_state
def test_chunks_give_the_whole_gradient(row, backend, chunk, rng):
    layer, x, state, w = draw(row, backend, rng)
    want = named(whole(layer, x, quadratic(w), state))
    assert_meaningful(want)
    assert_close(named(backend.bptt(layer, x, quadratic(w), state=state, chunk=chunk)), want, 1e-13, 1e-12)


@pytest.mark.parametrize("truncate", [None, STEPS + 3])
@pytest.mark.parametrize("batch_first", [False, True])
@with_state
def test_chunks_with_lengths(row, backend, batch_first, truncate, rng):
    """Padding is NaN, in the losses and their gradients too; a sequence may end in any chunk, or have no step."""
    layer, x, state, w = draw(row, backend, rng, batch_first=batch_first)
    turn = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    want = named(whole(layer, x, quadratic(w, int(batch_first)), state, LENGTHS))
    x, w = (turn(poison(turn(a), LENGTHS)) for a in (x, w))
    loss = quadratic(w, int(batch_first))
    got = backend.bptt(layer, x, loss, state=state, lengths=LENGTHS, chunk=3, truncate=truncate)
    assert np.isfinite(got.loss)
    assert not turn(got.grads.x)[~mask_of(LENGTHS, STEPS)].any()
    assert_close(named(got), want, 1e-13, 1e-12)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_unbatched_sequence(backend, chunk, batch_first, rng):
    layer = backend.LSTM(INPUTS, HIDDEN, batch_first=batch_first, dtype=np.float64, seed=0)
    x, w = normal(rng, (STEPS, INPUTS)), normal(rng, (STEPS, HIDDEN))
    state = normal(rng, (1, HIDDEN)), normal(rng, (1, HIDDEN))
    got = backend.bptt(layer, x, quadratic(w), state=state, chunk=chunk)
    assert_close(named(got), named(whole(layer, x, quadratic(w), state)), 1e-13, 1e-12)


@pytest.mark.parametrize("options", [{"chunk": 3}, {"chunk": 3, "truncate": 5}, {}])
def test_no_steps(backend, options):
    layer = backend.GRU(INPUTS, HIDDEN, seed=0)
    state = np.ones((1, BATCH, HIDDEN), np.float32)
    got = backend.bptt(layer, np.zeros((0, BATCH, INPUTS)), lambda y, t0: (0.0, y), state=state, **options)
    assert (got.loss, got.grads.x.shape) == (0.0, (0, BATCH, INPUTS))
    np.testing.assert_array_equal(got.state, state)
    assert not got.grads.state.any()
    assert not any(g.any() for g in got.grads.params.values())


def test_a_state_goes_on_in_the_next_call(rng):
    layer = fastrnn.LSTM(INPUTS, HIDDEN, seed=0)
    x = normal(rng, (STEPS, BATCH, INPUTS), np.float32)
    _, want = layer(x)
    state = None
    for part in (x[:6], x[6:]):
        state = fastrnn.bptt(layer, part, lambda y, t0: (0, None), state=state, chunk=2, truncate=4).state
    assert_same_bits(numbered("state", state), numbered("state", want))


@pytest.mark.parametrize(
    ("options", "order"),
    [({}, [0]), ({"chunk": 4}, [8, 4, 0]), ({"chunk": 4, "truncate": 6}, [0, 4, 8])],
)
def test_when_the_loss_is_called_and_with_what(backend, options, order):
    layer = backend.RNN(INPUTS, HIDDEN, seed=0)
    x = np.ones((STEPS, BATCH, INPUTS), np.float32)
    y, _ = layer(x)
    calls = []

    def loss(part, t0):
        calls.append(t0)
        np.testing.assert_allclose(part, y[t0 : t0 + (options.get("chunk") or STEPS)], rtol=1e-6)
        return np.float32(2), None

    got = backend.bptt(layer, x, loss, **options)
    assert calls == order
    assert got.loss == 2 * len(order)
    assert not any(g.any() for g in got.grads.params.values())


def test_one_tape_at_a_time(rng):
    """NumPy's allocations, which those of the reference all are."""
    layer = fastrnn.reference.LSTM(4, 16, dtype=np.float64, seed=0)
    x = normal(rng, (400, 2, 4))

    def peak(**options):
        tracemalloc.start()
        fastrnn.bptt(layer, x, lambda y, t0: (0.0, y), **options)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size - x.nbytes  # grads.x

    assert peak(chunk=10) < peak(chunk=None) / 10
    assert peak(chunk=10, truncate=20) < peak(chunk=None) / 10


# ---- Truncated. ----


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 4), (2, 3), (3, 3), (3, 7), (4, 11), (4, 50)])
def test_the_truncated_gradient_written_out(backend, k1, k2, rng):
    """h_t = w x_t + u h_{t-1}: the loss at t reaches back to the step `begin`, and there is a constant."""
    layer = backend.RNN(1, 1, nonlinearity="identity", bias=False, dtype=np.float64)
    w, u = 0.7, 0.9
    layer.params["weight_ih_l0"][...], layer.params["weight_hh_l0"][...] = w, u
    x, dy, h0 = rng.standard_normal(STEPS), rng.standard_normal(STEPS), 0.5
    h = [h0]
    for t in range(STEPS):
        h.append(w * x[t] + u * h[-1])
    dw = du = dh0 = 0.0
    dx = np.zeros(STEPS)
    for t in range(STEPS):
        begin = max(0, (t // k1 + 1) * k1 - k2)
        for s in range(begin, t + 1):
            dw += dy[t] * u ** (t - s) * x[s]
            du += dy[t] * u ** (t - s) * h[s]
            dx[s] += dy[t] * u ** (t - s) * w
        if begin == 0:
            dh0 += dy[t] * u ** (t + 1)

    def loss(y, t0):
        part = dy[t0 : t0 + len(y), None]
        return (part * y).sum(), part

    state = np.array([[h0]])
    got = backend.bptt(layer, x[:, None], loss, state=state, chunk=k1, truncate=k2)
    assert got.loss == pytest.approx(dy @ h[1:], rel=1e-13)
    np.testing.assert_allclose(got.grads.params["weight_ih_l0"], [[dw]], rtol=1e-12)
    np.testing.assert_allclose(got.grads.params["weight_hh_l0"], [[du]], rtol=1e-12)
    np.testing.assert_allclose(got.grads.x[:, 0], dx, rtol=1e-12)
    np.testing.assert_allclose(got.grads.state.ravel(), [dh0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.state.ravel(), h[-1:], rtol=1e-13)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (3, 5)])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@with_state
def test_the_truncated_gradient_is_that_of_losses_from_constant_states(row, backend, k1, k2, lengths, rng):
    """Central differences of each chunk's loss, from the state where its gradient ends."""
    layer, x, state, w = draw(row, backend, rng, num_layers=1)
    got = backend.bptt(layer, x, quadratic(w), state=state, lengths=lengths, chunk=k1, truncate=k2)
    clip = np.array((STEPS,) * BATCH if lengths is None else lengths)
    windows = [(max(0, t + k1 - k2), t, min(t + k1, STEPS)) for t in range(0, STEPS, k1)]
    starts = [layer(x[:begin], state, lengths=np.minimum(clip, begin))[1] for begin, _, _ in windows]

    def objective():
        total = 0.0
        for (begin, first, last), start in zip(windows, starts, strict=True):
            y, _ = layer(x[begin:last], start, lengths=np.clip(clip - begin, 0, last - begin))
            real = mask_of(clip, STEPS)[first:last]
            total += quadratic(w)(y[first - begin :], first)[0][real].sum()
        return total

    assert got.loss == pytest.approx(objective(), rel=1e-12)
    for name, p in layer.params.items():
        want = differences(objective, p)
        error = np.abs(got.grads.params[name] - want).max() / np.abs(want).max()
        assert error < 1e-7, f"{name}: {error:.3g}"


# ---- Dropout. ----


def test_dropout_has_the_same_masks_in_both_runs(backend, rng):
    """With two layers the masks of chunks are, drawn one after another, those of the whole sequence."""
    row = ROWS_WITH_STATE[1]
    layer, x, state, w = draw(row, backend, rng, dropout=0.5, seed=3)
    kept = layer._dropout_rng.bit_generator.state
    want = named(whole(layer, x, quadratic(w), state))
    after = layer._dropout_rng.bit_generator.state
    assert np.abs(layer(x, state)[0] - layer.forward(x, state)[0]).max() > 0.01
    layer._dropout_rng.bit_generator.state = kept
    assert_close(named(backend.bptt(layer, x, quadratic(w), state=state, chunk=4)), want, 1e-13, 1e-12)
    assert layer._dropout_rng.bit_generator.state == after
    layer._dropout_rng.bit_generator.state = kept
    got = backend.bptt(layer, x, quadratic(w), state=state, chunk=4, truncate=4)
    assert got.loss == pytest.approx(want["loss"], rel=1e-12)


def test_dropout_of_a_single_layer_is_none(backend, rng):
    layer, x, state, w = draw(ROWS_WITH_STATE[0], backend, rng, num_layers=1, dropout=0.5)
    got = backend.bptt(layer, x, quadratic(w), state=state, chunk=4, truncate=STEPS + 4)
    assert_close(named(got), named(whole(layer, x, quadratic(w), state)), 1e-13, 1e-12)


# ---- Bad input. ----


def zero_loss(y, t0):
    return 0.0, None


X = np.ones((STEPS, BATCH, INPUTS))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, X, zero_loss), {}, TypeError, "layer: expected a layer of fastrnn, got NoneType"),
        (("RNN", X, 3.0), {}, TypeError, "loss: expected a function of y and t0, got float"),
        (("RNN", X[..., :1], zero_loss), {}, ValueError, r"x: expected shape \(T, B, 2\).*got \(11, 3, 1\)"),
        (("RNN", X * 1j, zero_loss), {}, TypeError, "x: expected an array of real numbers"),
        (("RNN", X, zero_loss), {"chunk": 0}, ValueError, "chunk: expected at least 1, got 0"),
        (("RNN", X, zero_loss), {"chunk": 2.0}, TypeError, "chunk: expected an integer, got 2.0"),
        (("RNN", X, zero_loss), {"truncate": 4}, ValueError, "truncate: expected None without chunk, got 4"),
        (("RNN", X, zero_loss), {"chunk": 4, "truncate": 3}, ValueError, "truncate: expected at least 4, got 3"),
        (("RNN", X, zero_loss), {"chunk": 4, "state": np.ones((1, 3, 5))}, ValueError, "state: expected shape"),
        (("RNN", X, zero_loss), {"chunk": 4, "lengths": [1, 2]}, ValueError, r"lengths: expected shape \(3,\)"),
        (("RNN", X, zero_loss), {"chunk": 4, "lengths": [1, 2, 12]}, ValueError, "lengths: expected 0 to 11, got 12"),
        (("RNN", X[:, 0], zero_loss), {"chunk": 4, "lengths": [5, 6]}, ValueError, "chunk: expected None for a ragged"),
        (("TDNN", X, zero_loss), {"chunk": 4}, ValueError, "chunk: expected None for a TDNN.*got 4"),
        (("both", X, zero_loss), {"chunk": 4}, ValueError, "chunk: expected None for a bidirectional.*got 4"),
        (("dropout", X, zero_loss), {"chunk": 4, "truncate": 5}, ValueError, "truncate: expected 4.*dropout, got 5"),
        (("RNN", X, lambda y, t0: 0.0), {"chunk": 4}, TypeError, "loss: expected it to return a pair.*got float"),
        (("RNN", X, lambda y, t0: (1j, y)), {}, TypeError, "loss: expected an array of real numbers"),
        (("RNN", X, lambda y, t0: (0, y[:1])), {"chunk": 4}, ValueError, r"dy: expected shape \(3, 3, 4\), got \(1,"),
        (
            ("RNN", X, lambda y, t0: (0, y[:1])),
            {"chunk": 4, "truncate": 8},
            ValueError,
            r"dy: expected shape \(4, 3, 4\), got \(1,",
        ),
    ],
)
def test_bad_input(backend, arguments, options, error, message):
    name, *rest = arguments
    kinds = {"both": {"bidirectional": True}, "dropout": {"dropout": 0.5, "num_layers": 2}}
    layer = name and getattr(backend, name if name[0].isupper() else "RNN")(INPUTS, HIDDEN, **kinds.get(name, {}))
    with pytest.raises(error, match=f"^{message}"):
        backend.bptt(layer, *rest, **options)


def test_inputs_are_not_changed(backend, rng):
    layer, x, state, w = draw(ROWS_WITH_STATE[1], backend, rng)
    before = [a.copy() for a in (x, w, *as_tuple(state), *layer.params.values())]
    for options in ({}, {"chunk": 3}, {"chunk": 3, "truncate": 5}):
        got = backend.bptt(layer, x, quadratic(w), state=state, **options)
        map_state(lambda s: s.fill(0), got.state)
        map_state(lambda s: s.fill(0), got.grads.state)
    for array, kept in zip((x, w, *as_tuple(state), *layer.params.values()), before, strict=True):
        np.testing.assert_array_equal(array, kept)
