"""Sequences of different lengths, padded and ragged, kernels and reference alike."""

import numpy as np
import pytest
from helpers import (
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    differing_bits,
    enliven,
    infer,
    make,
    map_state,
    mask_of,
    normal,
    normal_like,
    pack,
    poison,
    train,
)

pytestmark = pytest.mark.drawn(2)

STEPS, INPUTS, HIDDEN = 7, 3, 5
LENGTHS = np.array([2, 0, 7, 1, 5, 0, 7])
BATCH = len(LENGTHS)
MASK = mask_of(LENGTHS, STEPS)

# Between two ways of computing the same in float64, where the order of sums may differ.
SAME64 = {"forward": 1e-14, "gradient": 1e-13}


@pytest.fixture(params=[False, True], ids=["one-way", "both-ways"])
def bidirectional(request):
    return request.param


@pytest.fixture
def layer(backend, row, bidirectional, rng):
    return enliven(make(row, backend, INPUTS, HIDDEN, 2, bidirectional=bidirectional, dtype=np.float64), row, rng)


@pytest.fixture
def data(layer, rng):
    """All arguments of `train`, NaN wherever nothing may read."""
    x = normal(rng, (STEPS, BATCH, INPUTS))
    y, state = layer(x)
    data = {"state": normal_like(rng, state), "dstate": normal_like(rng, state), "lengths": LENGTHS}
    return data | {"x": poison(x, LENGTHS), "dy": poison(normal_like(rng, y), LENGTHS)}


def test_past_a_length_all_is_zero(layer, data):
    results = train(layer, **data)
    assert_meaningful(results, MASK)
    assert not results["y"][~MASK].any()
    assert not results["grads.x"][~MASK].any()
    assert np.array_equal(layer(data["x"], data["state"], lengths=LENGTHS)[0], results["y"])


def test_padding_is_never_read(layer, data):
    zeros = {name: np.nan_to_num(a) if name in ("x", "dy") else a for name, a in data.items()}
    assert_same_bits(train(layer, **data), train(layer, **zeros))


def test_each_sequence_as_if_alone(layer, data):
    """Outputs, states and gradients of every sequence; the parameters' gradients are the sums."""
    whole = train(layer, **data)
    total = dict.fromkeys(layer.params, 0)
    for j, n in enumerate(LENGTHS):
        one = {name: map_state(lambda s, j=j: s[:, j : j + 1], data[name]) for name in ("state", "dstate")}
        got = train(layer, data["x"][:n, j : j + 1], dy=data["dy"][:n, j : j + 1], **one)
        total = {name: total[name] + got.pop(f"grads.{name}") for name in total}
        want = {name: whole[name][:n, j : j + 1] for name in ("y", "grads.x")}
        want |= {name: whole[name][:, j : j + 1] for name in got if "state" in name}
        assert_close(got, want, **SAME64, note=f"sequence {j}:")
    params = {f"grads.{name}": g for name, g in total.items()}
    assert_close({name: whole[name] for name in params}, params, **SAME64)


def test_the_final_state_is_the_one_after_the_last_step(layer, row, data, bidirectional):
    """Forward: after step length - 1. Reverse: after step 0. Length 0: the initial state."""
    _, ends, tape = layer.forward(data["x"], data["state"], lengths=LENGTHS)
    directions = 1 + bidirectional
    for part, start, end in zip(row.parts, as_tuple(data["state"]), as_tuple(ends), strict=True):
        by_direction = np.split(getattr(tape, part)[-1], directions, axis=-1)
        for j, n in enumerate(LENGTHS):
            if n == 0:
                assert differing_bits(end[:, j], start[:, j]) == 0
            else:
                assert differing_bits(end[-directions, j], by_direction[0][n - 1, j]) == 0
                if bidirectional:
                    assert differing_bits(end[-1, j], by_direction[1][0, j]) == 0


def test_a_sequence_of_length_zero_passes_its_state_gradient_on(layer, data):
    results = train(layer, **data)
    for i, ds in enumerate(as_tuple(data["dstate"])):
        assert np.array_equal(results[f"grads.state[{i}]"][:, LENGTHS == 0], ds[:, LENGTHS == 0])


def test_the_reverse_direction_is_the_forward_one_on_reversed_sequences(backend, row, rng):
    both = enliven(make(row, backend, INPUTS, HIDDEN, bidirectional=True, dtype=np.float64), row, rng)
    forward = make(row, backend, INPUTS, HIDDEN, dtype=np.float64)
    for name, p in forward.params.items():
        p[...] = both.params[f"{name}_reverse"]
    x = normal(rng, (STEPS, BATCH, INPUTS))
    got = infer(both, x, lengths=LENGTHS)
    turned = x.copy()
    for j, n in enumerate(LENGTHS):
        turned[:n, j] = x[:n, j][::-1]
    want = infer(forward, turned, lengths=LENGTHS)
    assert_meaningful(want, MASK)
    for j, n in enumerate(LENGTHS):
        want["y"][:n, j] = want["y"][:n, j][::-1].copy()
    got = {name: a[..., -want["y"].shape[-1] :] if name == "y" else a[1:] for name, a in got.items()}
    assert_close(got, want, **SAME64)


def test_ragged_is_padded_without_the_padding(layer, data):
    padded = train(layer, **data)
    want = {name: pack(a, LENGTHS) if name in ("y", "grads.x") else a for name, a in padded.items()}
    ragged = {**data, "x": pack(data["x"], LENGTHS), "dy": pack(data["dy"], LENGTHS)}
    assert_close(train(layer, **ragged), want, **SAME64)
    got = infer(layer, ragged["x"], data["state"], LENGTHS)
    assert_close(got, {name: want[name] for name in got}, **SAME64)
    assert_close(infer(layer.frozen(), ragged["x"], data["state"], LENGTHS), got, **SAME64)


def test_ragged_takes_no_notice_of_batch_first(backend, row, rng):
    options = {"dtype": np.float64, "seed": 1}
    x = normal(rng, (LENGTHS.sum(), INPUTS))
    got, want = (
        infer(make(row, backend, INPUTS, HIDDEN, batch_first=batch_first, **options), x, lengths=LENGTHS)
        for batch_first in (True, False)
    )
    assert_close(got, want, **SAME64)


@pytest.mark.parametrize("length", range(STEPS + 1))
def test_ragged_with_one_sequence(layer, data, length):
    x = np.nan_to_num(data["x"])[:length, 2]
    start = map_state(lambda s: s[:, 2:3], data["state"])
    want = infer(layer, x[:, None], start)
    want["y"] = want["y"][:, 0]
    assert_close(infer(layer, x, start, [length]), want, **SAME64)


@pytest.mark.parametrize("order", ["descending", "ascending", "shuffled"])
def test_any_order(layer, data, order, rng):
    """Permuting the sequences permutes the results."""
    places = {"descending": np.argsort(-LENGTHS), "ascending": np.argsort(LENGTHS)}
    chosen = places.get(order, rng.permutation(BATCH))
    want = infer(layer, data["x"], data["state"], LENGTHS)
    start = map_state(lambda s: s[:, chosen], data["state"])
    got = infer(layer, data["x"][:, chosen], start, LENGTHS[chosen])
    assert_close(got, {name: a[:, chosen] for name, a in want.items()}, **SAME64)


def test_full_lengths_are_no_lengths(layer, data):
    plain = {name: np.nan_to_num(data[name]) for name in ("x", "dy")} | {"dstate": data["dstate"]}
    assert_close(train(layer, **plain, lengths=[STEPS] * BATCH), train(layer, **plain), **SAME64)


@pytest.mark.parametrize(
    "form",
    [list, tuple]
    + [lambda n, d=d: n.astype(d) for d in (np.int8, np.uint8, np.int32, np.uint64, ">i4", "<i2")]
    + [lambda n: np.repeat(n, 2)[::2], lambda n: n[::-1].copy()[::-1]],
    ids=["list", "tuple", "int8", "uint8", "int32", "uint64", "big-endian", "int16", "strided", "reversed"],
)
def test_any_integers_will_do(layer, data, form):
    want = infer(layer, data["x"], data["state"], LENGTHS)
    assert_same_bits(infer(layer, data["x"], data["state"], form(LENGTHS)), want)


def test_lengths_are_those_at_the_time_of_the_call(layer, data):
    """A tape keeps its own lengths."""
    want = train(layer, **data)
    lengths = LENGTHS.copy()
    _, _, tape = layer.forward(data["x"], data["state"], lengths=lengths)
    lengths[:] = 1
    got = layer.backward(tape, data["dy"], data["dstate"])
    assert differing_bits(got.x, want["grads.x"]) == 0


def test_not_a_number_where_nothing_reads_it(backend, row, rng):
    """In the initial state of a sequence without a step: it comes back as the last state, and goes nowhere else."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN), row, rng)
    state = map_state(np.zeros_like, layer(np.ones((1, 2, INPUTS)))[1])
    x = normal(rng, (3, 2, INPUTS), layer.dtype)
    want = layer.forward(x, state, lengths=[3, 0])
    for part in as_tuple(state):
        part[:, 1] = np.nan
    y, last, tape = layer.forward(x, state, lengths=[3, 0])
    assert np.array_equal(y, want[0])
    assert all(np.isnan(part[:, 1]).all() and np.isfinite(part[:, 0]).all() for part in as_tuple(last))
    assert_same_bits(layer.backward(tape, y).params, layer.backward(want[2], y).params)


@pytest.mark.parametrize("options", [{}, {"coupled": True}, {"forget_gate": False}, {"proj_size": 2}], ids=str)
def test_infinity_in_the_memory_of_an_lstm(backend, options):
    """Nothing multiplies it but f."""
    layer = backend.LSTM(2, 3, seed=0, **options)
    h, c = np.zeros((1, 1, options.get("proj_size", 3))), np.full((1, 1, 3), np.inf)
    y, (_, last) = layer(np.ones((4, 1, 2)), (h, c))
    assert np.isfinite(y).all()
    assert (last == np.inf).all()
