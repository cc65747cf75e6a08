"""The flow of gradients through time, with every Jacobian written out.

J_t = d s_t / d s_{t-1}, s_t the state: h_t, (h_t, c_t) or c_t        E_t = d y_t / d s_t: the identity, [I 0], readout'
flow[k] = || E_end J_end J_{end-1} ... J_{k+1} ||_2                   ds_t = E_t^T dy_t + J_{t+1}^T ds_{t+1}

No cell's equations stand here: J_t and the parts of the gradient come from ``backward`` on sequences of one step.
It takes memory for T*B*S^2 numbers, S the size of s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .. import checks
from ..flow import study as studies
from ..flow.result import GradientFlow
from ..flow.study import Level
from ..layers import Layer, State
from .cec import CEC
from .functions import FUNCTIONS
from .gru import GRU
from .lstm import LSTM
from .rnn import RNN

LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU, "CEC": CEC}


def gradient_flow(
    layer: Layer,
    x: ArrayLike,
    dy: ArrayLike,
    state: State = None,
    *,
    lengths: ArrayLike | None = None,
    max_lag: int | None = None,
    level: int = -1,
    direction: int = 0,
    lag_matrices: bool = False,
) -> GradientFlow:
    """How gradients flow back through the steps of a recurrent layer: how much of them arrives from how far, and
    whether they vanish or explode (Hochreiter 1991; Bengio, Simard & Frasconi, IEEE Trans. Neural Networks 5, 1994;
    Pascanu, Mikolov & Bengio, ICML 2013).

    It is the flow of inference, without dropout, and computed in float64 whatever the layer's dtype, but for the parts
    by lag, which may be taken in the layer's own. Of a stack it is that of one layer, given what comes up to it from
    the layers below and what ``backward`` brings down to it from those above. The results are time-major whatever the
    layout of x. The reverse direction reads a sequence from its last step to its first, and its steps are counted in
    that order: flow[0] is then about the end of the sequence.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or CEC, of ``fastrnn`` or ``fastrnn.reference``
    x : as for a call of the layer: ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)``, or, with ``lengths``, a
        ragged batch ``(sum(lengths), I)``
    dy : dJ/dy, the gradient of the loss J with respect to every step's output, of y's shape. It matters for
        ``grad_norm``, ``lag_gradient`` and ``lag_matrices`` alone
    state : the initial state, as for a call of the layer; None for zeros
    lengths : ``(B,)`` integers in 0..T, in any order; None if all are T
    max_lag : the greatest lag of ``lag_gradient``, 0 to T-1; None for T-1
    level : which layer of the stack, from 0 or, negative, from the top
    direction : 0, or 1 for the reverse direction of a bidirectional layer
    lag_matrices : whether to keep the matrices whose norms ``lag_gradient`` has

    Returns
    -------
    GradientFlow
        For LSTM ``gamma`` and ``flow`` are those of the full state (h_t, c_t), for CEC of c_t, and its parts by lag are
        those of dJ/dW_ih.

    Raises
    ------
    ValueError, TypeError
        naming the argument that is wrong, what was expected and what came. A TDNN has no state. Arguments must be
        finite, and so must all states and gates on the way: of those that are not, or that the layer's dtype cannot
        hold, the error names the first, by its layer, step, sequence and gate or state.
    """
    keep = checks.flag(lag_matrices, "lag_matrices")
    study = studies.prepare(LAYERS, layer, x, dy, state, lengths, max_lag, level, direction)
    # Products over many steps may overflow.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        steps = OneSteps(study)
        J, E = steps.jacobians(), output_jacobians(study)
        parts = steps.lag_parts()
        return studies.flow_of(
            study,
            gamma=study.masked(largest_singular_value(J)),
            flow=flow(J, E, study.lengths),
            grad_norm=grad_norm(J, E, study.dy),
            lag_gradient=norm(parts, axis=(1, 2)),
            lag_matrices=parts if keep else None,
            **elman_bound(study),
        )


class OneSteps:
    """All steps of all sequences, each as a sequence of one step from the state it started with: a batch of T*B."""

    def __init__(self, study: Level) -> None:
        self.study, self.layer = study, study.layer
        self.T, self.B = study.x.shape[:2]
        self.widths = [s.shape[-1] for s in study.states]
        states = self.layer._pack_state(tuple(self.side_by_side(s[:-1]) for s in study.states))
        *_, self.tape = self.layer.forward(self.side_by_side(study.x), states)

    def side_by_side(self, values):
        """(T, B, .) as one step (1, T*B, .)"""
        return None if values is None else values.reshape(1, self.T * self.B, values.shape[-1])

    def back(self, dy=None, ds=None):
        """dJ/ds_{t-1} (T, B, S) and dJ/d(parameters), for given dJ/dy_t (T, B, O) or dJ/ds_t (T, B, S)."""
        if ds is not None:
            parts = np.split(self.side_by_side(ds), np.cumsum(self.widths)[:-1], axis=-1)
            ds = self.layer._pack_state(tuple(parts))
        grads = self.layer.backward(self.tape, self.side_by_side(dy), ds)
        parts = grads.state if isinstance(grads.state, tuple) else (grads.state,)
        return np.concatenate(parts, axis=-1).reshape(self.T, self.B, sum(self.widths)), grads.params

    def jacobians(self):
        """J (T, B, S, S): row i is what comes back for a gradient of 1 at s_t[i]."""
        S = sum(self.widths)
        J = np.empty((self.T, self.B, S, S))
        for i in range(S):
            unit = np.zeros((self.T, self.B, S))
            unit[..., i] = 1
            J[:, :, i] = self.back(ds=unit)[0]
        return J

    def lag_parts(self):
        """dJ/dW_hh (CEC: dJ/dW_ih) by lag: what dy_{k+l} sends l steps back is at k the gradient of that step's end."""
        name = "weight_hh_l0" if "weight_hh_l0" in self.layer.params else "weight_ih_l0"
        parts = np.zeros((self.study.max_lag + 1, *self.layer.params[name].shape))
        ds, params = None, {}
        for lag in range(len(parts)):
            before, params = self.back(dy=self.study.dy) if lag == 0 else self.back(ds=ds)
            parts[lag] = params[name]
            ds = np.concatenate([before[1:], np.zeros_like(before[:1])])  # d/ds_{t-1} at t is d/ds_t at t-1
        return parts


def output_jacobians(study):
    """E (T+1, B, O, S)"""
    *_, O = study.dy.shape
    S = sum(s.shape[-1] for s in study.states)
    E = np.broadcast_to(np.eye(O, S), (len(study.x) + 1, len(study.lengths), O, S))
    if study.layer._states == ("c",):
        f, gradient = FUNCTIONS[study.layer.readout]
        E = gradient(f(study.states[0])[..., None], E)
    return E


def flow(J, E, lengths):
    """|| d y_end / d s_k ||_2 (T+1, B), the product of Jacobians taken from each sequence's end back."""
    T, B, S, _ = J.shape
    norms = np.full((T + 1, B), np.nan)
    product = np.zeros((B, E.shape[-2], S))
    exponent = np.zeros(B, np.int64)  # the product is 2^exponent times the array, so that it fits at any length
    for k in reversed(range(T + 1)):
        if k < T:
            product = product @ J[k]
        product[lengths == k] = E[k, lengths == k]
        _, e = np.frexp(np.abs(product).max((1, 2)))
        product = np.ldexp(product, -e[:, None, None])
        exponent += e
        known = lengths >= k
        norms[k, known] = np.ldexp(largest_singular_value(product), exponent)[known]
    return norms


def grad_norm(J, E, dy):
    """|| dJ/dh_t ||_2 (T, B), for CEC of c_t."""
    T, B, O = dy.shape
    norms, ds = np.zeros((T, B)), np.zeros((B, J.shape[-1]))
    for t in reversed(range(T)):
        ds = ds + np.einsum("bos,bo->bs", E[t + 1], dy[t])
        norms[t] = norm(ds[:, :O])
        ds = np.einsum("bij,bi->bj", J[t], ds)
    return norms


def elman_bound(study):
    """gamma <= gamma_u gamma_f, since J_t = diag(f'(a_t)) W_hh."""
    if "weight_hh_l0" not in study.layer.params or study.gates:
        return {}
    gamma_u = float(largest_singular_value(study.layer.params["weight_hh_l0"]))
    _, gradient = FUNCTIONS[study.layer.nonlinearity]
    gamma_f = study.masked(np.abs(gradient(study.tape.h, np.ones_like(study.tape.h))).max(-1))
    return {"gamma_u": gamma_u, "gamma_f": gamma_f, "bound": gamma_u * gamma_f}


def largest_singular_value(a):
    return np.linalg.svd(a, compute_uv=False)[..., 0]


def norm(a, axis=-1):
    """The Euclidean (Frobenius) norm, also where squares would overflow; infinite if the values have."""
    scale = np.abs(a).max(axis, keepdims=True, initial=0)
    norms = np.linalg.norm(a / np.where(scale > 0, scale, 1), axis=axis, keepdims=True) * scale
    return np.where(np.isfinite(scale), norms, np.inf).squeeze(axis)
