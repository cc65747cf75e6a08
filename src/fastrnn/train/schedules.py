"""Learning rates as functions of the number of the step, from 0, for the ``lr`` of an optimiser. Any function of that
number will do; these can be compared and saved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import checks

_set = object.__setattr__  # in a frozen dataclass: what was given, as a plain number


@dataclass(frozen=True)
class ConstantRate:
    """``lr`` at every step. Raises TypeError or ValueError unless it is a finite number of at least 0."""

    lr: float

    def __post_init__(self) -> None:
        _set(self, "lr", checks.at_least_zero(self.lr, "lr"))

    def __call__(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""
        return self.lr


@dataclass(frozen=True)
class StepDecay:
    """``lr * factor**(step // every)``: times ``factor`` after every ``every`` steps. Raises TypeError or ValueError
    unless ``lr`` and ``factor`` are finite numbers of at least 0 and ``every`` is an integer of at least 1."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _set(self, "lr", checks.at_least_zero(self.lr, "lr"))
        _set(self, "every", checks.positive_integer(self.every, "every"))
        _set(self, "factor", checks.at_least_zero(self.factor, "factor"))

    def __call__(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""
        try:
            return self.lr * self.factor ** (step // self.every)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine (Loshchilov & Hutter, "SGDR", 2017, without restarts) after a linear warm-up (Goyal et al.,
    "Accurate, large minibatch SGD", 2017)::

        lr * (step + 1) / warmup                                                        while step < warmup
        floor + (lr - floor) * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2   until step = steps, then floor

    Raises TypeError or ValueError unless ``lr`` and ``floor`` are finite numbers of at least 0 and ``steps`` and
    ``warmup`` are integers, 0 <= warmup < steps.
    """

    lr: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _set(self, "lr", checks.at_least_zero(self.lr, "lr"))
        _set(self, "floor", checks.at_least_zero(self.floor, "floor"))
        _set(self, "warmup", checks.integer_at_least(self.warmup, "warmup", 0))
        _set(self, "steps", checks.integer_at_least(self.steps, "steps", self.warmup + 1))

    def __call__(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.floor + (self.lr - self.floor) * (1 + math.cos(math.pi * progress)) / 2
