"""The gated recurrent unit (Cho et al., EMNLP 2014):

r = logistic(W_r x_t + b_r + R_r h_{t-1})        z = logistic(W_z x_t + b_z + R_z h_{t-1})
n = tanh(W_n x_t + b_in + r (R_n h_{t-1} + b_hn)), or, with the reset before the product,
n = tanh(W_n x_t + b_in + R_n (r h_{t-1}) + b_hn)
h_t = (1 - z) n + z h_{t-1}
"""

from __future__ import annotations

import numpy as np

from .. import cells
from ..weights import Weights
from .engine import Engine, over_steps
from .functions import logistic


class GatedRecurrentUnit(Engine):
    kept = 4  # r, z, n; and q = R_n h_{t-1} + b_hn, or r h_{t-1}

    def __init__(self, reset_after):
        self.reset_after = reset_after

    def forward(self, weights, x, states, active):
        W, R, b_ih, b_hh, _, _ = weights
        H = R.shape[1]
        a = x @ W.T + b_ih
        h = np.empty((len(x) + 1, *states[0].shape), x.dtype)
        h[0] = states[0]
        kept = np.empty((self.kept, *h[1:].shape), x.dtype)
        for t in range(len(x)):
            a_r, a_z, a_n = np.split(a[t], 3, -1)
            r = logistic(a_r + h[t] @ R[:H].T + b_hh[:H])
            z = logistic(a_z + h[t] @ R[H : 2 * H].T + b_hh[H : 2 * H])
            if self.reset_after:
                last = h[t] @ R[2 * H :].T + b_hh[2 * H :]
                n = np.tanh(a_n + r * last)
            else:
                last = r * h[t]
                n = np.tanh(a_n + last @ R[2 * H :].T + b_hh[2 * H :])
            kept[:, t] = r, z, n, last
            h[t + 1] = np.where(active[t], (1 - z) * n + z * h[t], h[t])
        return h[1:], (h,), list(kept)

    def backward(self, weights, x, y, states, kept, dy, dstates, active, clip):
        W, R = weights.W, weights.R
        (h,), (dh,), (r, z, n, last) = states, dstates, kept
        H = R.shape[1]
        delta = np.zeros((*x.shape[:2], 3 * H), x.dtype)  # dJ/d(W x_t), gate by gate
        delta_h = np.zeros_like(delta)  # dJ/d(what R gives)
        da_r, da_z, da_n = np.split(delta, 3, -1)
        for t in reversed(range(len(x))):
            now = active[t]
            dh = dh + np.where(now, dy[t], 0)
            da_n[t] = np.where(now, dh * (1 - z[t]) * (1 - n[t] ** 2), 0)  # h_t = (1 - z) n + z h_{t-1}
            da_z[t] = np.where(now, dh * (h[t] - n[t]) * z[t] * (1 - z[t]), 0)
            if self.reset_after:
                da_r[t] = da_n[t] * last[t] * r[t] * (1 - r[t])  # n = tanh(a_n + r q)
                delta_h[t] = np.concatenate([da_r[t], da_z[t], da_n[t] * r[t]], -1)
                dh_before = dh * z[t] + delta_h[t] @ R
            else:
                dlast = da_n[t] @ R[2 * H :]  # n = tanh(a_n + R_n (r h_{t-1}))
                da_r[t] = dlast * h[t] * r[t] * (1 - r[t])
                delta_h[t] = delta[t]
                dh_before = dh * z[t] + dlast * r[t] + delta[t, :, : 2 * H] @ R[: 2 * H]
            dh = np.where(now, clip(dh_before), dh)
        dR = over_steps(delta_h, h[:-1])
        if not self.reset_after:
            dR[2 * H :] = over_steps(da_n, last)
        return delta @ W, (dh,), Weights(over_steps(delta, x), dR, delta.sum((0, 1)), delta_h.sum((0, 1)))

    def tangent(self, weights, x, y, states, kept, dx, dstates, active):
        R = weights.R
        (h,), (dh,), (r, z, n, last) = states, dstates, kept
        H = R.shape[1]
        da = dx @ weights.W.T
        dy = np.empty_like(y)
        for t in range(len(x)):
            da_r, da_z, da_n = np.split(da[t], 3, -1)
            dr = (da_r + dh @ R[:H].T) * r[t] * (1 - r[t])
            dz = (da_z + dh @ R[H : 2 * H].T) * z[t] * (1 - z[t])
            if self.reset_after:
                da_n = da_n + dr * last[t] + r[t] * (dh @ R[2 * H :].T)
            else:
                da_n = da_n + (dr * h[t] + r[t] * dh) @ R[2 * H :].T
            dn = da_n * (1 - n[t] ** 2)
            dy[t] = (1 - z[t]) * dn + dz * (h[t] - n[t]) + z[t] * dh  # h_t = (1 - z) n + z h_{t-1}
            dh = np.where(active[t], dy[t], dh)
        return dy, (dh,)


class GRU(cells.GRU):
    __doc__ = cells.GRU.__doc__

    def _make_engine(self, input_size):
        return GatedRecurrentUnit(self.reset_after)
