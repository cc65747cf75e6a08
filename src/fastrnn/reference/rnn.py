"""The simple recurrent network (Elman, "Finding structure in time", Cognitive Science 14, 1990):

h_t = f(W x_t + b_ih + R h_{t-1} + b_hh)
"""

from __future__ import annotations

import numpy as np

from .. import cells
from ..weights import Weights
from .engine import Engine, over_steps
from .functions import FUNCTIONS


class Elman(Engine):
    def __init__(self, nonlinearity):
        self.f, self.gradient = FUNCTIONS[nonlinearity]

    def forward(self, weights, x, states, active):
        a = x @ weights.W.T + (weights.b_ih + weights.b_hh)  # (T, B, H), all steps at once
        h = np.empty((len(x) + 1, *states[0].shape), x.dtype)
        h[0] = states[0]
        for t in range(len(x)):
            h[t + 1] = np.where(active[t], self.f(a[t] + h[t] @ weights.R.T), h[t])
        return h[1:], (h,), []

    def backward(self, weights, x, y, states, kept, dy, dstates, active, clip):
        (h,), (dh,) = states, dstates
        delta = np.empty_like(dy)  # dJ/da_t
        for t in reversed(range(len(x))):
            dh = dh + dy[t]
            delta[t] = np.where(active[t], self.gradient(y[t], dh), 0)
            dh = np.where(active[t], clip(delta[t] @ weights.R), dh)
        db = delta.sum((0, 1))
        return delta @ weights.W, (dh,), Weights(over_steps(delta, x), over_steps(delta, h[:-1]), db, db)

    def tangent(self, weights, x, y, states, kept, dx, dstates, active):
        (dh,) = dstates
        dy = np.empty_like(y)
        for t in range(len(x)):
            dy[t] = self.gradient(y[t], dx[t] @ weights.W.T + dh @ weights.R.T)
            dh = np.where(active[t], dy[t], dh)
        return dy, (dh,)


class RNN(cells.RNN):
    __doc__ = cells.RNN.__doc__

    def _make_engine(self, input_size):
        return Elman(self.nonlinearity)
