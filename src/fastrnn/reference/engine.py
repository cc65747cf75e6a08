"""Directions, lengths and layouts for the reference cells: one layer over one batch, in terms of a cell's ``forward``
and ``backward`` on time-major arrays."""

from __future__ import annotations

import numpy as np


class Engine:
    """The NumPy counterpart of a layer's kernels; a subclass gives one direction's equations.

    forward(weights, x, states, active) -> y (T, B, O), every state at every step, (T + 1, B, .) with the initial one
        first, and what is kept of every step, a list of arrays (T, B, H)
    backward(weights, x, y, states, kept, dy, dstates, active) -> dx, dstates, gradients (a Weights)

    ``active`` (T, B, 1) tells the steps that belong to a sequence; at the others states stay as they are.
    """

    kept = 0  #: how many arrays forward keeps
    c = None  #: which of them is the state c, if the cell has one
    has_h = True  #: whether the output y_t is also a state, h_t

    empty = staticmethod(np.empty)

    def pack(self, weights, threads, backward=False):
        """A copy of the weights, which later changes of the originals do not reach."""
        return tuple(direction._make(None if w is None else w.copy() for w in direction) for direction in weights)

    def run_forward(self, batch, weights, x, y, states, new_states, threads, kept=None, x_copy=None, y_copy=None):
        """Fill y, the new states and what is kept from x and the states, and the copies of x and y."""
        steps = Steps(batch)
        D = len(weights)
        outputs = np.zeros((batch.T, batch.B, y.shape[-1]), y.dtype)
        records = None if kept is None else steps.unpack(kept)
        for d, direction in enumerate(weights):
            out, every, record = self.forward(
                with_biases(direction), steps.read(x, d), tuple(s[d] for s in states), steps.active
            )
            for new, values in zip(new_states, every, strict=True):
                new[d] = values[-1]
            part(outputs, d, D)[...] = steps.turn(np.where(steps.active, out, 0), d)
            if records is not None:
                part(records, d, D)[...] = steps.turn(np.where(steps.active, np.concatenate(record, -1), 0), d)
        steps.write(outputs, y)
        if records is not None:
            steps.write(records, kept)
        for copy, array in ((x_copy, x), (y_copy, y)):
            if copy is not None:
                copy[...] = array

    def run_backward(self, batch, weights, x, y, kept, states, dy, dstates, dx, initial, gradients, threads):
        """Fill dx, the gradients of the initial states and of the weights."""
        steps = Steps(batch)
        D = len(weights)
        outputs, input_gradient = steps.unpack(y), np.zeros((batch.T, batch.B, x.shape[-1]), x.dtype)
        output_gradient = np.zeros_like(outputs) if dy is None else steps.unpack(dy)
        records = None if kept is None else steps.unpack(kept)
        for d, direction in enumerate(weights):
            out = steps.turn(part(outputs, d, D), d)
            record = [] if kept is None else np.split(steps.turn(part(records, d, D), d), self.kept, axis=-1)
            every = [np.concatenate([states[0][d : d + 1], out])] if self.has_h else []
            if self.c is not None:
                every.append(np.concatenate([states[-1][d : d + 1], record[self.c]]))
            end = tuple(np.zeros_like(s[d]) if dstates is None else dstates[i][d] for i, s in enumerate(states))
            step_dx, start, sums = self.backward(
                with_biases(direction),
                steps.read(x, d),
                out,
                every,
                record,
                steps.turn(part(output_gradient, d, D), d),
                end,
                steps.active,
            )
            input_gradient += steps.turn(step_dx, d)
            for array, value in zip(initial, start, strict=True):
                array[d] = value
            for gradient, value in zip(gradients[d], sums, strict=True):
                if gradient is not None:
                    gradient[...] = value
        steps.write(input_gradient, dx)


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
    """Where the rows of a batch stand in time-major arrays (T, B, .)."""

    def __init__(self, batch):
        T, B = batch.T, batch.B
        self.batch = batch
        self.lengths = np.full(B, T) if batch.lengths is None else batch.lengths
        time = np.arange(T)[:, None]
        self.active = (time < self.lengths)[..., None]
        # The step that the second direction reads at each time: its own sequence's from the last one back.
        self.backwards = np.where(time < self.lengths, self.lengths - 1 - time, time)[..., None]

    def unpack(self, array):
        """An array in the layout of the batch, as (T, B, .) with zeros where no sequence is."""
        T, B = self.batch.T, self.batch.B
        active = self.active[..., 0]
        if self.batch.ragged:
            out = np.zeros((T, B, array.shape[-1]), array.dtype)
            out.swapaxes(0, 1)[active.T] = array
            return out
        if self.batch.batch_first:
            array = array.swapaxes(0, 1)
        return np.where(self.active, array.reshape(T, B, array.shape[-1]), 0)

    def write(self, values, out):
        """The opposite: values (T, B, .) into an array in the layout of the batch."""
        if self.batch.ragged:
            out[...] = values.swapaxes(0, 1)[self.active[..., 0].T]
        elif self.batch.batch_first:
            out[...] = values.swapaxes(0, 1)
        else:
            out[...] = values.reshape(out.shape)

    def turn(self, values, d):
        """(T, B, .) in the order in which direction d reads it, which is its own inverse."""
        return np.take_along_axis(values, self.backwards, 0) if d else values

    def read(self, array, d):
        return self.turn(self.unpack(array), d)
