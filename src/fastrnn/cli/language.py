"""Character language models: a text as codes, and the training that ``fastrnn demo`` and ``fastrnn task chars`` share.

The model reads a text character by character and predicts the next one (Elman 1990; Mikolov et al. 2010; Graves 2013)::

    x_t = one-hot code of character t
    h_t = a recurrent layer of x_t                          fastrnn.RNN, LSTM or GRU, or its reference
    p_t = softmax(W h_t + b)                                fastrnn.train.Linear
    J   = mean over t of -log p_t[character t + 1]          fastrnn.train.softmax_cross_entropy

It is trained by truncated back-propagation through time: the state is carried from chunk to chunk, the
gradient is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastrnn

from ..train import Adam, Linear, softmax_cross_entropy, text_batches
from ..train.optimizers import Rate
from .text import Text

LEARNING_RATE = 4e-3
MAX_GRAD_NORM = 1.0
TEMPERATURE = 0.6


class Trainer:
    """A model, its optimiser and its place in the text, which it reads as ``batch`` streams, ``steps`` at a time."""

    def __init__(self, layer: Any, text: Text, batch: int, steps: int, seed: int, lr: Rate = LEARNING_RATE) -> None:
        self.one_hot = np.eye(len(text.alphabet), dtype=np.float32)
        self.layer = layer
        self.head = Linear(layer.hidden_size, len(text.alphabet), seed=seed)
        self.optimizer = Adam(named(self.layer.params, self.head.params), lr)
        self.batches = _endless_batches(text.training, batch, steps)
        self.state = None
        self.characters = 0
        self.seconds: list[float] = []  # of each step,
        self.layer_seconds: list[float] = []  # and of these the layer's

    def step(self) -> float:
        """Train on the next chunk and return its mean loss in nats per character."""
        start = time.perf_counter()
        first, inputs, targets = next(self.batches)
        x = self.one_hot[inputs]

        layer_start = time.perf_counter()
        h, self.state, tape = self.layer.forward(x, None if first else self.state)
        layer_seconds = time.perf_counter() - layer_start

        logits, head_tape = self.head.forward(h)
        loss, dlogits = softmax_cross_entropy(logits, targets)
        dlogits /= targets.size
        head_grads = self.head.backward(head_tape, dlogits)

        layer_start = time.perf_counter()
        layer_grads = self.layer.backward(tape, head_grads.x)
        self.layer_seconds.append(layer_seconds + time.perf_counter() - layer_start)

        grads = named(layer_grads.params, head_grads.params)
        fastrnn.clip_grad_norm(grads, MAX_GRAD_NORM)
        self.optimizer.step(grads)
        self.characters += targets.size
        self.seconds.append(time.perf_counter() - start)
        return float(loss.mean())

    def evaluate(self, ids: NDArray[np.intp]) -> float:
        """Mean loss, in nats per character, on a text read as one sequence."""
        h, _ = self.layer(self.one_hot[ids[:-1], np.newaxis])
        loss, _ = softmax_cross_entropy(self.head(h)[:, 0], ids[1:])
        return float(loss.mean())

    def sample(self, code: int, length: int, seed: int) -> Iterator[int]:
        """Codes of ``length`` characters that the model writes after ``code``, one step at a time."""
        rng = np.random.default_rng(seed)
        layer = self.layer.frozen()
        state = None
        for _ in range(length):
            h, state = layer.step(self.one_hot[[code]], state)
            logits = self.head(h)[0] / TEMPERATURE
            code = int(np.argmax(logits + rng.gumbel(size=logits.size)))  # a draw from softmax(logits)
            yield code


def no_memory(text: Text) -> float:
    """The mean loss, in nats per character, on the held-out text of the frequencies with which one character follows
    another in the training text, each counted once more than it is: what a model can learn that sees the current
    character alone."""
    counts = np.ones((len(text.alphabet),) * 2)
    np.add.at(counts, (text.training[:-1], text.training[1:]), 1)
    following = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log(following[text.held_out[:-1], text.held_out[1:]]).mean())


def _endless_batches(ids: NDArray, batch: int, steps: int) -> Iterator[tuple[bool, NDArray, NDArray]]:
    """Chunks of one pass over the text after another: is it the first of its pass, inputs, targets."""
    while True:
        for place, (inputs, targets) in enumerate(text_batches(ids, batch, steps)):
            yield place == 0, inputs, targets


def named(layer: dict[str, NDArray], head: dict[str, NDArray]) -> dict[str, NDArray]:
    """The arrays of both parts of a model under one name each."""
    return {f"layer.{name}": value for name, value in layer.items()} | {
        f"head.{name}": value for name, value in head.items()
    }
