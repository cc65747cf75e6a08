"""The time-delay neural network (Waibel, Hanazawa, Hinton, Shikano & Lang, IEEE Trans. ASSP 37, 1989):

y_t = f(sum over k of W_k x_{t + context[k]} + b)        zeros outside the sequence
"""

from __future__ import annotations

import numpy as np

from .. import cells
from ..weights import Weights
from .engine import Engine, over_steps
from .functions import FUNCTIONS


class TimeDelay(Engine):
    has_h = False

    def __init__(self, context, nonlinearity):
        self.context = context
        self.f, self.gradient = FUNCTIONS[nonlinearity]

    def forward(self, weights, x, states, active):
        x = np.where(active, x, 0)
        a = sum(shifted(x, k) @ weights.W[:, i].T for i, k in enumerate(self.context)) + weights.b_ih
        return self.f(a), (), []

    def backward(self, weights, x, y, states, kept, dy, dstates, active, clip):
        x, delta = np.where(active, x, 0), np.where(active, self.gradient(y, dy), 0)
        dx = sum(shifted(delta, -k) @ weights.W[:, i] for i, k in enumerate(self.context))
        dW = np.stack([over_steps(delta, shifted(x, k)) for k in self.context], axis=1)
        return np.where(active, dx, 0), (), Weights(dW, b_ih=delta.sum((0, 1)))

    def tangent(self, weights, x, y, states, kept, dx, dstates, active):
        dx = np.where(active, dx, 0)
        da = sum(shifted(dx, k) @ weights.W[:, i].T for i, k in enumerate(self.context))
        return self.gradient(y, da), ()


def shifted(values, k):
    """values_{t + k}, zeros where there is none."""
    out = np.zeros_like(values)
    T = len(values)
    out[max(0, -k) : max(0, min(T, T - k))] = values[max(0, k) : max(0, min(T, T + k))]
    return out


class TDNN(cells.TDNN):
    __doc__ = cells.TDNN.__doc__

    def _make_engine(self, input_size):
        return TimeDelay(self.context, self.nonlinearity)
