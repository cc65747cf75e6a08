"""Dropout: in training only, between layers only, scaled by 1 / (1 - p), repeatable; for both backends."""

import numpy as np
import pytest
from helpers import (
    IDENTITY,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    differing_bits,
    enliven,
    make,
    normal,
    normal_like,
    steps_of,
    train,
    twin,
)

import fastrnn
from fastrnn import reference

STEPS, BATCH, INPUTS, HIDDEN = 40, 25, 5, 20


def transparent(backend, p, dtype=np.float64, **options):
    """Two layers; the second copies what reaches it, so its output is the mask times the first's output."""
    layer = enliven(
        make(IDENTITY, backend, INPUTS, HIDDEN, 2, dropout=p, dtype=dtype, **options),
        IDENTITY,
        np.random.default_rng(0),
    )
    layer.params["weight_ih_l1"][...] = np.eye(HIDDEN)
    for name in ("weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        layer.params[name][...] = 0
    return layer


@pytest.mark.parametrize("p", [0.25, 0.5, 0.8])
def test_masks_are_zero_or_the_inverse_of_what_is_kept(backend, dtype, rng, p):
    layer = transparent(backend, p, dtype, seed=1)
    x = normal(rng, (STEPS, BATCH, INPUTS), dtype)
    mask = layer.forward(x)[0] / layer(x)[0]
    kept = mask != 0
    # One rounding in the scale, one in the product, one in the division above.
    assert np.allclose(mask[kept], 1 / (1 - p), rtol=4 * np.finfo(dtype).eps, atol=0)
    # Five standard deviations of the mean of that many independent draws.
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / kept.size)
    for axis in range(3):  # drawn anew for each step, sequence and unit: hardly a line of 20 is all alike
        assert np.mean(kept.min(axis=axis) < kept.max(axis=axis)) > 0.9


def test_the_last_layer_has_none(backend, row, rng):
    """The second layer does not look at its input, and nothing of it is dropped."""
    layer = make(row, backend, INPUTS, HIDDEN, 2, dropout=0.5, dtype=np.float64, seed=1)
    for name, p in layer.params.items():
        if name.endswith("_l1"):
            p[...] = 0 if name.startswith(("weight_ih", "weight_l")) else 1
    x = normal(rng, (STEPS, BATCH, INPUTS))
    y = layer.forward(x)[0]
    assert y.any()
    assert np.array_equal(y, layer(x)[0])


def test_only_forward_drops(backend, row, rng):
    options = {"dtype": np.float64, "seed": 1}
    layer = make(row, backend, INPUTS, HIDDEN, 3, dropout=0.5, **options)
    plain = make(row, backend, INPUTS, HIDDEN, 3, **options)
    x = normal(rng, (6, 4, INPUTS))
    want = plain.forward(x)[0]
    assert not np.array_equal(layer.forward(x)[0], want)
    for call in (layer, layer.frozen()):
        assert differing_bits(call(x)[0], plain(x)[0]) == 0
    for step in steps_of(row, layer):
        assert differing_bits(step(x[0])[0], plain.step(x[0])[0]) == 0


def test_none_by_default_and_at_zero(backend, row, rng):
    x = normal(rng, (6, 4, INPUTS), np.float32)
    for options in ({}, {"dropout": 0}, {"dropout": 0.0}):
        layer = make(row, backend, INPUTS, HIDDEN, 2, seed=1, **options)
        assert differing_bits(layer.forward(x)[0], layer(x)[0]) == 0


def test_a_run_repeats_by_the_layers_seed(backend, rng):
    x = normal(rng, (STEPS, BATCH, INPUTS))

    def run(seed):
        layer = transparent(backend, 0.5, seed=seed)
        return [layer.forward(x)[0] for _ in range(3)]

    first, again, other = run(1), run(1), run(2)
    assert all(differing_bits(a, b) == 0 for a, b in zip(first, again, strict=True))
    for a, b in ((first[0], other[0]), (first[0], first[1]), (first[1], first[2])):
        # Masks drawn anew: half of 20,000 elements differ, and 0.1 is 28 standard deviations.
        assert 0.4 < np.mean((a != 0) != (b != 0)) < 0.6


def test_a_generator_takes_the_place_of_the_seed(backend, rng):
    x = normal(rng, (STEPS, BATCH, INPUTS))

    def masked(layer_seed, seed):
        return transparent(backend, 0.5, seed=layer_seed).forward(x, rng=np.random.default_rng(seed))[0]

    assert differing_bits(masked(1, 7), masked(2, 7)) == 0
    assert not np.array_equal(masked(1, 7), masked(1, 8))
    generator, layer = np.random.default_rng(7), transparent(backend, 0.5)
    a, b = (layer.forward(x, rng=generator)[0] for _ in range(2))
    assert not np.array_equal(a, b)  # it is used, not copied


def test_it_may_be_changed(backend, rng):
    x = normal(rng, (STEPS, BATCH, INPUTS))
    layer, other = transparent(backend, 0.5, seed=1), transparent(backend, 0.25, seed=1)
    for bad, error in ((1.0, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("half", TypeError)):
        with pytest.raises(error, match=r"^dropout: expected"):
            layer.dropout = bad
        assert layer.dropout == 0.5
    layer.dropout = 0.25
    assert differing_bits(layer.forward(x)[0], other.forward(x)[0]) == 0


@pytest.mark.drawn(2)
@pytest.mark.parametrize("lengths", [None, (6, 0, 2, 5)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_kernels_and_reference_drop_alike(isa, row, lengths, batch_first, rng):
    """The same seed gives the same masks, and the same gradients through them."""
    sizes, options = (
        (INPUTS, HIDDEN, 3),
        {"bidirectional": True, "batch_first": batch_first, "dtype": np.float64},
    )
    for seed in range(3):
        layer = enliven(make(row, reference, *sizes, dropout=0.3, seed=seed, **options), row, rng)
        x = normal(rng, (4, 6, INPUTS) if batch_first else (6, 4, INPUTS))
        y, state = layer(x, lengths=lengths)
        data = {"x": x, "lengths": lengths, "dy": normal_like(rng, y), "dstate": normal_like(rng, state)}
        want = train(layer, **data)
        kernels = twin(layer, row, fastrnn, *sizes, dropout=0.3, seed=seed, **options)
        assert_meaningful({name: a for name, a in want.items() if name not in ("y", "grads.x")})
        assert_close(train(kernels, **data), want, forward=1e-13, gradient=1e-12)


def test_a_tape_keeps_its_masks(backend, row, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, dropout=0.3, dtype=np.float64, seed=1), row, rng)
    x = normal(rng, (6, 4, INPUTS))
    y, _, tape = layer.forward(x)
    dy = normal_like(rng, y)
    first = layer.backward(tape, dy)
    layer.forward(x)
    second = layer.backward(tape, dy)
    assert_same_bits({"x": second.x, **second.params}, {"x": first.x, **first.params})
