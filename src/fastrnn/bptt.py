"""Back-propagation through time over a sequence that is read chunk by chunk: exact, with one chunk's tape in memory at
a time, or truncated (Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
trajectories", Neural Computation 2, 1990)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import checks
from .gradients import Gradients
from .layers import Layer

Loss = Callable[[np.ndarray, int], tuple[ArrayLike, ArrayLike]]


class BPTT(NamedTuple):
    """What ``bptt`` returns."""

    loss: float  #: J, summed over the whole sequence
    grads: Gradients  #: of J, or its truncated estimate: ``x``, ``state`` and ``params``
    state: Any  #: the state after each sequence's last step


def bptt(
    layer: Layer,
    x: ArrayLike,
    loss: Loss,
    *,
    state: Any = None,
    lengths: ArrayLike | None = None,
    chunk: int | None = None,
    truncate: int | None = None,
) -> BPTT:
    """Run a layer over ``x`` and return the gradients of J, the loss summed over all steps.

    - ``chunk=None``: the whole sequence at once, the same bits as ``layer.forward`` and ``layer.backward``.
    - ``chunk=k1``: the exact gradient too, ``k1`` steps at a time. A first run keeps the states where chunks meet; then
      the chunks are run again with a tape, from the last one to the first, and the gradient of the state is handed from
      each to the one before. In memory there is one chunk's tape; the price is a second forward run.
    - ``chunk=k1, truncate=k2``: truncated back-propagation, TBPTT(k1, k2). After every ``k1`` steps, the loss of those
      steps is propagated back through the last ``k2`` steps and no further: through the chunk and the ``k2 - k1`` steps
      before it. With ``k2 = k1`` each chunk takes its initial state as a constant; with ``k2 >= T + k1`` the gradient
      is the exact one. Memory and time are those of ``k2`` steps for each chunk.

    The parameters stay as they are throughout, so the gradients are all at one point.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or CEC, of ``fastrnn`` or ``fastrnn.reference``; any layer if ``chunk`` is None
    x : array ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, or ``(T, I)``; only if ``chunk`` is None also a ragged
        batch ``(sum(lengths), I)``
    loss : called as ``loss(y, t0)``, once for each chunk, with the outputs of the steps from ``t0`` on in the layout
        of x, ``(k1, B, O)`` and fewer steps in the last chunk. It returns the loss of these steps and ``dy``, the
        gradient of its sum with respect to y, of y's shape (None: zero). The loss is a number, or an array which is
        summed; if it is per step, of the shape of ``y[..., 0]``, steps past a sequence's length are not counted. The
        chunks come in the order of time if ``truncate`` is given, else from the last one to the first
    state : the initial state, as for a call of the layer; None for zeros
    lengths : ``(B,)`` integers in 0..T, in any order; None if all are T
    chunk : k1, at least 1; None for the whole sequence
    truncate : k2, at least k1; None for no truncation

    Returns
    -------
    BPTT
        ``loss``; ``grads``, whose ``x`` has x's shape and is zero past a sequence's length; and ``state``, the one
        after each sequence's last step, from which a next call can go on. With truncation ``grads.state`` holds what
        reaches the initial state within ``k2`` steps.

    Raises
    ------
    ValueError, TypeError
        naming the argument that is wrong, what was expected and what came. A layer cannot be run in chunks if it is
        bidirectional or a TDNN, for its outputs depend on later steps, nor can a ragged batch; and if ``truncate`` is
        more than ``chunk``, a stack cannot have dropout, for chunks overlap and a step's mask must stay one.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: expected a layer of fastrnn, got {type(layer).__name__}")
    if not callable(loss):
        raise TypeError(f"loss: expected a function of y and t0, got {type(loss).__name__}")
    x, batch = checks.sequences(x, lengths, layer.input_size, layer.batch_first, layer.dtype)
    chunk, truncate = _check_chunks(layer, batch, chunk, truncate)
    if chunk is None:
        y, end, tape = layer.forward(x, state, lengths=batch.lengths)
        total, dy = _evaluate(loss, y, 0, batch.lengths, layer.batch_first)
        return BPTT(total, layer.backward(tape, dy), end)
    run = _Run(layer, x, batch, loss)
    state = layer._pack_state(layer._initial(state, batch.B, x.ndim))
    cuts = [(t, min(t + chunk, batch.T)) for t in range(0, max(batch.T, 1), chunk)]
    return run.exact(state, cuts) if truncate is None else run.truncated(state, cuts, truncate - chunk)


def _check_chunks(layer, batch, chunk, truncate):
    if chunk is None:
        if truncate is not None:
            raise ValueError(f"truncate: expected None without chunk, got {truncate!r}")
        return None, None
    chunk = checks.positive_integer(chunk, "chunk")
    if truncate is not None:
        truncate = checks.integer_at_least(truncate, "truncate", chunk)
    if layer.bidirectional or not layer._states:
        kind = "bidirectional layer" if layer.bidirectional else "TDNN"
        raise ValueError(f"chunk: expected None for a {kind}, whose outputs depend on later steps, got {chunk}")
    if batch.ragged:
        raise ValueError(f"chunk: expected None for a ragged batch, got {chunk}; pad it to run it in chunks")
    if truncate is not None and truncate > chunk and _has_masks(layer):
        raise ValueError(f"truncate: expected {chunk}, the same as chunk, for a stack with dropout, got {truncate}")
    return chunk, truncate


def _has_masks(layer):
    return layer.dropout > 0 and layer.num_layers > 1


def _evaluate(loss, y, t0, lengths, batch_first):
    """The sum of a chunk's losses, and dy."""
    given = loss(y, t0)
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(f"loss: expected it to return a pair (loss, dy), got {type(given).__name__}")
    losses, dy = checks.real_array(given[0], "loss", np.dtype(np.float64)), given[1]
    if lengths is not None and y.ndim == 3 and losses.shape == y.shape[:-1]:
        losses = losses[checks.real_steps(lengths, y.shape[1 if batch_first else 0], batch_first)]
    return float(losses.sum()), dy


class _Run:
    """One call's layer and data, and the sums of its gradients."""

    def __init__(self, layer, x, batch, loss):
        self.layer, self.x, self.batch, self.loss = layer, x, batch, loss
        self.axis = int(batch.batch_first)  # of time
        self.params = {name: np.zeros_like(value) for name, value in layer.params.items()}
        self.dx = np.zeros_like(x)

    def exact(self, state, cuts):
        """Forward over all chunks but the last, then each chunk again with its tape, the last one first."""
        starts, generators = [state], []
        masks = _has_masks(self.layer)
        call = self.layer.forward if masks else self.layer
        for first, last in cuts[:-1]:
            generators.append(copy.deepcopy(self.layer._dropout_rng) if masks else None)  # draws the same once more
            starts.append(call(self.part(self.x, first, last), starts[-1], lengths=self.lengths(first, last))[1])
        generators.append(None)
        losses, dstate, end = [], None, None
        for (first, last), start, rng in reversed(list(zip(cuts, starts, generators, strict=True))):
            loss, state, dstate = self.window(first, first, last, start, dstate, rng)
            end = state if end is None else end
            losses.append(loss)
        return self.result(reversed(losses), dstate, end)

    def truncated(self, state, cuts, before):
        """Each chunk with the steps `before` it, as many as there are, from the state where they begin."""
        losses, begin = [], 0
        dstate = tuple(np.zeros_like(part) for part in self.layer._initial(state, self.batch.B, 3))
        for first, last in cuts:
            loss, end, reached = self.window(begin, first, last, state)
            losses.append(loss)
            if begin == 0:
                for total, part in zip(dstate, self.layer._initial(reached, self.batch.B, 3), strict=True):
                    total += part
            following = max(0, last - before)
            if following == last:
                state = end
            elif following > begin:
                x = self.part(self.x, begin, following)
                state = self.layer(x, state, lengths=self.lengths(begin, following))[1]
            begin = following
        return self.result(losses, self.layer._pack_state(dstate), end)

    def window(self, begin, first, last, state, dstate=None, rng=None):
        """Forward from `begin`, the loss of the chunk `first` to `last`, and back to `begin`. Adds to the gradients and
        returns the loss, the state after the last step and the gradient of the state before the first."""
        lengths = self.lengths(begin, last)
        y, end, tape = self.layer.forward(self.part(self.x, begin, last), state, lengths=lengths, rng=rng)
        y_chunk = self.part(y, first - begin, last - begin)
        loss, dy = _evaluate(self.loss, y_chunk, first, self.lengths(first, last), self.axis)
        if dy is not None and begin < first:
            chunk_dy, dy = dy, np.zeros_like(y)
            part = self.part(dy, first - begin, last - begin)
            part[...] = checks.shaped_array(chunk_dy, "dy", part.shape, y.dtype)
        grads = self.layer.backward(tape, dy, dstate)
        for name, gradient in grads.params.items():
            self.params[name] += gradient
        self.part(self.dx, begin, last)[...] += grads.x
        return loss, end, grads.state

    def result(self, losses, dstate, end):
        return BPTT(sum(losses), Gradients(self.dx, dstate, self.params), end)

    # Parts of the sequence.

    def part(self, array, first, last):
        return array[:, first:last] if self.axis else array[first:last]

    def lengths(self, first, last):
        lengths = self.batch.lengths
        return None if lengths is None else np.clip(lengths - first, 0, last - first)
