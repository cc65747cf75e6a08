"""Gradients, and clipping them."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import numpy as np


class Gradients(NamedTuple):
    """What ``backward`` returns."""

    x: np.ndarray  #: dJ/dx, the shape of x
    state: object  #: dJ/d(initial state), the shape of the state
    params: dict[str, np.ndarray]  #: dJ/d(parameter), by name


def clip_grad_norm(grads: dict[str, np.ndarray], max_norm: float) -> float:
    """Scale gradients in place so that their norm together is at most ``max_norm`` (Pascanu, Mikolov & Bengio, "On the
    difficulty of training recurrent neural networks", 2013).

    ``grads`` maps names to arrays of any shapes, as ``Gradients.params`` does. Returns the norm before clipping: the
    square root of the sum of all squares. Gradients whose norm is not finite are left as they are. Raises TypeError if
    ``max_norm`` is no number, ValueError if it is negative or NaN.
    """
    if not isinstance(max_norm, numbers.Real):
        raise TypeError(f"max_norm: expected a number, got {max_norm!r}")
    if not max_norm >= 0:
        raise ValueError(f"max_norm: expected 0 or more, got {max_norm!r}")
    norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))
    if norm > max_norm and math.isfinite(norm):
        for g in grads.values():
            g *= max_norm / norm
    return norm
