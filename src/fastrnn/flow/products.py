"""The flow of gradients through time, by products with the Jacobians J_t = d s_t / d s_{t-1} of a layer's steps.

All steps of all sequences are one batch of sequences of one step, whose products J^T u (``back``) and J v (``on``) are
kernels. With E_t = d y_t / d s_t:

- gamma_t, the largest singular value of J_t, by an iteration on J J^T, for all steps at once, or for small states from
  J J^T itself;
- flow[k] = || E_end J_end ... J_{k+1} ||_2: the rows of the product go back step by step, and the iteration for its
  largest singular value goes on from that of the step after;
- the part of the gradient that arrives through exactly l steps: dy of all steps at once, taken back l times.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import ArrayLike

from .. import _core, cells, checks, config
from ..layers import Layer, State
from ..reference import flow as reference
from ..tape import Record
from ..weights import Weights
from . import study as studies
from .result import GradientFlow

BLOCK_ROWS = 128  # steps whose largest singular values are looked for together, so that the vectors fit a cache
FIRST_COMPRESSION = 16  # steps back from the end, and then whenever they are half as many again
WITNESSES = 4
DENSE = 64  # rows up to which A A^T is formed whole: all its eigenvalues cost no more than an iteration
# Where another singular value is near, a start with little of the sought vector looks settled for a while: so half of
# it is random, and a step may gain but little, which makes that rare.
NOISE, TOLERANCE, MANY_ITERATIONS, MOST_ITERATIONS = 1, 1e-9, 48, 1000
#: Singular values below the first part of the largest are left out of a product; what becomes of them may grow to the
#: second, which changes the largest by half its square, 5e-8.
DROPPED, DISTRUSTED = 1e-5, 3e-4

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
    study = studies.prepare(LAYERS, layer, x, dy, state, lengths, max_lag, level, direction)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        steps, E = OneSteps(study), reference.output_jacobians(study)
        own = steps if layer.dtype == np.float64 else OneSteps(studies.in_dtype(study, layer.dtype))
        norms, parts = own.lag_parts(E, keep)
        return studies.flow_of(
            study,
            **(carousel(study, E) if study.layer._states == ("c",) else steps.norms(E)),
            grad_norm=steps.grad_norm(E),
            lag_gradient=norms,
            lag_matrices=parts,
            **reference.elman_bound(study),
        )


gradient_flow.__doc__ = reference.gradient_flow.__doc__


def flow_at_end(study, E):
    """(B,), the norms of E, which has one element in a row at most."""
    return np.abs(E[study.lengths, np.arange(len(study.lengths))]).max((1, 2), initial=0)


def carousel(study, E):
    """Where J_t = I: gamma is 1, and the flow at every lag what it is at the end."""
    T, B = study.active.shape
    reached = np.arange(T + 1)[:, None] <= study.lengths
    return {
        "gamma": study.masked(np.ones((T, B))),
        "flow": np.where(reached, flow_at_end(study, E), np.nan),
    }


class OneSteps:
    """Every step of every sequence as a sequence of one step, which begins with the state that the step began with."""

    def __init__(self, study: studies.Level) -> None:
        self.study, self.level = study, study.tape._levels[0]
        self.T, self.B = study.x.shape[:2]
        self.count = self.T * self.B
        self.widths = [s.shape[-1] for s in study.states]
        self.before = [s[:-1].reshape(1, self.count, s.shape[-1]) for s in study.states]
        self.y = np.empty((1, self.count, study.dy.shape[-1]), study.x.dtype)  # where outputs go that nobody asks for
        self.threads = config.get_num_threads()

    def steps(self, rows):
        """The batch and the record of so many of the first steps, or of those whose numbers t*B + b are given."""
        level, whole = self.level, isinstance(rows, int)
        batch = _core.Batch(1, rows) if whole else _core.Batch.gathered(rows, self.count)
        arrays = (self.study.x, level.y, level.kept)  # not level.x, which holds nothing past a sequence's length
        arrays = [None if a is None else a.reshape(1, self.count, a.shape[-1]) for a in arrays]
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
        """J v for each row of v (n, S), at steps that were given by their numbers."""
        batch, record = at
        out = self.split(np.empty_like(v))
        self.level.engine.run_jvp(batch, self.level.packed, record, None, self.split(v), self.y, out, self.threads)
        return self.join(out)

    def norms(self, E):
        return {"gamma": self.study.masked(self.gamma()), "flow": self.flow(E)}

    def gamma(self):
        """(T, B)"""
        values = np.zeros(self.count)
        rows, late = np.flatnonzero(self.study.active), []
        blocks = np.array_split(rows, -(-len(rows) // BLOCK_ROWS)) if len(rows) else []
        if sum(self.widths) <= DENSE:
            for block in blocks:
                at = self.steps(block)
                units = np.eye(sum(self.widths))
                columns = [self.on(self.back(np.tile(unit, (len(block), 1)), at), at) for unit in units]
                values[block] = np.sqrt(np.maximum(np.linalg.eigvalsh(np.stack(columns, 2))[:, -1], 0))
            return values.reshape(self.T, self.B)
        u = np.random.default_rng(0).standard_normal((self.B, sum(self.widths)))
        vectors = np.empty((self.count, sum(self.widths)))

        def search(rows, start, most):
            def gram(u, which):
                at = self.steps(rows[which])
                return self.on(self.back(u, at), at)

            values[rows], vectors[rows], found = largest_singular_values(gram, start, most)
            return rows[~found]

        # Some steps at a time, whose vectors fit a cache and begin as those of the steps before. The few that take long
        # are left for the end.
        for block in blocks:
            late.append(search(block, u[block % self.B], MANY_ITERATIONS))
            u[block % self.B] = vectors[block]  # of each sequence its last step's stays
        late = np.concatenate(late) if late else rows
        search(late, vectors[late], MOST_ITERATIONS)
        return values.reshape(self.T, self.B)

    def flow(self, E):
        """(T+1, B)"""
        T, B, lengths = self.T, self.B, self.study.lengths
        norms = np.full((T + 1, B), np.nan)
        order = np.argsort(-lengths, kind="stable")
        product = Product(E.shape[-2:], E.dtype)
        safe = None  # where the product was last whole
        compress_at, k = FIRST_COMPRESSION, T
        while k >= 0:
            n = len(product.rows)
            if k < T and n:
                at = self.steps(np.repeat(k * B + order[:n], product.height))
                product.apply(lambda rows, at=at: self.back(rows, at))
            product.join(E[k, order[n : np.searchsorted(-lengths[order], -k, side="right")]])
            norms[k, order[: len(product.rows)]] = product.norms()
            if safe and not product.trustworthy():
                k, product = safe
                safe, compress_at = None, T + 1
            elif T - k == compress_at:
                safe, compress_at = (k, product.copy()), 3 * compress_at // 2
                product.compress()
            k -= 1
        norms[lengths, np.arange(B)] = flow_at_end(self.study, E)  # without rounding
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

    def lag_parts(self, E, keep):
        """The norms (max_lag+1,), and the matrices if they are to be kept. Once what goes back is less than it was at
        first by the rounding error to the power of 3/2 (4e-11; in float64 3e-24), the rest is taken for zero."""
        study, layer = self.study, self.study.layer
        name = "weight_hh_l0" if "weight_hh_l0" in layer.params else "weight_ih_l0"
        gradient = np.empty_like(layer.params[name])
        norms, parts = np.zeros(study.max_lag + 1), None
        if keep:
            parts = np.zeros((study.max_lag + 1, *gradient.shape))
        wanted = (Weights(None, gradient) if name == "weight_hh_l0" else Weights(gradient),)
        ds = np.matmul(study.dy[:, :, None], E[1:])[:, :, 0].reshape(self.count, E.shape[-1]).astype(layer.dtype)
        largest = np.abs(ds).max(initial=0)
        for lag in range(study.max_lag + 1):
            # What dy_{k+l} sends l steps back is the gradient of s_k, in the rows of the first T - l steps.
            ds = self.back(ds, self.steps(len(ds)), wanted)[self.B :]
            norms[lag] = reference.norm(gradient.ravel())
            if keep:
                parts[lag] = gradient
            if np.abs(ds).max(initial=0) <= np.finfo(ds.dtype).eps ** 1.5 * largest:
                break
        return norms, parts


class Product:
    """For each of n sequences a product of Jacobians E J J ... (O, S), as far as its largest singular value needs it.

    Each array times 2^exponent is the product. As its singular values come to lie far apart it is compressed: rotated
    so that its rows are its singular directions, and those far below the largest left out, which changes the largest by
    the square of their ratio. But what is small may grow later while the rest shrinks. So a few random sums of the rows
    left out are taken along as witnesses; their length tells how large those have become.
    """

    def __init__(self, shape, dtype):
        self.rows = np.empty((0, *shape), dtype)  # (n, height, S), with the witnesses last
        self.exponent = np.zeros(0, np.int64)
        self.vectors = np.empty((0, shape[0]), dtype)  # the left singular vectors that were found last
        self.witnesses = 0
        self.values = np.zeros(0)
        self.rng = np.random.default_rng(0)

    @property
    def height(self):
        return self.rows.shape[1]

    @property
    def kept(self):
        return self.rows[:, : self.height - self.witnesses]

    def copy(self):
        other = copy.copy(self)
        other.vectors = self.vectors.copy()
        return other

    def apply(self, back):
        """Multiply by one more Jacobian, whose transpose ``back`` applies to rows (n height, S)."""
        rows = back(self.rows.reshape(-1, self.rows.shape[-1])).reshape(self.rows.shape)
        largest = np.maximum(rows.max((1, 2), initial=0), -rows.min((1, 2), initial=0))
        _, e = np.frexp(largest)
        rows *= np.ldexp(np.ones(1, rows.dtype), -e)[:, None, None]
        self.rows, self.exponent = rows, self.exponent + e

    def join(self, products):
        """Sequences that end here."""
        n, O, S = products.shape
        if n == 0:
            return
        if len(self.rows):
            height = max(O, self.kept.shape[1])
            rows = np.zeros((len(self.rows) + n, height + self.witnesses, S))
            rows[: len(self.rows), : self.kept.shape[1]] = self.kept
            rows[: len(self.rows), height:] = self.rows[:, self.kept.shape[1] :]
            rows[len(self.rows) :, :O] = products
            self.vectors = np.pad(self.vectors, ((0, 0), (0, height - self.vectors.shape[1])))
            self.rows = rows
        else:
            self.rows = products.copy()
        random = self.rng.standard_normal((n, self.vectors.shape[1])).astype(products.dtype)
        self.vectors = np.concatenate([self.vectors, random])
        self.exponent = np.concatenate([self.exponent, np.zeros(n, np.int64)])

    def norms(self):
        """The largest singular value of each."""
        kept = self.kept

        def gram(u, which):
            rows = kept if len(which) == len(kept) else kept[which]
            return np.matmul(rows, np.matmul(u[:, None], rows).swapaxes(1, 2))[..., 0]

        if kept.shape[1] <= DENSE:
            squares, vectors = np.linalg.eigh(np.matmul(kept, kept.swapaxes(1, 2)))
            self.values, self.vectors = np.sqrt(np.maximum(squares[:, -1], 0)), vectors[:, :, -1]
        else:
            self.values, self.vectors, _ = largest_singular_values(gram, self.vectors, MOST_ITERATIONS)
        return np.ldexp(self.values, self.exponent)

    def compress(self):
        if not len(self.rows):
            return
        kept = self.kept.astype(np.float64)
        squares, vectors = np.linalg.eigh(np.matmul(kept, kept.swapaxes(1, 2)))
        height = int((squares > DROPPED**2 * squares[:, -1:]).sum(1).max(initial=1))
        if height > 0.9 * self.kept.shape[1]:
            return
        rotation = vectors.swapaxes(1, 2).astype(self.rows.dtype)
        rotated = np.matmul(rotation, self.kept)
        left_out, kept = np.split(rotated, [len(rotated[0]) - height], axis=1)
        signs = self.rng.choice([-1.0, 1.0], (len(rotated), WITNESSES, left_out.shape[1])).astype(kept.dtype)
        witnesses = np.matmul(signs, left_out)
        if self.witnesses:
            witnesses += self.rows[:, -WITNESSES:]
        self.vectors = np.matmul(rotation, self.vectors[..., None])[:, -height:, 0]
        self.rows, self.witnesses = np.concatenate([kept, witnesses], 1), WITNESSES

    def trustworthy(self):
        """Whether what was left out is still small beside the rest."""
        lengths = np.linalg.norm(self.rows[:, self.height - self.witnesses :], axis=-1).max(1, initial=0)
        return bool((lengths <= DISTRUSTED * self.values).all())


def largest_singular_values(gram, u, most):
    """The largest singular value of each of n operators A, its left singular vector, and whether they were found within
    so many steps; from start vectors u (n, S). gram(u, which) gives A A^T u for those operators.

    A locally optimal conjugate gradient iteration with one vector (Knyazev, "Toward the optimal preconditioned
    eigensolver", SIAM J. Sci. Comput. 23, 2001): each step takes the best vector of the span of u, of the residual and
    of the last change.
    """
    values, vectors = np.zeros(len(u)), np.zeros_like(u)
    which = np.arange(len(u))
    # Half of it of all directions, should the vector that is sought have nothing of the start.
    noise = normalised(np.random.default_rng(len(u)).standard_normal(u.shape))
    basis = normalised(normalised(u) + NOISE * noise)[:, None]  # (n, 1 to 3, S), orthonormal
    images = gram(basis[:, 0], which)[:, None]
    value = inner(basis[:, 0], images[:, 0])
    settled = np.zeros(len(u), np.int64)
    for _ in range(most):
        direction = normalised(images[:, 0] - value[:, None] * basis[:, 0], 1e-14 * value)
        for _ in range(2):  # to first order, and then to rounding
            inside = np.matmul(basis, direction[..., None]).swapaxes(1, 2)
            direction = normalised(direction - np.matmul(inside, basis)[:, 0], 1e-8)
        basis = np.concatenate([basis, direction[:, None]], 1)
        images = np.concatenate([images, gram(direction, which)[:, None]], 1)
        small = np.matmul(basis, images.swapaxes(1, 2))
        eigenvalues, mix = np.linalg.eigh(small)  # which reads one triangle
        best, weights = eigenvalues[:, -1], mix[:, :, -1]
        settled = np.where(best - value <= TOLERANCE * best, settled + 1, 0)
        value = np.maximum(best, 0)
        # The new vector, and the change: what it has beside the old one.
        change = weights.copy()
        change[:, 0] = 0
        change = normalised(change - inner(change, weights)[:, None] * weights)
        both = np.stack([weights, change], 1)
        basis, images = np.matmul(both, basis), np.matmul(both, images)
        done = settled >= 2
        if done.any():
            values[which[done]], vectors[which[done]] = np.sqrt(value[done]), basis[done, 0]
            left = ~done
            which, basis, images, value, settled = (array[left] for array in (which, basis, images, value, settled))
            if not len(which):
                break
    values[which], vectors[which] = np.sqrt(value), basis[:, 0]
    found = np.ones(len(u), bool)
    found[which] = False
    return values, vectors, found


def inner(a, b):
    return np.einsum("ij,ij->i", a, b)


def normalised(a, least=0):
    """Rows of length 1, or zero if they are not longer than ``least``."""
    length = np.sqrt(inner(a, a))
    return a * np.where(length > least, 1 / np.where(length > 0, length, 1), 0)[:, None]
