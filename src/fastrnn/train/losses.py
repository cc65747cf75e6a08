"""Losses of every step, and their gradients.

Both losses take the layouts of a layer's output. With ``lengths``, an array ``(T, B, .)``, or ``(B, T, .)`` if
``batch_first``, is padded, and a step past its sequence's length has loss and gradient zero and is not read; an array
``(sum(lengths), .)`` is a ragged batch. Without ``lengths`` every position of an array of any shape counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks


def softmax_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, lengths: ArrayLike | None = None, batch_first: bool = False
) -> tuple[NDArray, NDArray]:
    """Cross-entropy of a softmax, in nats, and its gradient.

    ``loss = log(sum_v exp(a_v)) - a_target``, and ``d loss / d a_v = softmax(a)_v - [v = target]`` (Bridle
    1990). The largest logit is subtracted first, so no ``exp`` overflows.

    Parameters
    ----------
    logits : real array, shape (..., V); with lengths (T, B, V), (B, T, V) or (sum(lengths), V)
        float32 and float64 keep their type; other real types are taken as float64.
    targets : integer array, shape (...)
        The right class of each position, in 0..V-1; anything past a sequence's length.
    lengths : integer array, shape (B,), or None
        Of the sequences, in 0..T; None if every position counts.
    batch_first : bool
        Whether padded logits are (B, T, V).

    Returns
    -------
    loss_per_step : array, shape (...)
        The loss of every position; nothing is averaged. Zero past a sequence's length.
    dlogits : array, shape (..., V)
        Gradient of ``loss_per_step.sum()``. Divide it by the number of positions to train on the mean.

    Raises
    ------
    TypeError
        ``logits`` are not real numbers or ``targets`` or ``lengths`` are not integers.
    ValueError
        The shapes do not fit, or a target lies outside 0..V-1.
    """
    logits, targets = _floating(logits, "logits"), checks.array(targets, "targets", "integers")
    if targets.dtype.kind not in "iu" and targets.size:
        raise TypeError(f"targets: expected integers, got dtype {targets.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {logits.shape}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]} to match logits, got {targets.shape}")
    return _of_real_steps(_softmax_cross_entropy, logits, "logits", targets, lengths, batch_first)


def _softmax_cross_entropy(logits, targets):
    if targets.size and not 0 <= targets.min() <= targets.max() < logits.shape[-1]:
        raise ValueError(
            f"targets: expected classes in 0..{logits.shape[-1] - 1}, got {targets.min()}..{targets.max()}"
        )
    target = targets[..., np.newaxis].astype(np.intp)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    target_logit = np.take_along_axis(shifted, target, axis=-1)
    dlogits = np.exp(shifted, out=shifted)
    total = dlogits.sum(axis=-1, keepdims=True)
    loss = np.log(total) - target_logit
    dlogits /= total
    np.put_along_axis(dlogits, target, np.take_along_axis(dlogits, target, axis=-1) - 1, axis=-1)
    return loss[..., 0], dlogits


def mean_squared_error(
    y: ArrayLike, targets: ArrayLike, *, lengths: ArrayLike | None = None, batch_first: bool = False
) -> tuple[NDArray, NDArray]:
    """Mean squared error over the last axis, and its gradient: ``loss = sum_o (y_o - target_o)**2 / O`` and
    ``d loss / d y_o = 2 (y_o - target_o) / O``.

    Parameters
    ----------
    y : real array, shape (..., O); with lengths (T, B, O), (B, T, O) or (sum(lengths), O)
        float32 and float64 keep their type; other real types are taken as float64.
    targets : real array, of y's shape
        Anything past a sequence's length.
    lengths, batch_first
        As for ``softmax_cross_entropy``.

    Returns
    -------
    loss_per_step : array, shape (...)
        The loss of every position; nothing is averaged over positions. Zero past a sequence's length.
    dy : array, shape (..., O)
        Gradient of ``loss_per_step.sum()``.

    Raises
    ------
    TypeError
        ``y`` or ``targets`` are not real numbers or ``lengths`` are not integers.
    ValueError
        The shapes do not fit.
    """
    y = _floating(y, "y")
    if y.ndim == 0 or y.shape[-1] == 0:
        raise ValueError(f"y: expected shape (..., O) with O >= 1, got {y.shape}")
    targets = checks.shaped_array(targets, "targets", y.shape, y.dtype)
    return _of_real_steps(_mean_squared_error, y, "y", targets, lengths, batch_first)


def _mean_squared_error(y, targets):
    difference = y - targets
    return np.square(difference).mean(axis=-1), difference * (2 / y.shape[-1])


def _floating(values, name):
    dtype = getattr(values, "dtype", None)
    dtype = dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype
    return checks.real_array(values, name, np.dtype(dtype if dtype in (np.float32, np.float64) else np.float64))


def _of_real_steps(function, values, name, targets, lengths, batch_first):
    """The loss and the gradient that ``function`` gives of the steps that belong to a sequence, and zeros elsewhere."""
    batch_first = checks.flag(batch_first, "batch_first")
    if lengths is None:
        return function(values, targets)
    values, batch = checks.sequences(values, lengths, values.shape[-1], batch_first, values.dtype, name)
    if batch.ragged:
        return function(values, targets)
    real = checks.real_steps(batch.lengths, batch.T, batch_first)
    loss, gradient = np.zeros(real.shape, values.dtype), np.zeros_like(values)
    loss[real], gradient[real] = function(values[real], targets[real])
    return loss, gradient
