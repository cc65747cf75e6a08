"""The constant error carousel (Hochreiter & Schmidhuber, Neural Computation 9, 1997):

c_t = c_{t-1} + W g(x_t) + b        y_t = readout(c_t)
"""

from __future__ import annotations

import numpy as np

from .. import cells
from ..weights import Weights
from .engine import Engine, over_steps
from .functions import FUNCTIONS


class Carousel(Engine):
    kept, c = 1, 0
    has_h = False

    def __init__(self, nonlinearity, readout):
        self.g, self.g_gradient = FUNCTIONS[nonlinearity]
        self.readout, self.readout_gradient = FUNCTIONS[readout]

    def forward(self, weights, x, states, active):
        a = np.where(active, self.g(x) @ weights.W.T + weights.b_ih, 0)
        c = np.cumsum(np.concatenate([states[0][None], a]), axis=0, dtype=x.dtype)
        return self.readout(c[1:]), (c,), [c[1:]]

    def backward(self, weights, x, y, states, kept, dy, dstates, active, clip):
        (dc,) = dstates
        delta = np.empty_like(y)  # dJ/da_t, which is dJ/dc_t
        for t in reversed(range(len(x))):
            delta[t] = np.where(active[t], dc + self.readout_gradient(y[t], dy[t]), 0)
            dc = np.where(active[t], clip(delta[t]), dc)  # c_t = c_{t-1} + a_t
        input_ = self.g(x)
        dx = self.g_gradient(input_, delta @ weights.W)
        return dx, (dc,), Weights(over_steps(delta, input_), b_ih=delta.sum((0, 1)))

    def tangent(self, weights, x, y, states, kept, dx, dstates, active):
        da = np.where(active, self.g_gradient(self.g(x), dx) @ weights.W.T, 0)
        dc = np.cumsum(np.concatenate([dstates[0][None], da]), axis=0, dtype=x.dtype)[1:]
        return self.readout_gradient(y, dc), (dc[-1] if len(dc) else dstates[0],)


class CEC(cells.CEC):
    __doc__ = cells.CEC.__doc__

    def _make_engine(self, input_size):
        return Carousel(self.nonlinearity, self.readout)
