"""Training on a task until it is solved, and how far back a gradient gets."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import fastrnn

from ...train import Adam, Linear, mean_squared_error, softmax_cross_entropy
from ...train.optimizers import Rate
from ..language import named
from .sequences import Batch

MAX_GRAD_NORM = 1.0
HELD_OUT = 2000  # sequences: the 1/6 of a network without memory is then uncertain by 0.004
AT_ONCE = 500  # held-out sequences, to save memory
FIRMLY = 3  # checks in a row that must find success


class Trainer(Protocol):
    """What ``fit`` trains."""

    def step(self) -> float:
        """Train on the next batch and return its mean loss."""

    def evaluate(self) -> float:
        """The mean loss on what is held out."""


class SequenceTrainer:
    """A layer with a linear head, its optimiser, and the sequences of a task, drawn as they are needed.

    ``draw(rng)`` gives a batch of them. The loss, averaged over the steps and sequences that have targets, is the mean
    squared error if these are values, and the cross entropy if they are classes.
    """

    def __init__(
        self,
        layer: Any,
        head: Linear,
        draw: Callable[[np.random.Generator], Batch],
        held_out: Batch,
        lr: Rate,
        seed: int,
    ) -> None:
        self.layer, self.head, self.draw, self.held_out = layer, head, draw, held_out
        self.optimizer = Adam(named(layer.params, head.params), lr)
        self.rng = np.random.default_rng(seed)

    def step(self) -> float:
        x, targets = self.draw(self.rng)
        h, _, tape = self.layer.forward(x)
        last = slice(-len(targets), None)
        y, head_tape = self.head.forward(h[last])
        loss, dy = _loss(y, targets)
        dy /= loss.size
        head_grads = self.head.backward(head_tape, dy)
        dh = np.zeros_like(h)
        dh[last] = head_grads.x
        grads = named(self.layer.backward(tape, dh).params, head_grads.params)
        fastrnn.clip_grad_norm(grads, MAX_GRAD_NORM)
        self.optimizer.step(grads)
        return float(loss.mean())

    def evaluate(self) -> float:
        x, targets = self.held_out
        losses = []
        for start in range(0, x.shape[1], AT_ONCE):
            part = slice(start, start + AT_ONCE)
            h, _ = self.layer(x[:, part])
            losses.append(_loss(self.head(h[-len(targets) :]), targets[:, part])[0])
        return float(np.concatenate(losses, axis=1).mean())


def _loss(y: NDArray, targets: NDArray) -> tuple[NDArray, NDArray]:
    return (softmax_cross_entropy if targets.dtype.kind == "i" else mean_squared_error)(y, targets)


@dataclass
class Run:
    """How a training went. The lists have an entry for each check, the first before any step."""

    steps: list[int] = field(default_factory=list)
    training: list[float | None] = field(default_factory=list)
    """The mean loss of the steps since the check before."""
    held_out: list[float] = field(default_factory=list)
    success: float | None = None
    """What the loss on what is held out must stay below; None if there is no such mark."""
    end: str = "budget spent"
    """Why it ended, if not by success: "budget spent", "not finite" or "interrupted"."""
    last_step: int = 0
    seconds: float = 0.0

    @property
    def solved_at(self) -> int | None:
        """The step from which on the checks found success, at least ``FIRMLY`` of them; or None."""
        if self.success is None:
            return None
        successes = list(itertools.takewhile(lambda loss: loss < self.success, reversed(self.held_out)))
        return self.steps[-len(successes)] if len(successes) >= FIRMLY else None

    @property
    def status(self) -> str:
        """In a word or two: "solved", "not solved", "done" if there is no mark, or why it ended early."""
        if self.end != "budget spent":
            return self.end
        return "done" if self.success is None else "not solved" if self.solved_at is None else "solved"


def fit(trainer: Trainer, steps: int, every: int, success: float | None, report: Callable[[Run], None]) -> Run:
    """Train for ``steps`` steps, or until success is firmly there; Ctrl-C and a loss that is not finite end it early.

    Every ``every`` steps, and after the last one, the loss on what is held out is taken. ``report`` is called
    after every step.
    """
    run = Run(success=success)
    start = time.perf_counter()
    since_check: list[float] = []
    try:
        # An overflow shows in the loss.
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(steps + 1):
                if step > 0:
                    since_check.append(trainer.step())
                    run.last_step = step
                finite = all(map(math.isfinite, since_check[-1:]))
                if finite and (step % every == 0 or step == steps):
                    loss = trainer.evaluate()
                    finite = math.isfinite(loss)
                    if finite:
                        run.steps.append(step)
                        run.training.append(float(np.mean(since_check)) if since_check else None)
                        run.held_out.append(loss)
                        since_check.clear()
                if not finite:
                    run.end = "not finite"
                    break
                if step > 0:
                    report(run)
                if run.solved_at is not None:
                    break
    except KeyboardInterrupt:
        run.end = "interrupted"
    run.seconds = time.perf_counter() - start
    return run


def flow(layer: Any, x: NDArray) -> list[float]:
    """How much of a gradient arrives 0 to T steps before the end: ``fastrnn.gradient_flow``'s flow, the median over the
    sequences x (T, B, I). Empty if the states do not stay finite."""
    nothing = np.zeros((*x.shape[:2], layer.hidden_size), layer.dtype)
    try:
        norms = fastrnn.gradient_flow(layer, x, nothing, max_lag=0).flow
    except ValueError:
        return []
    return [float(value) for value in np.median(norms, axis=1)[::-1]]
