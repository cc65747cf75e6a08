"""What ``fastrnn bench`` measures: shapes, the points of the grid, and the data of one point."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

import fastrnn

from .. import roofline
from .common import CELLS, SHIPPED_TEXT

PASSES = ("forward", "forward+backward", "step")
"""Inference, nothing recorded; training, with the gradients of the input and of every weight; one step of a stream."""


class Shape(NamedTuple):
    """The sizes of one benchmark, written TxBxIxH."""

    steps: int
    batch: int
    inputs: int
    hidden: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


DEFAULT_SHAPES = (
    Shape(100, 1, 32, 64),
    Shape(100, 1, 256, 256),
    Shape(100, 32, 256, 256),
    Shape(100, 64, 512, 512),
)
GRID_CELLS = ("rnn", "gru", "lstm")
GRID_SHAPES = (
    *(Shape(100, 1, hidden // 2, hidden) for hidden in (64, 128, 256, 512, 1024)),
    Shape(100, 4, 128, 256),
    Shape(100, 16, 64, 64),
    Shape(100, 32, 128, 128),
    Shape(100, 32, 256, 256),
    Shape(100, 64, 512, 512),
    Shape(50, 64, 1024, 1024),
    Shape(1000, 8, 64, 128),
    Shape(25, 128, 128, 256),
    Shape(1000, 1, 40, 100),
    Shape(20, 256, 32, 32),
    Shape(2000, 2, 300, 300),
    Shape(77, 5, 33, 65),
    Shape(61, 13, 100, 130),
)
STEP_SIZES = (64, 128, 256, 512, 1024)
SENTENCES = 64
DENORMAL = 1e-39  # of float32, whose smallest normal number is 1.2e-38


@dataclass(frozen=True)
class Point:
    """One thing to measure: a cell, its sizes, a pass, and what is special."""

    cell: str
    shape: Shape
    pass_name: str
    variant: str = ""
    """What sets it apart from others of the same shape, in words."""
    layers: int = 1
    directions: int = 1
    lengths: tuple[int, ...] | None = None
    scale: float = 1.0
    """Of the inputs and of the gradients of the outputs; if it is not 1, there are no biases."""

    @property
    def backward(self) -> bool:
        return self.pass_name == "forward+backward"

    @property
    def step(self) -> bool:
        return self.pass_name == "step"

    def work(self, dtype: DTypeLike) -> roofline.Work:
        """What it cannot avoid doing."""
        kind = CELLS[self.cell]
        return roofline.Work.layer(
            *self.shape,
            gates=kind.gates,
            recurrent=kind.recurrent,
            taps=kind.taps,
            dtype=dtype,
            backward=self.backward,
            layers=self.layers,
            directions=self.directions,
            rows=sum(self.lengths) if self.lengths else None,
        )

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.cell} {self.shape}", self.pass_name, self.variant)))


def points(cells: Iterable[str], shapes: Iterable[Shape]) -> list[Point]:
    """Every cell on every shape, forward and with backward."""
    return [Point(cell, shape, name) for cell, shape, name in itertools.product(cells, shapes, PASSES[:2])]


def special_points(cells: Iterable[str]) -> Iterator[Point]:
    """Those of the cells of the grid that are more than a shape."""
    lengths = sentence_lengths(SENTENCES)
    for cell in (cell for cell in cells if cell in GRID_CELLS):
        for name in PASSES[:2]:
            yield Point(cell, Shape(max(lengths), len(lengths), 128, 256), name, "sentences", lengths=lengths)
            yield Point(cell, Shape(100, 32, 128, 128), name, "denormals", scale=DENORMAL)
            if cell == "lstm":
                yield Point(cell, Shape(50, 32, 300, 300), name, "2 layers, 2 directions", layers=2, directions=2)
        for size in STEP_SIZES:
            yield Point(cell, Shape(1, 1, size, size), "step")


def sentence_lengths(count: int) -> tuple[int, ...]:
    """The lengths in words of the first sentences of the shipped text."""
    sentences = re.split(r"[.?!]", SHIPPED_TEXT.read_text(encoding="ascii"))
    return tuple(len(sentence.split()) for sentence in sentences[:count])


class Problem:
    """The data of a point, the same for whoever computes it."""

    def __init__(self, point: Point, dtype: DTypeLike, threads: int) -> None:
        self.point = point
        self.dtype = np.dtype(dtype)
        self.threads = threads
        T, B, I, H = point.shape
        rng = np.random.default_rng(0)
        layer = self.layer(fastrnn)
        self.params: dict[str, np.ndarray] = layer.state_dict()
        """PyTorch's names, shapes and gate order."""
        if point.scale != 1:
            for name in self.params:
                if name.startswith("bias"):
                    self.params[name][...] = 0
        self.lengths = None if point.lengths is None else np.array(point.lengths)
        self.mask = np.arange(T)[:, np.newaxis] < (np.full(B, T) if self.lengths is None else self.lengths)
        """(T, B): the steps that belong to a sequence."""
        self.x, self.dy = (
            (point.scale * self.mask[..., np.newaxis] * rng.standard_normal((T, B, width))).astype(self.dtype)
            for width in (I, point.directions * H)
        )
        self.state = layer(self.x)[1] if point.step else None
        """What the step before left: h, or (h, c)."""

    @property
    def states(self) -> tuple[np.ndarray, ...]:
        """``state`` as a tuple, empty if there is none."""
        return () if self.state is None else self.state if isinstance(self.state, tuple) else (self.state,)

    def layer(self, layers):
        """The layer from ``layers``: fastrnn or fastrnn.reference."""
        point = self.point
        return CELLS[point.cell].make(
            layers,
            point.shape.inputs,
            point.shape.hidden,
            num_layers=point.layers,
            bidirectional=point.directions == 2,
            dtype=self.dtype,
            seed=0,
        )

    def ragged(self, padded: np.ndarray) -> np.ndarray:
        """(T, B, .) as (sum(lengths), .): sequences one after another."""
        return padded.swapaxes(0, 1)[self.mask.T]

    def padded(self, ragged: np.ndarray) -> np.ndarray:
        """The opposite of ``ragged``, with zeros past the lengths."""
        padded = np.zeros((*self.mask.T.shape, ragged.shape[-1]), ragged.dtype)
        padded[self.mask.T] = ragged
        return padded.swapaxes(0, 1)
