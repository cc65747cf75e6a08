"""Batches: contiguous streams of one long text, and ragged batches of sequences of like lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks


def text_batches(ids: ArrayLike, batch_size: int, steps: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Cut one long sequence into chunks for truncated back-propagation through time (Williams & Peng 1990).

    The sequence is split into ``batch_size`` contiguous streams that are read side by side, ``steps`` at a
    time, so the state at the end of a chunk is the right initial state of the next one. What does not fill a
    last chunk is left out.

    Parameters
    ----------
    ids : integer array, shape (N,)
        Codes of the characters (or words), in the order of the text.
    batch_size, steps : int
        B and T.

    Yields
    ------
    inputs, targets : integer arrays, shape (T, B)
        ``targets`` are ``inputs`` one place later in the text. Both are views of ``ids``.

    Raises
    ------
    TypeError
        ``ids`` are not integers.
    ValueError
        ``ids`` is not one-dimensional or too short for a single chunk, or B or T is below 1.
    """
    ids = checks.array(ids, "ids", "integers")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got dtype {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"ids: expected shape (N,), got {ids.shape}")
    batch_size = checks.positive_integer(batch_size, "batch_size")
    steps = checks.positive_integer(steps, "steps")
    length = (ids.size - 1) // batch_size
    if length < steps:
        needed = batch_size * steps + 1
        raise ValueError(f"ids: expected at least batch_size * steps + 1 = {needed} of them, got {ids.size}")
    inputs, targets = (ids[start : start + batch_size * length].reshape(batch_size, length).T for start in (0, 1))
    return ((inputs[t : t + steps], targets[t : t + steps]) for t in range(0, length - steps + 1, steps))


class RaggedBatch(NamedTuple):
    """One batch of ``ragged_batches``, in the ragged layout of a layer: ``layer(batch.x, lengths=batch.lengths)``."""

    x: NDArray  #: (sum(lengths), ...), the sequences one after another
    lengths: NDArray[np.int64]  #: (B,)
    indices: NDArray[np.int64]  #: (B,), which sequences they are: for targets and states that go with them


def ragged_batches(
    sequences: Sequence[ArrayLike],
    batch_size: int,
    *,
    seed: int | np.random.Generator | None = None,
    pool: int = 50,
) -> Iterator[RaggedBatch]:
    """Batches of sequences of like lengths for one epoch, every sequence exactly once (length bucketing: Khomenko et
    al., "Accelerating recurrent neural network training using sequence bucketing", 2016).

    The sequences are shuffled and cut into pools of ``pool`` batches; each pool is sorted by length and cut into
    batches, and all batches are shuffled. So what travels together is of like length, differs from epoch to epoch, and
    a time step of a batch has about as many sequences as the first.

    Parameters
    ----------
    sequences : real or integer arrays, shapes (T_j, ...)
        All of one dtype and alike in all axes but the first. They are copied as a batch is made, not before.
    batch_size : int
        B. One batch, the last of the last pool, may have fewer sequences.
    seed : int, numpy.random.Generator or None
        Of the shuffling. A generator goes on from epoch to epoch, and its state can be part of a checkpoint; None
        draws a seed from the system.
    pool : int
        How many batches are sorted by length together: 1 for random batches, many for the most alike lengths.

    Yields
    ------
    RaggedBatch

    Raises
    ------
    TypeError, ValueError
        A sequence is no array of numbers, or unlike the first; ``batch_size`` or ``pool`` is below 1.
    """
    batch_size = checks.positive_integer(batch_size, "batch_size")
    size = batch_size * checks.positive_integer(pool, "pool")
    rng = checks.random_generator(seed, "seed")
    if isinstance(sequences, (str, bytes, Mapping)) or not isinstance(sequences, Iterable):
        raise TypeError(f"sequences: expected a list of arrays, got {type(sequences).__name__}")
    arrays = [checks.array(sequence, f"sequences[{j}]") for j, sequence in enumerate(sequences)]
    for j, array in enumerate(arrays):
        if array.dtype.kind not in "fiub":
            raise TypeError(f"sequences[{j}]: expected an array of real numbers, got dtype {array.dtype}")
        if array.ndim == 0 or (array.dtype, array.shape[1:]) != (arrays[0].dtype, arrays[0].shape[1:]):
            shape = f"(T, {', '.join(map(str, arrays[0].shape[1:])) or '...'})"
            expected = f"{arrays[0].dtype} {shape}" + (", as the first" if j else "")
            raise ValueError(f"sequences[{j}]: expected {expected}, got {array.dtype} {array.shape}")
    lengths = np.array([len(array) for array in arrays], np.int64)
    order = rng.permutation(lengths.size)
    batches = []
    for start in range(0, lengths.size, size):
        pooled = order[start : start + size]
        pooled = pooled[np.argsort(lengths[pooled], kind="stable")]
        batches += [pooled[place : place + batch_size] for place in range(0, pooled.size, batch_size)]
    chosen = [batches[place] for place in rng.permutation(len(batches))]
    return (RaggedBatch(np.concatenate([arrays[j] for j in indices]), lengths[indices], indices) for indices in chosen)
