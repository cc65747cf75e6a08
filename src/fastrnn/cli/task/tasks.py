"""The tasks: what is drawn or read, which cells with which settings, and what counts as success."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastrnn

from ...layers import Layer
from ...train import CosineDecay, Linear
from ...train.optimizers import Rate
from .. import language
from ..common import CELLS, Cell
from ..text import Text, load_text
from . import sequences
from .training import HELD_OUT, SequenceTrainer

SUCCESS = 0.01  # of adding and sum: a mean squared error far below the variance of 1/6
COPY_SUCCESS = 0.1  # of copy: this part of the cross entropy without a memory
LEAST_TEXT = 100  # characters, some of which are held out
FLOW_SEQUENCES, FLOW_CHARACTERS = 32, 150
BITS = 1 / math.log(2)


class Recipe(NamedTuple):
    """A cell and how to train it."""

    cell: Cell
    lr: float
    chrono: bool = False
    """Whether the initial biases of its gates are to suit the task's lag (``fastrnn.initial``)."""
    input_bias: float | None = None
    """The initial bias of the input gate, for an LSTM."""

    def layer(self, inputs: int, hidden: int, lag: int | None, seed: int) -> Layer:
        """The layer with its initial values, for a task of such a lag, or of none in particular."""
        options = {"init": {"chrono": max(2, lag)}} if self.chrono and lag is not None else {}
        layer = self.cell.make(fastrnn, inputs, hidden, seed=seed, **options)
        if self.input_bias is not None:
            layer.params["bias_ih_l0"][:hidden] = self.input_bias
            layer.params["bias_hh_l0"][:hidden] = 0
        return layer


RECIPES = {
    "rnn": Recipe(CELLS["rnn"]._replace(title="Elman, tanh"), lr=1e-3),
    "irnn": Recipe(Cell("RNN", "IRNN", gates=1, options={"nonlinearity": "relu", "init": "identity"}), lr=1e-3),
    # Its state is a sum over all steps, on which a larger rate would swing.
    "cec": Recipe(CELLS["cec"]._replace(title="CEC, linear", options={"nonlinearity": "identity"}), lr=5e-4),
    # What can forget nothing must be slow to take things in, or its state drifts away: the remedy of 1997.
    "lstm-original": Recipe(CELLS["lstm-original"], lr=1e-2, input_bias=-4.0),
    "lstm": Recipe(CELLS["lstm"], lr=1e-2, chrono=True),
    "gru": Recipe(CELLS["gru"], lr=1e-2, chrono=True),
}


class Sizes(NamedTuple):
    """How large the model is and how long it trains."""

    length: int
    """T of adding and sum; the lag of copy; the chunk of chars."""
    hidden: int
    batch: int
    steps: int


class Problem(NamedTuple):
    """A task in the sizes that are asked for."""

    about: str
    levels: dict[str, float]
    """What is known about the loss before any training, by name."""
    success: float | None
    """What the loss must stay below."""
    make: Callable[[Recipe], SequenceTrainer | TextTrainer]
    probe: NDArray[np.float32]
    """Sequences (T, B, I), on which the flow of gradients is measured."""
    text: Text | None = None


class TextTrainer(language.Trainer):
    """A language model that counts in bits."""

    def __init__(self, layer: Layer, text: Text, sizes: Sizes, seed: int, lr: Rate) -> None:
        super().__init__(layer, text, sizes.batch, sizes.length, seed, lr)
        self.held_out = text.held_out

    def step(self) -> float:
        return super().step() * BITS

    def evaluate(self) -> float:
        return super().evaluate(self.held_out) * BITS


def _adding(sizes: Sizes, seed: int) -> Problem:
    levels = {"always the mean": sequences.variance(), "best linear memory": sequences.best_linear(sizes.length)}
    about = f"the sum of the two marked values among {sizes.length}"
    return _problem(sequences.adding, sizes, seed, about, levels, SUCCESS)


def _summing(sizes: Sizes, seed: int) -> Problem:
    levels = {"always the mean": sequences.variance()}
    about = f"the scaled sum of all {sizes.length} values, marked or not"
    return _problem(sequences.summing, sizes, seed, about, levels, SUCCESS)


def _copying(sizes: Sizes, seed: int) -> Problem:
    no_memory = sequences.no_memory(sizes.length)
    levels = {"no memory": no_memory, "which symbols, not their order": sequences.counts_alone(sizes.length)}
    about = f"{sequences.COPIED} symbols, to be repeated after a lag of {sizes.length} steps"
    return _problem(sequences.copying, sizes, seed, about, levels, COPY_SUCCESS * no_memory)


def _problem(
    draw: Callable[..., sequences.Batch], sizes: Sizes, seed: int, about: str, levels: dict[str, float], success: float
) -> Problem:
    """All cells get the same sequences and the same seeds."""
    layer_seed, head_seed, training_seed, held_out_seed = map(int, np.random.SeedSequence(seed).generate_state(4))
    held_out = draw(np.random.default_rng(held_out_seed), sizes.length, HELD_OUT)
    steps, _, inputs = held_out.x.shape
    outputs = 1 if len(held_out.targets) == 1 else inputs

    def make(recipe: Recipe) -> SequenceTrainer:
        return SequenceTrainer(
            recipe.layer(inputs, sizes.hidden, steps, layer_seed),
            Linear(sizes.hidden, outputs, seed=head_seed),
            lambda rng: draw(rng, sizes.length, sizes.batch),
            held_out,
            CosineDecay(recipe.lr, sizes.steps),
            training_seed,
        )

    return Problem(about, levels, success, make, held_out.x[:, :FLOW_SEQUENCES])


def _chars(sizes: Sizes, seed: int, path: Path | None) -> Problem:
    text = load_text(path, at_least=max(LEAST_TEXT, 2 * sizes.batch * sizes.length))
    symbols = len(text.alphabet)

    def make(recipe: Recipe) -> TextTrainer:
        layer = recipe.layer(symbols, sizes.hidden, None, seed)
        lr = CosineDecay(language.LEARNING_RATE, sizes.steps)
        return TextTrainer(layer, text, sizes, seed, lr)

    levels = {"uniform guess": math.log2(symbols), "current character alone": language.no_memory(text) * BITS}
    about = f"the next character of {path.name if path else 'Genesis and Exodus'}, out of {symbols}"
    steps = min(FLOW_CHARACTERS, text.held_out.size)
    streams = min(FLOW_SEQUENCES, text.held_out.size // steps)
    codes = text.held_out[: steps * streams].reshape(streams, steps).T
    return Problem(about, levels, None, make, np.eye(symbols, dtype=np.float32)[codes], text)


class Task(NamedTuple):
    """A task as it is offered."""

    help: str
    measure: str
    """What the loss is."""
    column: str
    """The same at the head of a column."""
    length: str
    """What ``Sizes.length`` is."""
    least_length: int
    sizes: Sizes
    cells: tuple[str, ...]
    """Those that are trained unless others are asked for."""
    prepare: Callable[..., Problem]
    """Of sizes and seed; with ``--text``, also of the path of a text or None."""
    reads_text: bool = False


TASKS = {
    "adding": Task(
        "add the two marked values of a long sequence",
        "mean squared error",
        "MSE",
        "steps of a sequence",
        2,
        Sizes(length=150, hidden=32, batch=32, steps=5000),
        ("rnn", "irnn", "cec", "lstm-original", "lstm", "gru"),
        _adding,
    ),
    "sum": Task(
        "add all values of a long sequence",
        "mean squared error",
        "MSE",
        "steps of a sequence",
        2,
        Sizes(length=150, hidden=32, batch=32, steps=3000),
        ("rnn", "irnn", "cec", "lstm", "gru"),
        _summing,
    ),
    "copy": Task(
        "repeat ten symbols after a long lag",
        "cross entropy, nats per step",
        "nats/step",
        "steps of lag",
        1,
        Sizes(length=30, hidden=128, batch=32, steps=5000),
        ("rnn", "irnn", "cec", "lstm", "gru"),
        _copying,
    ),
    "chars": Task(
        "predict the next character of a text",
        "bits per character",
        "bits/char",
        "steps that a gradient goes back at most",
        1,
        Sizes(length=64, hidden=256, batch=32, steps=2000),
        ("rnn", "lstm", "gru"),
        _chars,
        reads_text=True,
    ),
}
