"""The flow of gradients through time, by products with the Jacobians J_t = d s_t / d s_{t-1} of a layer's steps.

All steps of all sequences are one batch of sequences of one step, whose products J^T u (``back``) and J v (``on``) are
kernels. With E_t = d y_t / d s_t:

- gamma_t, the largest singular value of J_t, by an iteration on J J^T, for all steps at once;
- flow[k] = || E_end J_end ... J_{k+1} ||_2: the rows of the product go back step by step, and the iteration for its
  largest singular value goes on from that of the step after;
- the part of the gradient that arrives through exactly l steps: dy of all steps at once, taken back l times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from . import _core, cells, checks, config, flowinput
from .gradientflow import GradientFlow
from .layers import Layer, State
from .reference import flow as reference
from .tape import Record
from .weights import Weights

LAYERS = {"RNN": cells.RNN, "LSTM": cells.LSTM, "GRU": cells.GRU, "CEC": cells.CEC}


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
    keep = checks.flag(lag_matrices, "lag_matrices")
    study = flowinput.prepare(LAYERS, layer, x, dy, state, lengths, max_lag, level, direction)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        steps = OneSteps(study)
        E = reference.output_jacobians(study)
        norms, parts = steps.lag_parts(keep)
        return flowinput.flow_of(
            study,
            gamma=study.masked(steps.gamma()),
            flow=steps.flow(E),
            grad_norm=steps.grad_norm(E),
            lag_gradient=norms,
            lag_matrices=parts,
            **reference.elman_bound(study),
        )


gradient_flow.__doc__ = reference.gradient_flow.__doc__


class OneSteps:
    """Every step of every sequence as a sequence of one step, which begins with the state that the step began with."""

    def __init__(self, study: flowinput.Level) -> None:
        self.study, self.level = study, study.tape._levels[0]
        self.T, self.B = study.x.shape[:2]
        self.count = self.T * self.B
        self.widths = [s.shape[-1] for s in study.states]
        self.before = [s[:-1].reshape(1, self.count, -1) for s in study.states]
        self.threads = config.get_num_threads()

    def steps(self, rows):
        """The batch and the record of so many of the first steps, or of those whose numbers t*B + b are given."""
        level, whole = self.level, isinstance(rows, int)
        batch = _core.Batch(1, rows) if whole else _core.Batch.gathered(rows, self.count)
        arrays = [None if a is None else a.reshape(1, self.count, -1) for a in (level.x, level.y, level.kept)]
        if whole:
            arrays = [None if a is None else a[:, :rows] for a in arrays]
            return batch, Record(*arrays, tuple(s[:, :rows] for s in self.before))
        return batch, Record(*arrays, tuple(np.take(s, rows, axis=1) for s in self.before))

    def split(self, vectors):
        """(n, S) as the parts of states (1, n, .)"""
        return tuple(
            np.ascontiguousarray(part)[None] for part in np.split(vectors, np.cumsum(self.widths)[:-1], axis=1)
        )

    def join(self, parts):
        return parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts], axis=1)

    def back(self, u, at, gradients=None):
        """J^T u for each row of u (n, S); and the gradients of the weights, summed over all."""
        batch, record = at
        out = self.split(np.empty_like(u))
        self.level.engine.run_backward(
            batch, self.level.packed_back, record, None, self.split(u), None, out, gradients, self.threads
        )
        return self.join(out)

    def on(self, v, at):
        """J v for each row of v (n, S)."""
        batch, record = at
        out = self.split(np.empty_like(v))
        y = np.empty_like(record.y)
        self.level.engine.run_jvp(
            batch, self.level.packed, record, None, self.split(v), y, out, self.threads
        )
        return self.join(out)

    def gamma(self):
        """(T, B)"""
        start = np.random.default_rng(0).standard_normal((self.count, sum(self.widths)))
        values = np.zeros(self.count)
        active = np.flatnonzero(self.study.active.reshape(-1))

        def gram(u, which):
            at = self.steps(active[which])
            return self.on(self.back(u, at), at)

        values[active] = largest_singular_values(gram, start[active])[0]
        return values.reshape(self.T, self.B)

    def flow(self, E):
        """(T+1, B)"""
        T, B, lengths = self.T, self.B, self.study.lengths
        norms = np.full((T + 1, B), np.nan)
        O, S = E.shape[-2:]
        exponent = np.zeros(B, np.int64)  # the product is 2^exponent times the array, so that it fits at any length
        order = np.argsort(-lengths, kind="stable")
        product = np.empty((0, O, S))
        u = np.random.default_rng(0).standard_normal((B, O))[order]
        for k in reversed(range(T + 1)):
            n = len(product)
            if k < T and n:
                rows = np.repeat(k * B + order[:n], O)
                product = self.back(product.reshape(n * O, S), self.steps(rows)).reshape(n, O, S)
                _, e = np.frexp(np.abs(product).max((1, 2)))
                product = np.ldexp(product, -e[:, None, None])
                exponent[order[:n]] += e
            joining = order[n : np.searchsorted(-lengths[order], -k, side="right")]
            product = np.concatenate([product, E[k, joining]]) if len(joining) else product
            n = len(product)

            def gram(u, which, product=product):
                chosen = product if len(which) == len(product) else product[which]
                v = np.matmul(u[:, None], chosen)
                return np.matmul(chosen, v.swapaxes(1, 2))[..., 0]

            values, u[:n] = largest_singular_values(gram, u[:n])
            norms[k, order[:n]] = np.ldexp(values, exponent[order[:n]])
        return norms

    def grad_norm(self, E):
        """(T, B)"""
        dy = self.study.dy
        norms, ds = np.zeros(dy.shape[:2]), np.zeros((self.B, sum(self.widths)))
        for t in reversed(range(self.T)):
            ds = ds + np.matmul(dy[t][:, None], E[t + 1])[:, 0]
            norms[t] = reference.norm(ds[:, : dy.shape[-1]])
            ds = self.back(ds, self.steps(t * self.B + np.arange(self.B)))
        return norms

    def lag_parts(self, keep):
        """The norms (max_lag+1,), and the matrices if they are to be kept."""
        study, layer = self.study, self.study.layer
        name = "weight_hh_l0" if "weight_hh_l0" in layer.params else "weight_ih_l0"
        shape = layer.params[name].shape
        norms, parts = np.zeros(study.max_lag + 1), np.zeros((study.max_lag + 1, *shape)) if keep else None
        gradient = np.empty(shape)
        wanted = (Weights(None, gradient) if name == "weight_hh_l0" else Weights(gradient),)
        ds = np.matmul(study.dy[:, :, None], reference.output_jacobians(study)[1:])[:, :, 0].reshape(self.count, -1)
        largest = np.abs(ds).max(initial=0)
        for lag in range(study.max_lag + 1):
            # What dy_{k+l} sends l steps back is the gradient of s_k, in the rows of the first T - l steps.
            ds = self.back(ds, self.steps(len(ds)), wanted)
            norms[lag] = reference.norm(gradient.ravel())
            if keep:
                parts[lag] = gradient
            ds = ds[self.B :]
            if np.abs(ds).max(initial=0) <= np.finfo(ds.dtype).eps ** 2 * largest:
                break
        return norms, parts


def largest_singular_values(gram, u, tolerance=1e-9, most=300):
    """The largest singular value of each of n operators A, and where its left singular vector was found, from start
    vectors u (n, S); gram(u, which) gives A A^T u for those operators.

    A locally optimal conjugate gradient iteration with one vector (Knyazev, "Toward the optimal preconditioned
    eigensolver", SIAM J. Sci. Comput. 23, 2001): each step takes the best vector of the span of u, of the residual and
    of the last change.
    """
    n = len(u)
    values, vectors = np.zeros(n), u.copy()
    which = np.arange(n)
    basis = normalised(u)[:, None]  # (n, 1 to 3, S), orthonormal
    images = gram(basis[:, 0], which)[:, None]
    value = inner(basis[:, 0], images[:, 0])
    settled = np.zeros(n, np.int64)
    for _ in range(most):
        residual = images[:, 0] - value[:, None] * basis[:, 0]
        for _ in range(2):
            residual = residual - np.matmul(np.matmul(basis, residual[..., None]).swapaxes(1, 2), basis)[:, 0]
        residual = normalised(residual)
        basis = np.concatenate([basis, residual[:, None]], 1)
        images = np.concatenate([images, gram(residual, which)[:, None]], 1)
        small = np.matmul(basis, images.swapaxes(1, 2))
        small = (small + small.swapaxes(1, 2)) / 2
        eigenvalues, mix = np.linalg.eigh(small)
        best = eigenvalues[:, -1]
        settled = np.where(best - value <= tolerance * best, settled + 1, 0)
        value = np.maximum(best, 0)
        # The new vector, and the change: what it has beside the old one.
        weights = mix[:, :, -1]
        change = weights.copy()
        change[:, 0] = 0
        change -= inner(change, weights)[:, None] * weights
        change = normalised(change)
        both = np.stack([weights, change], 1)
        basis, images = np.matmul(both, basis), np.matmul(both, images)
        done = settled >= 2
        if done.any():
            values[which[done]], vectors[which[done]] = np.sqrt(value[done]), basis[done, 0]
            left = ~done
            which, basis, images, value, settled = which[left], basis[left], images[left], value[left], settled[left]
            if not len(which):
                break
    values[which], vectors[which] = np.sqrt(value), basis[:, 0]
    return values, vectors


def inner(a, b):
    return np.einsum("ij,ij->i", a, b)


def normalised(a):
    """Rows of length 1, or zero."""
    length = np.sqrt(inner(a, a))
    return a / np.where(length > 0, length, 1)[:, None]
