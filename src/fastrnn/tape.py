"""What ``forward`` records for ``backward``: everything, or states at intervals from which the rest is computed again
(checkpointing: Chen, Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost", 2016)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from . import _core, checks, config
from .memory import memory_available


class Record(NamedTuple):
    """What one layer of the stack read and wrote, as its engine takes it: whole, or in a window of the batch."""

    x: np.ndarray
    y: np.ndarray
    kept: np.ndarray | None  #: what the cell keeps of every step
    states: tuple[np.ndarray, ...]  #: before the first step
    in_window: bool = False  #: whether y and kept are those of the window's steps, (steps, B, .) in reading order


class Level:
    """One layer of the stack: its input, its packed weights, and its record or checkpoints."""

    __slots__ = (
        "checkpoints",
        "engine",
        "kept",
        "kept_width",
        "mask",
        "packed",
        "packed_back",
        "states",
        "width",
        "x",
        "y",
    )

    def __init__(self, engine, packed, x, mask, states, width, kept_width):
        self.engine, self.packed, self.x, self.mask, self.states = engine, packed, x, mask, states
        self.width, self.kept_width = width, kept_width  # of y, and of what is kept
        self.packed_back = self.y = self.kept = None
        self.checkpoints = None  # or [(begin, states), ...]

    def record(self, batch, threads):
        """The whole of it."""
        if self.checkpoints is None:
            return Record(self.x, self.y, self.kept, self.states)
        y, kept = (self.rows(self.x.shape[:-1], width, batch.padded) for width in (self.width, self.kept_width))
        self._run(batch, y, kept, self.states, threads)
        return Record(self.x, y, kept, self.states)

    def windows(self, batch, threads, back):
        """The record piece by piece, from the first step on or from the last one back: (batch, record) pairs. A record
        is the caller's until the next one is asked for."""
        if self.checkpoints is None:
            yield batch, self.record(batch, threads)
            return
        begins = [begin for begin, _ in self.checkpoints]
        parts = list(zip(self.checkpoints, [*begins[1:], batch.T], strict=True))
        longest = max(end - begin for (begin, _), end in parts)
        y, kept = (self.rows((longest, batch.B), width, False) for width in (self.width, self.kept_width))
        for (begin, states), end in reversed(parts) if back else parts:
            window = batch.window(begin, end)
            own = y[: end - begin], None if kept is None else kept[: end - begin]
            self._run(window, *own, states, threads, in_window=True)
            yield window, Record(self.x, *own, states, True)

    def rows(self, shape, width, padded, use=None):
        """An array for a row of ``width`` at every step, zero where none will be written; None without any width."""
        rows = self.engine.empty((*shape, width), self.x.dtype, use) if width else None
        if padded and width:
            rows.fill(0)
        return rows

    def _run(self, batch, y, kept, states, threads, in_window=False):
        end = _core.uninitialised(states)
        self.engine.run_forward(batch, self.packed, self.x, y, states, end, threads, kept, in_window=in_window)


class Tape:
    """What ``forward`` recorded for ``backward``. It may be used any number of times.

    It is complete in itself: what becomes of x, y and the parameters after ``forward`` does not change the gradients.
    """

    __slots__ = ("_batch", "_layer", "_levels", "_ndim", "_shape", "_states", "_threads")

    def __init__(self, layer, batch, ndim, shape, states, threads):
        self._layer, self._batch, self._ndim, self._states, self._threads = layer, batch, ndim, states, threads
        self._shape = shape  # of y
        self._levels = []

    @property
    def h(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's output h_t, in the layout of y: one array, or a tuple with one for each layer of a stack. With
        checkpoints it is computed anew, as ``c`` and ``gates`` are."""
        return self._read_only([record.y.view() for record in self._records()])

    @property
    def c(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's c_t (LSTM, CEC), in the layout of y with ``D*H`` last."""
        if self._layer._states == ("c",) and not self._levels[0].engine.kept:
            return self.h  # the output itself
        gates = len(self._layer._gates)
        return self._columns("c", "c" in self._layer._states, gates, gates + 1)

    @property
    def gates(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's gates (LSTM, GRU), after their nonlinearities, in the layout of y with ``D*G*H`` last: for each
        direction block by block, in the order of the rows of ``weight_ih``."""
        return self._columns("gates", self._layer._gates, 0, len(self._layer._gates))

    def __copy__(self):  # nothing of it changes
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("a tape cannot be pickled: it belongs to the layer whose forward made it")

    def _records(self):
        return [level.record(self._batch, self._threads) for level in self._levels]

    def _columns(self, name, present, first, last):
        """Columns of what was kept: a view where they lie side by side."""
        if not present:
            raise AttributeError(f"tape.{name}: a layer of class {type(self._layer).__name__} has none")
        D, H = self._layer.num_directions, self._layer.hidden_size
        views = []
        for record, level in zip(self._records(), self._levels, strict=True):
            rows, step = record.kept.shape[:-1], H + level.engine.kept_padding
            kept = record.kept[..., : D * level.engine.kept * step].reshape(*rows, D, level.engine.kept, step)
            columns = kept[..., first:last, :H]
            views.append(columns.reshape(*rows, D * (last - first) * H))
        return self._read_only(views)

    def _read_only(self, views):
        for view in views:
            view.flags.writeable = False
        return views[0] if len(views) == 1 else tuple(views)


def window_begins(engine, batch, every):
    """Where windows of about ``every`` steps begin, in ascending order. They are made of whole chunks of backward's
    sums, so that the sums have the same bits; so a window has at least a chunk."""
    begins, end = [], batch.T
    while end > 0:
        begin = engine.chunk_begin(batch, end)
        while begin > 0 and end - (following := engine.chunk_begin(batch, begin)) <= every:
            begin = following
        begins.append(begin)
        end = begin
    return begins[::-1] or [0]


def checkpoint_interval(layer, batch, every, budget=None):
    """What ``forward(checkpoint_every=, memory_budget=)`` asks for, as a number of steps or None."""
    if budget is not None:
        budget = checks.positive_integer(budget, "memory_budget")
    if isinstance(every, str):
        if every != "auto":
            raise ValueError(f'checkpoint_every: expected a number of steps, "auto" or None, got {every!r}')
        record = sum(layer._kept_width(engine) + layer._output_width for engine in layer._engines)
        step = batch.B * layer.dtype.itemsize * record
        state = batch.B * layer.dtype.itemsize * layer.num_directions * layer.num_layers
        state *= sum(layer._state_widths[part] for part in layer._states)
        fits = batch.T * step <= (memory_available() // 2 if budget is None else budget)
        every = None if fits else _least_memory(batch.T, state, step)
    elif every is not None:
        every = checks.positive_integer(every, "checkpoint_every")
    return every if layer._states else None


def _least_memory(T, state, step):
    """The k at which T/k states and the record of k steps take least: sqrt(T state / step)."""
    return max(1, min(T, math.isqrt(max(1, T * state // max(1, step)))))


def training_bytes(layer, T, B, every):
    """Bytes that a training step of B sequences of T steps takes at most, with checkpoints ``every`` so many steps or
    None."""
    batch, threads = _core.Batch(T, B), config.get_num_threads()
    D, L = layer.num_directions, layer.num_layers
    rows = T * B
    state = D * B * sum(layer._state_widths[part] for part in layer._states)
    reals, extra = rows * layer._output_width + sum(value.size for value in layer.params.values()), 0
    for k, engine in enumerate(layer._engines):
        record, dropped = layer._kept_width(engine) + layer._output_width, k > 0 and layer.dropout > 0
        begins = [0] if every is None else window_begins(engine, batch, every)
        steps = max(end - begin for begin, end in zip(begins, [*begins[1:], T], strict=True))
        packed, workspaces = engine.sizes(batch if every is None else batch.window(0, steps), threads)
        extra += sum(packed) + sum(workspaces)
        # Its input, the masks of it and its gradient; an engine's memory is its own, though used at another time.
        reals += rows * layer._input_size_of(k) * (2 + dropped)
        # At the begins; after the last step or a window, and the gradients.
        reals += state * (len(begins) + 3)
        if every is not None:
            reals += steps * B * record
        else:  # the output is the input of the next layer, if nothing of it is dropped
            reals += rows * (record - (layer._output_width if k < L - 1 and layer.dropout == 0 else 0))
    return extra + reals * layer.dtype.itemsize
