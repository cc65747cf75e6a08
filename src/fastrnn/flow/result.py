"""What ``gradient_flow`` returns, and what can be read off it: how far back gradients reach, and whether they vanish or
explode on the way (Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", diploma thesis, TU München, 1991;
Bengio, Simard & Frasconi, "Learning long-term dependencies with gradient descent is difficult", IEEE Trans. Neural
Networks 5, 1994; Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013)."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np

#: A flow below this part of its start has vanished, and one above its reciprocal has exploded.
VANISHED = 1e-3
#: What a shorter sequence does is carried on over so many steps before it is judged ...
STEPS_TO_JUDGE = 100
#: ... if the flow has changed by this factor at all: less may be a transient of the first few steps.
CLEAR_CHANGE = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class GradientFlow:
    """The flow of gradients through the time steps of one recurrent layer.

    With s_t the layer's full state, h_t, (h_t, c_t) for LSTM, c_t for CEC, and end each sequence's last step. Steps are
    counted in the order in which the direction reads them. T, B, G, H and O as everywhere; all arrays are float64 but
    ``lengths`` and ``horizon``, which are int64. Where a sequence has no such step, ``gamma``, ``gamma_f``, ``bound``,
    ``flow`` and ``gates`` are NaN, and ``grad_norm`` is 0.
    """

    cell: str  #: the class of the layer: "RNN", "LSTM", "GRU" or "CEC"
    lengths: np.ndarray  #: (B,), the steps of each sequence
    gamma: np.ndarray  #: (T, B), the largest singular value of d s_t / d s_{t-1}
    flow: np.ndarray  #: (T+1, B), flow[k] = || d h_end / d s_k ||_2, for CEC of the output y_end; inf if it overflows
    grad_norm: np.ndarray  #: (T, B), || dJ/dh_t ||_2, for CEC of c_t, with all that comes back from later steps
    lag_gradient: np.ndarray  #: (max_lag+1,), the Frobenius norms of the matrices in ``lag_matrices``
    #: On request (max_lag+1, G*H, O): the part of dJ/dW_hh that arrives through exactly l steps, the sum over k of
    #: delta_k h_{k-1}^T where delta_k comes from dy_{k+l} alone. Those of l = 0 to T-1 sum to dJ/dW_hh. CEC has no
    #: W_hh: there it is dJ/dW_ih, (max_lag+1, H, I).
    lag_matrices: np.ndarray | None = None
    gamma_u: float | None = None  #: RNN: the largest singular value of W_hh
    gamma_f: np.ndarray | None = None  #: RNN: (T, B), max |f'| over the units
    bound: np.ndarray | None = None  #: RNN: (T, B), gamma_u * gamma_f >= gamma
    #: LSTM and GRU: of each gate by its letter, the mean over the units (T, B). A candidate, g or n, may be negative.
    gates: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def horizon(self) -> np.ndarray:
        """(B,), how many steps back from the end the flow stays above 1e-3 of its start, its value at the end. The
        sequence's length if it does so throughout."""
        return horizon_of(self.flow, self.lengths)

    @functools.cached_property
    def verdict(self) -> str:
        """ "vanishing", "exploding" or "stable".

        A sequence of n steps over which the flow changes by the factor r = flow[0] / flow[n], so r^(1/n) per step, is
        carried on at this rate to 100 steps if it is shorter: r^(100/n). Its gradients vanish if that is below 1e-3 and
        explode if it is above 1e3, provided that r itself is below 1/10 or above 10, since less may be a transient. So
        from 100 steps on what counts is what has happened, r against 1e-3 and 1e3; in 5 steps the rate must be clear.
        A flow that is 0 has vanished; one that is infinite, or NaN since infinite on the way, has exploded.

        The verdict is the one that holds for at least half of the sequences which have a step, "exploding" if both do,
        "stable" if neither does or there are no steps.
        """
        return verdict_of(self.flow, self.lengths)

    def plot(self, path: str | os.PathLike) -> None:
        """Write a picture in the format of ``path``'s ending (png, pdf, svg): flow over lag, gamma at each step, the
        share of the gradient from each lag, the norm of the gradient and the gates' mean activity at each step. Of a
        batch it shows the median, and as a band from the least to the greatest. ImportError without matplotlib."""
        from . import plot

        plot.save_one(self, path)

    def to_dict(self) -> dict[str, Any]:
        """All of it as ``json.dumps`` takes it: arrays as lists, NaN as None, infinity as the string "Infinity". Fields
        that the cell does not have are None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"horizon": self.horizon, "verdict": self.verdict}
        return {name: _plain(value) for name, value in fields.items()}

    def __repr__(self) -> str:
        T, B = self.gamma.shape
        return f"GradientFlow({self.cell}, T={T}, B={B}, {self.verdict}, horizon={self.horizon.tolist()})"


def horizon_of(flow: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``GradientFlow.horizon`` from its flow (T+1, B) and lengths (B,)."""
    horizon = np.zeros(len(lengths), np.int64)
    for b, n in enumerate(lengths):
        back = flow[: n + 1, b][::-1]  # by lag
        low = np.flatnonzero(back <= VANISHED * back[0])  # none where NaN: see ``verdict``
        horizon[b] = max(low[0] - 1, 0) if low.size else n
    return horizon


def verdict_of(flow: np.ndarray, lengths: np.ndarray) -> str:
    """``GradientFlow.verdict`` from its flow (T+1, B) and lengths (B,)."""
    signs = [_sign(flow[n, b], flow[0, b], int(n)) for b, n in enumerate(lengths) if n > 0]
    for verdict, sign in (("exploding", 1), ("vanishing", -1)):
        if signs and 2 * signs.count(sign) >= len(signs):
            return verdict
    return "stable"


def _sign(start, far, steps):
    """1 if one sequence's gradients explode, -1 if they vanish, else 0."""
    if not (np.isfinite(start) and np.isfinite(far)):
        return 1
    if start == 0 or far == 0:
        return -1
    change = np.log(far) - np.log(start)  # the quotient itself may overflow
    carried_on = change * max(steps, STEPS_TO_JUDGE) / steps
    if abs(change) < np.log(CLEAR_CHANGE) or abs(carried_on) < -np.log(VANISHED):
        return 0
    return int(np.sign(change))


def _plain(value):
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value) if np.isfinite(value) else "Infinity"
    return value
