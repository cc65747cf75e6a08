"""Directions, lengths and layouts for the reference cells: one layer over one batch, in terms of a cell's ``forward``
and ``backward`` on time-major arrays."""

from __future__ import annotations

import numpy as np


class Engine:
    """The NumPy counterpart of a layer's kernels; a subclass gives one direction's equations."""

    def pack(self, weights, threads, backward=False):
        """A copy of the weights, which later changes of the originals do not reach."""
        return tuple(tuple(None if w is None else w.copy() for w in direction) for direction in weights)

    def run_forward(self, batch, weights, x, y, h0, hT, threads, x_copy=None, y_copy=None):
        """Fill y and hT (D, B, H) from x and h0, and the copies of x and y."""
        steps = Steps(batch)
        H = hT.shape[-1]
        outputs = np.zeros((batch.T, batch.B, y.shape[-1]), y.dtype)
        for d, direction in enumerate(weights):
            h = self.forward(with_biases(direction), steps.read(x, d), h0[d], steps.active)
            hT[d] = h[-1]
            steps.add(np.where(steps.active, h[1:], 0), outputs[..., d * H : (d + 1) * H], d)
        steps.write(outputs, y)
        for copy, array in ((x_copy, x), (y_copy, y)):
            if copy is not None:
                copy[...] = array

    def run_backward(self, batch, weights, x, y, h0, dy, dhT, dx, dh0, gradients, threads):
        """Fill dx, dh0 and the gradients."""
        steps = Steps(batch)
        H = h0.shape[-1]
        outputs, input_gradient = steps.unpack(y), np.zeros((batch.T, batch.B, x.shape[-1]), x.dtype)
        output_gradient = np.zeros_like(outputs) if dy is None else steps.unpack(dy)
        for d, direction in enumerate(weights):
            columns = slice(d * H, (d + 1) * H)
            h = np.concatenate([h0[d : d + 1], steps.turn(outputs[..., columns], d)])
            step_dx, dh0[d], sums = self.backward(
                with_biases(direction),
                steps.read(x, d),
                h,
                steps.turn(output_gradient[..., columns], d),
                np.zeros_like(h0[d]) if dhT is None else dhT[d],
                steps.active,
            )
            steps.add(step_dx, input_gradient, d)
            for gradient, value in zip(gradients[d], sums, strict=True):
                if gradient is not None:
                    gradient[...] = value
        steps.write(input_gradient, dx)


def with_biases(weights):
    """(W, R, b_ih, b_hh) with zeros for the biases that are not there."""
    W, R, b_ih, b_hh = weights
    zero = np.zeros(len(W), W.dtype)
    return W, R, zero if b_ih is None else b_ih, zero if b_hh is None else b_hh


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

    def add(self, values, out, d):
        out += self.turn(values, d)
