"""The simple recurrent network (Elman, "Finding structure in time", Cognitive Science 14, 1990):

h_t = f(W x_t + b_ih + R h_{t-1} + b_hh)
"""

from __future__ import annotations

import numpy as np

from .. import layers
from .engine import Engine


def logistic(a):
    # Written with tanh, which does not overflow.
    return 0.5 * np.tanh(0.5 * a) + 0.5


# f, and f' as a function of h = f(a)
FUNCTIONS = {
    "tanh": (np.tanh, lambda h: 1 - h * h),
    "relu": (lambda a: np.maximum(a, 0), lambda h: np.where(h <= 0, 0, 1).astype(h.dtype)),
    "logistic": (logistic, lambda h: h * (1 - h)),
    "identity": (lambda a: a, np.ones_like),
}


class Elman(Engine):
    """One direction of one layer. ``active`` (T, B, 1) tells the steps that belong to a sequence."""

    def __init__(self, nonlinearity):
        self.f, self.derivative = FUNCTIONS[nonlinearity]

    def forward(self, weights, x, h0, active):
        W, R, b_ih, b_hh = weights
        a = x @ W.T + (b_ih + b_hh)  # (T, B, H), all steps at once
        h = np.empty((len(x) + 1, *h0.shape), h0.dtype)
        h[0] = h0
        for t in range(len(x)):
            h[t + 1] = np.where(active[t], self.f(a[t] + h[t] @ R.T), h[t])
        return h

    def backward(self, weights, x, h, dy, dhT, active):
        W, R, _, _ = weights
        delta = np.empty_like(dy)  # dJ/da_t
        dh = dhT
        for t in reversed(range(len(x))):
            dh = dh + dy[t]
            delta[t] = np.where(active[t], dh * self.derivative(h[t + 1]), 0)
            dh = np.where(active[t], delta[t] @ R, dh)
        dx = delta @ W
        dW = np.tensordot(delta, x, ([0, 1], [0, 1]))
        dR = np.tensordot(delta, h[:-1], ([0, 1], [0, 1]))
        db = delta.sum((0, 1))
        return dx, dh, (dW, dR, db, db)


class RNN(layers.RNN):
    __doc__ = layers.RNN.__doc__

    def _make_engines(self):
        return [Elman(self.nonlinearity) for _ in range(self.num_layers)]
