"""Directions, lengths and layouts for the reference cells: one layer over one batch, in terms of a cell's ``forward``
and ``backward`` on time-major arrays."""

from __future__ import annotations

import numpy as np


class Engine:
    """The NumPy counterpart of a layer's kernels; a subclass gives one direction's equations.

    forward(weights, x, states, active) -> y (T, B, O), every state at every step, (T + 1, B, .) with the initial one
        first, and what is kept of every step, a list of arrays (T, B, H)
    backward(weights, x, y, states, kept, dy, dstates, active, clip) -> dx, dstates, gradients (a Weights)
    tangent(weights, x, y, states, kept, dx, dstates, active) -> dy, dstates: the same in the direction of time

    ``active`` (T, B, 1) tells the steps that belong to a sequence; at the others states stay as they are. ``clip`` is
    applied to what passes from a step to the state before it.
    """

    kept = 0  #: how many arrays forward keeps
    kept_padding = 0  #: reals between them in a record,
    row_padding = 0  #: and at the end of its rows
    c = None  #: which of them is the state c, if the cell has one
    has_h = True  #: whether the output y_t is also a state, h_t

    def empty(self, shape, dtype, use=None):
        """An uninitialised array."""
        return np.empty(shape, dtype)

    def pack(self, weights, threads, backward=False):
        """A copy of the weights, which later changes of the originals do not reach."""
        return tuple(direction._make(None if w is None else w.copy() for w in direction) for direction in weights)

    def sizes(self, batch, threads):
        """Bytes that kernels need besides."""
        return (0, 0), (0, 0)

    def chunk_begin(self, batch, end):
        """Where a window may begin that ends before step ``end``."""
        return end - 1

    def run_forward(
        self, batch, weights, x, y, states, new_states, threads, kept=None, x_copy=None, y_copy=None, in_window=False
    ):
        """Fill y, the new states and what is kept from x and the states, and the copies of x and y."""
        steps = Steps(batch)
        D = len(weights)
        outputs = steps.unpack(y, in_window)
        records = None if kept is None else steps.unpack(kept, in_window)
        for d, direction in enumerate(weights):
            out, every, record = self.forward(
                with_biases(direction), steps.read(x, d), tuple(s[d] for s in states), steps.active
            )
            for new, values in zip(new_states, every, strict=True):
                new[d] = values[-1]
            steps.put(part(outputs, d, D), np.where(steps.active, out, 0), d, in_window)
            if records is not None:
                steps.put(part(records, d, D), np.where(steps.active, np.concatenate(record, -1), 0), d, in_window)
        steps.write(outputs, y, in_window)
        if records is not None:
            steps.write(records, kept, in_window)
        for copy, array in ((x_copy, x), (y_copy, y)):
            if copy is not None:
                copy[...] = array

    def run_backward(
        self, batch, weights, record, dy, dstates, dx, initial, gradients, threads, add=False, clip_step=0.0
    ):
        """Fill dx, the gradients of the initial states and of the weights; dx is added to if there are two directions,
        the gradients if ``add``."""
        steps = Steps(batch)
        D = len(weights)
        clip = (lambda dh: np.clip(dh, -clip_step, clip_step)) if clip_step else (lambda dh: dh)
        input_gradient = steps.unpack(dx)
        output_gradient = None if dy is None else steps.unpack(dy)
        for d, (direction, at) in enumerate(zip(weights, self._recorded(steps, record, D), strict=True)):
            end = self._states(dstates, record.states, d)
            out_gradient = np.zeros_like(at[1]) if dy is None else steps.get(part(output_gradient, d, D), d)
            step_dx, start, sums = self.backward(with_biases(direction), *at, out_gradient, end, steps.active, clip)
            before = steps.get(input_gradient, d) if D == 2 else 0
            steps.put(input_gradient, step_dx + before, d)
            for array, value in zip(initial, start, strict=True):
                array[d] = value
            for gradient, value in zip(gradients[d], sums, strict=True):
                if gradient is not None:
                    gradient[...] = gradient + value if add else value
        steps.write(input_gradient, dx)

    def run_jvp(self, batch, weights, record, dx, dstates, dy, new_dstates, threads):
        """Fill the tangents of y and of the new states."""
        steps = Steps(batch)
        D = len(weights)
        outputs = steps.unpack(dy)
        for d, (direction, at) in enumerate(zip(weights, self._recorded(steps, record, D), strict=True)):
            inputs = np.zeros_like(at[0]) if dx is None else steps.read(dx, d)
            out, end = self.tangent(
                with_biases(direction), *at, inputs, self._states(dstates, record.states, d), steps.active
            )
            steps.put(part(outputs, d, D), np.where(steps.active, out, 0), d)
            for array, value in zip(new_dstates, end, strict=True):
                array[d] = value
        steps.write(outputs, dy)

    def _recorded(self, steps, record, D):
        """For each direction x, y, every state, and what was kept, in reading order."""
        outputs = steps.unpack(record.y, record.in_window)
        kept = None if record.kept is None else steps.unpack(record.kept, record.in_window)
        # The state of a sequence without a step multiplies nothing, not even by zero: it may be infinite.
        begins = steps.active[:1].any(0)
        for d in range(D):
            y = steps.get(part(outputs, d, D), d, record.in_window)
            arrays = []
            if kept is not None:
                arrays = np.split(steps.get(part(kept, d, D), d, record.in_window), self.kept, axis=-1)
            initial = [np.where(begins, s[d], 0)[np.newaxis] for s in record.states]
            every = [np.concatenate([initial[0], y])] if self.has_h else []
            if self.c is not None:
                every.append(np.concatenate([initial[-1], arrays[self.c]]))
            yield steps.read(record.x, d), y, every, arrays

    def _states(self, values, like, d):
        """Those of direction d; None for zero."""
        values = [None] * len(like) if values is None else values
        return tuple(np.zeros_like(s[d]) if v is None else v[d] for v, s in zip(values, like, strict=True))


def with_biases(weights):
    """The weights with zeros for biases that are not there."""
    zero = np.zeros(len(weights.W), weights.W.dtype)
    return weights._replace(
        b_ih=zero if weights.b_ih is None else weights.b_ih, b_hh=zero if weights.b_hh is None else weights.b_hh
    )


def part(array, d, D):
    """The columns of direction d."""
    width = array.shape[-1] // D
    return array[..., d * width : (d + 1) * width]


def over_steps(delta, values):
    """sum over t and b of delta_t values_t^T"""
    return np.tensordot(delta, values, ([0, 1], [0, 1]))


class Steps:
    """Where the rows of a batch, or of a window on one, stand in time-major arrays (T, B, .)."""

    def __init__(self, batch):
        self.whole = batch.whole or batch
        T, B = self.whole.T, self.whole.B
        self.lengths = np.full(B, T) if self.whole.lengths is None else self.whole.lengths
        time = np.arange(T)[:, None]
        self.real = (time < self.lengths)[..., None]
        # The step that the second direction reads at each time: its own sequence's from the last one back.
        self.backwards = np.where(time < self.lengths, self.lengths - 1 - time, time)[..., None]
        self.window = slice(batch.begin, batch.begin + batch.T)
        self.active = self.real[self.window]

    def unpack(self, array, in_window=False):
        """An array in the layout of the whole batch, as (T, B, .) with zeros where no sequence is; one that is the
        window's own is as it should be."""
        if in_window:
            return array
        T, B = self.whole.T, self.whole.B
        real = self.real[..., 0]
        if self.whole.ragged:
            out = np.zeros((T, B, array.shape[-1]), array.dtype)
            out.swapaxes(0, 1)[real.T] = array
            return out
        if self.whole.batch_first:
            array = array.swapaxes(0, 1)
        return np.where(self.real, array.reshape(T, B, array.shape[-1]), 0)

    def write(self, values, out, in_window=False):
        """The opposite: values (T, B, .) into an array in the layout of the whole batch."""
        if in_window:
            return
        if self.whole.ragged:
            out[...] = values.swapaxes(0, 1)[self.real[..., 0].T]
        elif self.whole.batch_first:
            out[...] = values.swapaxes(0, 1)
        else:
            out[...] = values.reshape(out.shape)

    def turn(self, values, d):
        """(T, B, .) in the order in which direction d reads it, which is its own inverse."""
        return np.take_along_axis(values, self.backwards, 0) if d else values

    def get(self, values, d, in_window=False):
        """The window's steps, in reading order."""
        return values if in_window else self.turn(values, d)[self.window]

    def put(self, values, steps, d, in_window=False):
        """The opposite: set the window's steps."""
        if in_window:
            values[...] = steps
            return
        turned = self.turn(values, d)
        turned[self.window] = steps
        values[...] = self.turn(turned, d)

    def read(self, array, d):
        return self.get(self.unpack(array), d)
