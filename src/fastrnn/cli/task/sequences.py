"""Sequences of the tasks that test a memory over long lags, drawn at random, and what a network without memory gets.

Each function draws from ``rng``, so equal generators give equal sequences. Letters: ``T`` steps, ``B`` sequences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SYMBOLS, COPIED = 8, 10  # of the copy task: the alphabet, and how many symbols are to be kept
BLANK, GO = SYMBOLS, SYMBOLS + 1


class Batch(NamedTuple):
    """Sequences, and what the outputs of their last steps should be."""

    x: NDArray[np.float32]  #: (T, B, I)
    targets: NDArray  #: values (1, B, 1), for the last step; or classes (T, B), for every step


def adding(rng: np.random.Generator, length: int, batch: int) -> Batch:
    """The adding problem (Hochreiter & Schmidhuber, "Long short-term memory", 1997), in the form of Le, Jaitly &
    Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015.

    ``x_t = (value, marker)``: values from U(0, 1); the marker is 1 at two steps, one drawn from the first half of the
    sequence and one from the second, and 0 elsewhere. The target is the sum of the two marked values. ``length`` is T,
    at least 2.
    """
    x = _values(rng, length, batch)
    half, columns = length // 2, np.arange(batch)
    for marked in (rng.integers(half, size=batch), rng.integers(half, length, size=batch)):
        x[marked, columns, 1] = 1
    return Batch(x, (x[..., 0] * x[..., 1]).sum(axis=0)[np.newaxis, :, np.newaxis])


def summing(rng: np.random.Generator, length: int, batch: int) -> Batch:
    """The sequences of ``adding``, with the sum of all values as the target, marked or not.

    It is centred and scaled, ``sqrt(2 / T) * sum_t (value_t - 1/2)``, so that its variance is that of ``adding``.
    """
    x = adding(rng, length, batch).x
    total = (x[..., 0].astype(np.float64) - 0.5).sum(axis=0) * math.sqrt(2 / length)
    return Batch(x, total.astype(np.float32)[np.newaxis, :, np.newaxis])


def copying(rng: np.random.Generator, lag: int, batch: int) -> Batch:
    """The copy memory task (Hochreiter & Schmidhuber, 1997; in the form of Arjovsky, Shah & Bengio, "Unitary evolution
    recurrent neural networks", 2016), T = lag + 20 steps.

    One-hot input: 10 symbols out of 8, ``lag - 1`` blanks, the sign to begin, 10 blanks. Targets, classes: ``lag + 10``
    blanks, and then the 10 symbols. ``lag`` is at least 1.
    """
    symbols = rng.integers(SYMBOLS, size=(COPIED, batch))
    shown, targets = np.full((2, lag + 2 * COPIED, batch), BLANK)
    shown[:COPIED] = targets[-COPIED:] = symbols
    shown[-COPIED - 1] = GO
    return Batch(np.eye(SYMBOLS + 2, dtype=np.float32)[shown], targets)


def variance() -> float:
    """The mean squared error, in ``adding`` and ``summing``, of always giving the mean: twice the 1/12 of U(0, 1)."""
    return 1 / 6


def best_linear(length: int) -> float:
    """The least mean squared error in ``adding`` of what knows only the sums over time of value and of marker.

    The latter is always 2. The former, S, has variance T/12 and covariance 1/6 with the target, so the best linear
    estimate from it leaves ``1/6 - (1/6)**2 / (T/12) = (1/6) (1 - 2/T)``. A CEC with the identity as g and a linear
    readout is such an estimate.
    """
    return variance() * (1 - 2 / length)


def no_memory(lag: int) -> float:
    """The cross entropy in ``copying``, in nats per step, of blanks followed by guesses: ``10 log 8 / (lag + 20)``."""
    return COPIED * math.log(SYMBOLS) / (lag + 2 * COPIED)


def counts_alone(lag: int) -> float:
    """The least cross entropy in ``copying``, in nats per step, of what knows how often each symbol came, and not when.

    That is all that a sum over time can hold. A symbol that came k times out of 10 is then as likely as k / 10 at each
    place, so what is left at a place is the mean entropy of these frequencies, ``log 10 - sum_k 8 p_k (k / 10) log k``
    with k of Binomial(10, 1/8).
    """
    n, p = COPIED, 1 / SYMBOLS
    known = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) * k / n * math.log(k) for k in range(1, n + 1))
    return COPIED * (math.log(n) - SYMBOLS * known) / (lag + 2 * COPIED)


def _values(rng: np.random.Generator, length: int, batch: int) -> NDArray[np.float32]:
    """Values from U(0, 1), and markers of 0: (T, B, 2)."""
    x = np.zeros((length, batch, 2), np.float32)
    x[..., 0] = rng.random((length, batch), np.float32)
    return x
