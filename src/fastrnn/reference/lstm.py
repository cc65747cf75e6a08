"""Long short-term memory (Hochreiter & Schmidhuber, Neural Computation 9, 1997; forget gate: Gers, Schmidhuber &
Cummins 2000; peepholes: Gers & Schmidhuber 2000; projection: Sak, Senior & Beaufays 2014):

a = W x_t + b_ih + R h_{t-1} + b_hh        with peepholes a_i += p_i c_{t-1}, a_f += p_f c_{t-1}, a_o += p_o c_t
i, f, o = logistic(a_i, a_f, a_o)          g = tanh(a_g)
c_t = f c_{t-1} + i g                      h_t = o tanh(c_t), or P (o tanh(c_t))

The original has f = 1, the coupled form (Greff et al. 2017) f = 1 - i.
"""

from __future__ import annotations

import numpy as np

from .. import cells
from ..weights import Weights
from .engine import Engine, over_steps
from .functions import logistic


def through(peephole, c):
    """What a gate sees of c, or c of a gate's gradient; nothing without a peephole, even of infinity."""
    return 0 if peephole is None else peephole * c


class LongShortTermMemory(Engine):
    def __init__(self, gates, coupled, projected):
        self.gates, self.coupled, self.projected = gates, coupled, projected
        self.c = len(gates)
        self.kept = len(gates) + 1 + projected

    def forward(self, weights, x, states, active):
        W, R, b_ih, b_hh, P, p = weights
        p_i, p_f, p_o = (None,) * 3 if p is None else np.split(p, 3)
        a = x @ W.T + (b_ih + b_hh)
        h, c = (np.empty((len(x) + 1, *s.shape), x.dtype) for s in states)
        kept = [np.empty((len(x), *states[1].shape), x.dtype) for _ in range(self.kept)]
        h[0], c[0] = states
        for t in range(len(x)):
            a_t = dict(zip(self.gates, np.split(a[t] + h[t] @ R.T, len(self.gates), -1), strict=True))
            i = logistic(a_t["i"] + through(p_i, c[t]))
            f = logistic(a_t["f"] + through(p_f, c[t])) if "f" in a_t else 1 - i if self.coupled else 1
            g = np.tanh(a_t["g"])
            c_t = f * c[t] + i * g
            o = logistic(a_t["o"] + through(p_o, c_t))
            m = o * np.tanh(c_t)
            h_t = m @ P.T if self.projected else m
            gates = {"i": i, "f": f, "g": g, "o": o}
            for array, value in zip(kept, [*(gates[name] for name in self.gates), c_t, m], strict=False):
                array[t] = value
            h[t + 1], c[t + 1] = np.where(active[t], h_t, h[t]), np.where(active[t], c_t, c[t])
        return h[1:], (h, c), kept

    def backward(self, weights, x, y, states, kept, dy, dstates, active, clip):
        W, R, _, _, P, p = weights
        p_i, p_f, p_o = (None,) * 3 if p is None else np.split(p, 3)
        (h, c), (dh, dc) = states, dstates
        values = dict(zip(self.gates, kept, strict=False))
        i, g, o, f = values["i"], values["g"], values["o"], values.get("f")
        delta = np.zeros((*x.shape[:2], len(W)), x.dtype)  # dJ/da_t, gate by gate
        da = dict(zip(self.gates, np.split(delta, len(self.gates), -1), strict=True))
        dy = dy.copy()
        for t in reversed(range(len(x))):
            now, c_t = active[t], kept[self.c][t]
            dy[t] = np.where(now, dh + dy[t], 0)  # from here on dJ/dh_t
            dm = dy[t] @ P if self.projected else dy[t]  # h_t = P m
            tanh_c = np.tanh(c_t)
            da["o"][t] = dm * tanh_c * o[t] * (1 - o[t])  # m = o tanh(c_t)
            dc_t = dc + dm * o[t] * (1 - tanh_c**2) + through(p_o, da["o"][t])
            da["g"][t] = np.where(now, dc_t * i[t] * (1 - g[t] ** 2), 0)  # c_t = f c_{t-1} + i g
            di = dc_t * (g[t] - c[t] if self.coupled else g[t])
            da["i"][t] = np.where(now, di * i[t] * (1 - i[t]), 0)
            dc_before = dc_t * (f[t] if f is not None else 1 - i[t] if self.coupled else 1) + through(p_i, da["i"][t])
            if f is not None:
                da["f"][t] = np.where(now, dc_t * c[t] * f[t] * (1 - f[t]), 0)
                dc_before += through(p_f, da["f"][t])
            dh, dc = np.where(now, clip(delta[t] @ R), dh), np.where(now, clip(dc_before), dc)
        db = delta.sum((0, 1))
        dP = over_steps(dy, kept[-1]) if self.projected else None
        dp = None
        if p is not None:
            dp_f = (da["f"] * c[:-1]).sum((0, 1)) if f is not None else np.zeros_like(p_f)
            dp = np.concatenate([(da["i"] * c[:-1]).sum((0, 1)), dp_f, (da["o"] * kept[self.c]).sum((0, 1))])
        return delta @ W, (dh, dc), Weights(over_steps(delta, x), over_steps(delta, h[:-1]), db, db, dP, dp)

    def tangent(self, weights, x, y, states, kept, dx, dstates, active):
        _, R, _, _, P, p = weights
        p_i, p_f, p_o = (None,) * 3 if p is None else np.split(p, 3)
        (_, c), (dh, dc) = states, dstates
        values = dict(zip(self.gates, kept, strict=False))
        da = dx @ weights.W.T
        dy = np.empty_like(y)
        for t in range(len(x)):
            i, g, o, c_t = values["i"][t], values["g"][t], values["o"][t], kept[self.c][t]
            da_t = dict(zip(self.gates, np.split(da[t] + dh @ R.T, len(self.gates), -1), strict=True))
            di = (da_t["i"] + through(p_i, dc)) * i * (1 - i)
            if "f" in values:
                f = values["f"][t]
                df = (da_t["f"] + through(p_f, dc)) * f * (1 - f)
            else:
                f, df = (1 - i, -di) if self.coupled else (1, 0)
            dg = da_t["g"] * (1 - g**2)
            dc_t = f * dc + df * c[t] + i * dg + di * g  # c_t = f c_{t-1} + i g
            do = (da_t["o"] + through(p_o, dc_t)) * o * (1 - o)
            tanh_c = np.tanh(c_t)
            dm = do * tanh_c + o * (1 - tanh_c**2) * dc_t  # m = o tanh(c_t)
            dy[t] = dm @ P.T if self.projected else dm
            dh, dc = np.where(active[t], dy[t], dh), np.where(active[t], dc_t, dc)
        return dy, (dh, dc)


class LSTM(cells.LSTM):
    __doc__ = cells.LSTM.__doc__

    def _make_engine(self, input_size):
        return LongShortTermMemory(self._gates, self.coupled, self.proj_size > 0)
