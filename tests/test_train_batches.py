"""Ragged batches of sequences of like lengths."""

import numpy as np
import pytest

import fastrnn
from fastrnn.train import ragged_batches


def draw(rng, count=157, most=60):
    return [rng.standard_normal((length, 2)) for length in rng.integers(0, most, count)]


@pytest.mark.parametrize("pool", [1, 3, 50])
@pytest.mark.parametrize("batch_size", [1, 8, 200])
def test_every_sequence_exactly_once(batch_size, pool, rng):
    sequences = draw(rng)
    batches = list(ragged_batches(sequences, batch_size, seed=0, pool=pool))
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices) == list(range(len(sequences)))
    for batch in batches:
        assert batch.lengths.tolist() == [len(sequences[j]) for j in batch.indices]
        np.testing.assert_array_equal(batch.x, np.concatenate([sequences[j] for j in batch.indices]))
    sizes = [batch.indices.size for batch in batches]
    assert max(sizes) <= batch_size
    assert sum(size < batch_size for size in sizes) <= 1


def test_lengths_within_a_batch_are_alike(rng):
    def steps(**options):
        """Of all batches together, if they were padded."""
        batches = ragged_batches(draw(np.random.default_rng(0)), 8, seed=0, **options)
        return sum(batch.lengths.max() * batch.lengths.size for batch in batches)

    real = sum(map(len, draw(np.random.default_rng(0))))
    assert steps() < 1.1 * real
    assert 1.1 * real < steps(pool=4) < 1.5 * real < steps(pool=1)


def test_the_order_of_the_batches_is_shuffled(rng):
    means = [batch.lengths.mean() for batch in ragged_batches(draw(rng), 8, seed=0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.6


def test_seeds_and_epochs(rng):
    sequences = draw(rng)

    def order(seed, epochs=1):
        batches = [batch for _ in range(epochs) for batch in ragged_batches(sequences, 8, seed=seed)]
        return np.concatenate([batch.indices for batch in batches]).tolist()

    assert order(1) == order(1) == order(np.random.default_rng(1))
    assert order(1) != order(2)
    both = order(np.random.default_rng(1), epochs=2)
    assert both[:157] != both[157:]
    # Who travels together changes too.
    groups = [
        {frozenset(batch.indices) for batch in ragged_batches(sequences, 8, seed=seed, pool=5)} for seed in (1, 2)
    ]
    assert not groups[0] & groups[1]


def test_a_layer_takes_them(rng):
    sequences = draw(rng, count=9)
    layer = fastrnn.RNN(2, 3, dtype=np.float64, seed=0)
    for batch in ragged_batches(sequences, 4, seed=0):
        _, state = layer(batch.x, lengths=batch.lengths)
        for place, j in enumerate(batch.indices):
            np.testing.assert_array_equal(state[0, place], layer(sequences[j])[1][0, 0])


def test_integer_codes_and_no_sequences():
    ((x, lengths, _),) = ragged_batches([[3, 1], [2]], 2, seed=0)
    assert (x.dtype, x.ndim, sorted(lengths)) == (np.array([1]).dtype, 1, [1, 2])
    assert list(ragged_batches([], 2)) == []


@pytest.mark.parametrize(
    ("sequences", "arguments", "error", "message"),
    [
        (
            [np.ones((2, 3)), np.ones((2, 4))],
            (2,),
            ValueError,
            r"sequences\[1\]: expected float64 \(T, 3\), as the first, got float64 \(2, 4\)",
        ),
        (
            [np.ones(2), np.ones(2, int)],
            (2,),
            ValueError,
            r"sequences\[1\]: expected float64 \(T, ...\), as the first, got int64 \(2,\)",
        ),
        ([np.float64(1)], (2,), ValueError, r"sequences\[0\]: expected float64 \(T, ...\), got float64 \(\)"),
        ([np.ones(2, complex)], (2,), TypeError, r"sequences\[0\]: expected an array of real numbers"),
        ([[1]], (0,), ValueError, "batch_size: expected at least 1, got 0"),
        ([[1]], (1.5,), TypeError, "batch_size: expected an integer, got 1.5"),
    ],
)
def test_bad_input(sequences, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        ragged_batches(sequences, *arguments)


def test_bad_pool():
    with pytest.raises(ValueError, match=r"^pool: expected at least 1, got 0"):
        ragged_batches([[1]], 1, pool=0)
