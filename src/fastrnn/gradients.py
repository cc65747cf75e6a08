"""Gradients, and clipping them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from . import checks


class Gradients(NamedTuple):
    """What ``backward`` returns."""

    x: np.ndarray  #: dJ/dx, the shape of x
    state: object  #: dJ/d(initial state), the shape of the state
    params: dict[str, np.ndarray]  #: dJ/d(parameter), by name


def clip_grad_norm(grads: Mapping[str, np.ndarray] | Gradients, max_norm: float) -> float:
    """Scale gradients in place so that their norm together is at most ``max_norm`` (Pascanu, Mikolov & Bengio, "On the
    difficulty of training recurrent neural networks", 2013).

    ``grads`` maps names to floating-point arrays of any shapes; of what ``backward`` returned, it is its ``params``.
    Returns the norm before clipping: the square root of the sum of all squares. Gradients whose norm is not finite are
    left as they are. Raises TypeError if ``max_norm`` is no number or ``grads`` no such mapping, ValueError if
    ``max_norm`` is negative or NaN or an array is read-only; and then nothing is changed.
    """
    if not isinstance(max_norm, numbers.Real) or isinstance(max_norm, bool):
        raise TypeError(f"max_norm: expected a number, got {max_norm!r}")
    if not max_norm >= 0:
        raise ValueError(f"max_norm: expected 0 or more, got {max_norm!r}")
    arrays = checks.writeable_arrays(grads.params if isinstance(grads, Gradients) else grads, "grads")
    largest = float(np.max([np.abs(g).max(initial=0) for g in arrays.values()], initial=0))  # NaN if any is
    if not 0 < largest < math.inf:  # nothing but zeros, or not finite
        return largest
    parts = (np.divide(g, largest, dtype=np.float64) for g in arrays.values())
    norm = largest * math.sqrt(sum(float(np.sum(np.square(part))) for part in parts))
    if norm > max_norm and math.isfinite(norm):
        for g in arrays.values():
            g *= max_norm / norm
    return norm
