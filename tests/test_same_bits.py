"""Zero differing bits: repeats, threads, batches, padding, chunks, layouts, instruction sets, integers."""

from collections import namedtuple

import numpy as np
import pytest
from helpers import (
    FMA_ISAS,
    ROWS,
    arguments_for,
    as_tuple,
    assert_meaningful,
    assert_same_bits,
    c_constant,
    differing_bits,
    enliven,
    infer,
    make,
    map_state,
    mask_of,
    normal,
    numbered,
    pack,
    poison,
    row_of,
    train,
    twin,
    using_isa,
    using_threads,
)

import fastrnn
from fastrnn import _core

Shape = namedtuple("Shape", "steps batch inputs hidden layers directions")

# Many sequences, one (where threads can only split the hidden units), a deep layer, long sums, two directions of
# several chunks, each with threads of its own, steps enough for backward to take the sequences in two shards, and sums
# for dx so long that the widest vectors take narrower panels.
SHAPES = [
    Shape(23, 33, 19, 37, 1, 1),
    Shape(60, 1, 24, 130, 1, 1),
    Shape(17, 6, 11, 21, 2, 2),
    Shape(9, 64, 129, 128, 1, 1),
    Shape(600, 7, 64, 96, 1, 2),
    Shape(300, 19, 21, 24, 1, 2),
    Shape(4, 9, 70, 520, 1, 1),
]


def draw(row, shape, dtype, rng):
    """A layer and the arguments of `train`, all given, nothing degenerate."""
    sizes = (shape.inputs, shape.hidden, shape.layers)
    layer = enliven(make(row, fastrnn, *sizes, bidirectional=shape.directions == 2, dtype=dtype, seed=0), row, rng)
    x = normal(rng, (shape.steps, shape.batch, shape.inputs), dtype)
    data = arguments_for(layer, x, rng)
    assert_meaningful(train(layer, **data))
    return layer, data


def sequences(data, chosen):
    """The same data for some of the sequences only."""
    return {
        name: map_state(lambda a: np.ascontiguousarray(a[:, chosen]), value)
        for name, value in data.items()
        if name != "lengths"
    }


def without_params(results):
    return {name: a for name, a in results.items() if "_l" not in name}


@pytest.mark.drawn(0, representatives=4)  # each loop; the equations have no part in who does what when
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeats(isa, dtype, row, shape, rng):
    layer, data = draw(row, shape, dtype, rng)
    with using_threads(3):
        want = train(layer, **data)
        for _ in range(20):
            assert_same_bits(train(layer, **data), want)


@pytest.mark.drawn(1, representatives=5)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads(isa, dtype, row, shape, rng):
    layer, data = draw(row, shape, dtype, rng)
    with using_threads(1):
        want, inferred = train(layer, **data), infer(layer, data["x"], data["state"])
    for n in (2, 3, 4, 8):
        with using_threads(n):
            assert_same_bits(train(layer, **data), want, note=f"{n} threads")
            assert_same_bits(infer(layer, data["x"], data["state"]), inferred, note=f"{n} threads")


@pytest.mark.skipif(len(FMA_ISAS) < 2, reason="one instruction set with FMA here")
@pytest.mark.drawn(3)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets(dtype, row, shape, threads, rng):
    layer, data = draw(row, shape, dtype, rng)
    results = {}
    for name in FMA_ISAS:
        with using_isa(name):
            results[name] = train(layer, **data) | {"inferred": layer(data["x"], data["state"])[0]}
    first, *others = results
    for name in others:
        assert_same_bits(results[name], results[first], note=f"{name} against {first}")


@pytest.mark.skipif(len(FMA_ISAS) < 2, reason="one instruction set with FMA here")
@pytest.mark.parametrize("function", ["exp", "tanh", "logistic"])
def test_instruction_sets_in_the_math(dtype, function):
    x = np.random.default_rng(2).normal(0, 20, 200_003).astype(dtype)
    results = []
    for name in FMA_ISAS:
        with using_isa(name):
            results.append(_core.evaluate(function, x))
    assert all(differing_bits(other, results[0]) == 0 for other in results[1:])


@pytest.mark.drawn(1, representatives=6)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], Shape(20, 33, 24, 130, 1, 1)], ids=str)
def test_a_sequence_in_any_batch(isa, dtype, row, shape, threads, rng):
    """Outputs, states, and the gradients of inputs and initial states, which no other sequence enters."""
    layer, data = draw(row, shape, dtype, rng)
    whole = train(layer, **data)
    whole_inferred = infer(layer, data["x"], data["state"])
    for size in (1, 2, 5, shape.batch - 1):
        chosen = rng.permutation(shape.batch)[:size]
        part = sequences(data, chosen)
        want = {name: a[:, chosen] for name, a in without_params(whole).items()}
        assert_same_bits(without_params(train(layer, **part)), want, note=f"{chosen} forward:")
        want = {name: a[:, chosen] for name, a in whole_inferred.items()}
        assert_same_bits(infer(layer, part["x"], part["state"]), want, note=f"{chosen} inference:")


@pytest.mark.parametrize("name", ["lstm", "lstm_peephole_projected", "gru", "gru_reset_before"])
def test_a_sequence_in_a_batch_whose_record_is_large(isa, name, rng):
    """It is written past the caches, but for what the next step reads and for parts of a line."""
    layer, data = draw(row_of(name), Shape(60, 180, 8, 300, 1, 1), np.float32, rng)
    (level,) = layer.forward(data["x"])[2]._levels
    assert level.kept.nbytes >= c_constant("STREAMED_RECORD")
    whole, chosen = train(layer, **data), [0, 77, 119]
    want = {name: a[:, chosen] for name, a in without_params(whole).items()}
    assert_same_bits(without_params(train(layer, **sequences(data, chosen))), want)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("times", [1, 20])
def test_padded_and_ragged(isa, dtype, row, directions, times, threads, rng):
    """NaN in the padding, zeros in it, more of it, and none at all: outputs, states and all gradients."""
    lengths = np.tile(times * np.array([3, 0, 14, 7, 1, 14, 0, 9, 2]), min(times, 2))
    shape = Shape(lengths.max(), len(lengths), 11, 37, 2, directions)
    layer, data = draw(row, shape, dtype, rng)
    mask = mask_of(lengths, shape.steps)[:, :, None]
    zeros = {**data, "x": data["x"] * mask, "dy": data["dy"] * mask, "lengths": lengths}
    nans = {**data, "x": poison(data["x"], lengths), "dy": poison(data["dy"], lengths), "lengths": lengths}
    want = train(layer, **zeros)
    assert_same_bits(train(layer, **nans), want, note="NaN in the padding:")

    more = {name: np.full((4, *data[name].shape[1:]), np.nan, dtype) for name in ("x", "dy")}
    longer = {
        **nans,
        "x": np.concatenate([nans["x"], more["x"]]),
        "dy": np.concatenate([nans["dy"], more["dy"]]),
    }
    got = train(layer, **longer)
    for name in ("y", "grads.x"):
        assert not got[name][shape.steps :].any()
        got[name] = got[name][: shape.steps]
    assert_same_bits(got, want, note="more padding:")

    ragged = {**data, "x": pack(data["x"], lengths), "dy": pack(data["dy"], lengths), "lengths": lengths}
    want = {name: pack(a, lengths) if name in ("y", "grads.x") else a for name, a in want.items()}
    assert_same_bits(train(layer, **ragged), want, note="ragged:")
    inferred = infer(layer, ragged["x"], data["state"], lengths)
    assert_same_bits(inferred, {name: want[name] for name in inferred}, note="ragged inference:")


@pytest.mark.drawn(1, representatives=6)
@pytest.mark.parametrize("row", [row for row in ROWS if row.parts], ids=lambda row: row.id)
@pytest.mark.parametrize("batch", [1, 2, 13])
def test_whole_in_chunks_and_step_by_step(isa, dtype, row, batch, threads, rng):
    shape = Shape(31, batch, 11, 37, 2, 1)
    layer, data = draw(row, shape, dtype, rng)
    x, start = data["x"], data["state"]
    y, end = layer(x, start)
    frozen = layer.frozen()
    for cuts in ([1], [30], [5, 6, 20], [16]):
        for call in (layer, frozen, lambda *a: layer.forward(*a)[:2]):
            state, parts = start, []
            for piece in np.split(x, cuts):
                part, state = call(piece, state)
                parts.append(part)
            got = {"y": np.concatenate(parts), **numbered("state", state)}
            assert_same_bits(got, {"y": y, **numbered("state", end)}, note=f"cut at {cuts}:")
    for step in (layer.step, frozen.step):
        state = start
        for t in range(shape.steps):
            y_t, state = step(x[t], state)
            assert differing_bits(y_t, y[t]) == 0, f"step {t}"
        assert all(differing_bits(a, b) == 0 for a, b in zip(as_tuple(state), as_tuple(end), strict=True))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_inference_frozen_and_training_agree(isa, dtype, row, shape, threads, rng):
    layer, data = draw(row, shape, dtype, rng)
    frozen = layer.frozen()
    for lengths in (None, rng.integers(0, shape.steps + 1, shape.batch)):
        want = infer(layer, data["x"], data["state"], lengths)
        assert_same_bits(infer(frozen, data["x"], data["state"], lengths), want)
        got = train(layer, **data, lengths=lengths)
        assert_same_bits({name: got[name] for name in want}, want)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("row", [row for row in ROWS if row.parts], ids=lambda row: row.id)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], Shape(3, 7, 5, 300, 1, 2)], ids=str)
@pytest.mark.parametrize("weight", [None, -0.0, np.inf, -np.inf, np.nan])
def test_states_of_zeros(isa, dtype, row, shape, weight, threads, rng):
    """Forward leaves out the product with zeros where no state is anything else, but not if a weight makes it NaN."""
    layer, data = draw(row, shape, dtype, rng)
    if weight == 0:
        data["x"][:2] = 0
        for name, p in layer.params.items():
            if name.startswith("bias"):
                p[...] = weight
    elif weight is not None and "weight_hh_l0" in layer.params:
        layer.params["weight_hh_l0"][-1, 0] = weight
    others = [s[:, :-1] for s in as_tuple(data["state"])]
    for s in others:
        s[...] = 0
    with np.errstate(invalid="ignore"):
        want, inferred = without_params(train(layer, **data)), infer(layer, data["x"], data["state"])
        if weight and "weight_hh_l0" in layer.params:
            assert np.isnan(want["y"][0, :-1]).any()
        want, inferred = ({name: a[:, :-1] for name, a in r.items()} for r in (want, inferred))
        zeros = sequences(data, slice(-1))
        for state in (None, zeros["state"], map_state(np.negative, zeros["state"])):
            assert_same_bits(without_params(train(layer, **zeros | {"state": state})), want)
            assert_same_bits(infer(layer, zeros["x"], state), inferred)


@pytest.mark.drawn(1, representatives=6)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_batch_first(isa, dtype, row, shape, threads, rng):
    layer, data = draw(row, shape, dtype, rng)
    sizes = (shape.inputs, shape.hidden, shape.layers)
    options = {"bidirectional": shape.directions == 2, "dtype": dtype}
    other = twin(layer, row, fastrnn, *sizes, batch_first=True, **options)
    lengths = rng.integers(0, shape.steps + 1, shape.batch)
    for n in (None, lengths):
        want = train(layer, **data, lengths=n)
        swapped = {**data, "x": data["x"].swapaxes(0, 1), "dy": data["dy"].swapaxes(0, 1), "lengths": n}
        for contiguous in (False, True):
            if contiguous:
                swapped |= {name: np.ascontiguousarray(swapped[name]) for name in ("x", "dy")}
            got = train(other, **swapped)
            got = {name: a.swapaxes(0, 1) if name in ("y", "grads.x") else a for name, a in got.items()}
            assert_same_bits(got, want)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_unbatched(isa, dtype, row, shape, threads, rng):
    layer, data = draw(row, shape._replace(batch=1), dtype, rng)
    want = train(layer, data["x"], dy=data["dy"])
    got = train(layer, data["x"][:, 0], dy=data["dy"][:, 0])
    assert got["y"].shape == want["y"][:, 0].shape
    assert_same_bits({name: a.reshape(want[name].shape) for name, a in got.items()}, want)
