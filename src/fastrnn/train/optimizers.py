"""Optimisers: they update parameters in place, and their own state can be saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks

Rate = float | Callable[[int], float]  #: a learning rate, or one for each number of a step, from 0


class _Optimizer:
    """What optimisers share: the parameters, the learning rate ``lr`` (free to change), ``steps``, the number of steps
    taken, and the checks. Each moment in ``_moments`` has an array for every parameter."""

    _settings: ClassVar[tuple[str, ...]]

    def __init__(self, params: Mapping[str, NDArray], lr: Rate, moments: tuple[str, ...]) -> None:
        self.params = dict(checks.writeable_arrays(params, "params"))
        self.lr = lr if callable(lr) else checks.at_least_zero(lr, "lr")
        self.steps = 0
        self._moments = {
            moment: {name: np.zeros_like(value) for name, value in self.params.items()} for moment in moments
        }

    def step(self, grads: Mapping[str, ArrayLike]) -> None:
        """Update every parameter in place.

        ``grads`` holds real arrays with the keys and shapes of ``params``. A ValueError or TypeError about
        them leaves all parameters as they were.
        """
        checks.mapping(grads, "grads", "names to arrays")
        if grads.keys() != self.params.keys():
            raise ValueError(f"grads: expected the keys {sorted(map(str, self.params))}, got {sorted(map(str, grads))}")
        arrays = {
            name: checks.shaped_array(grads[name], f"grads[{name!r}]", value.shape, value.dtype)
            for name, value in self.params.items()
        }
        lr = checks.at_least_zero(self.lr(self.steps) if callable(self.lr) else self.lr, "lr")
        self.steps += 1
        self._update(arrays, lr)

    def _update(self, grads: Mapping[str, NDArray], lr: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters: ``class``, ``settings``, ``lr``, ``steps``, and ``moments``, copies of the
        arrays by name."""
        moments = {
            moment: {name: value.copy() for name, value in arrays.items()} for moment, arrays in self._moments.items()
        }
        return self._about() | {"moments": moments}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` of such an optimiser returned, ``lr`` included if it is a number.

        A schedule is not replaced: this optimiser's must be equal to the saved one's, or a function of the same name.
        ValueError or TypeError if anything differs, class, settings, schedule, names or shapes, and then nothing is
        changed.
        """
        self._apply(self._checked(state_dict))

    def _about(self):
        """The state but for the arrays, as JSON can hold it."""
        return {
            "class": type(self).__name__,
            "settings": {name: _plain(getattr(self, name)) for name in self._settings},
            "lr": _plain(self.lr) if callable(self.lr) else float(self.lr),
            "steps": self.steps,
        }

    def _checked(self, state_dict):
        own = self._about() | {"moments": self._moments}
        checks.mapping(state_dict, "state_dict", "names to values")
        if state_dict.keys() != own.keys():
            raise ValueError(f"state_dict: expected the keys {sorted(own)}, got {sorted(map(str, state_dict))}")
        for key in ("class", "settings"):
            if state_dict[key] != own[key]:
                raise ValueError(f"optimizer: expected {key} {state_dict[key]} as was saved, got {own[key]}")
        lr, numbers = state_dict["lr"], (int, float)
        if isinstance(lr, numbers) and isinstance(own["lr"], numbers):
            lr = checks.at_least_zero(lr, "state_dict['lr']")
        elif lr != own["lr"]:
            raise ValueError(f"optimizer: expected lr {lr} as was saved, got {own['lr']}")
        else:
            lr = self.lr
        moments = {moment: _matching(state_dict["moments"], moment, own["moments"]) for moment in own["moments"]}
        return lr, checks.integer_at_least(state_dict["steps"], "state_dict['steps']", 0), moments

    def _apply(self, checked):
        self.lr, self.steps, moments = checked
        for moment, arrays in moments.items():
            for name, value in arrays.items():
                self._moments[moment][name][...] = value


def _plain(value):
    """A setting or a learning rate as JSON can hold it, equal for equal ones."""
    if is_dataclass(value):
        fields = {n: field.item() if isinstance(field, np.generic) else field for n, field in asdict(value).items()}
        return {"schedule": type(value).__name__, **fields}
    if callable(value):
        return {"schedule": getattr(value, "__qualname__", type(value).__qualname__)}
    return list(value) if isinstance(value, tuple) else value


def _matching(given, moment, own):
    """The arrays of one moment, of the names and shapes of our own."""
    where = f"state_dict['moments'][{moment!r}]"
    arrays = given.get(moment, {}) if isinstance(given, Mapping) else None
    if not isinstance(arrays, Mapping) or arrays.keys() != own[moment].keys():
        came = sorted(map(str, arrays)) if isinstance(arrays, Mapping) else arrays
        raise ValueError(f"{where}: expected the keys {sorted(own[moment])}, got {came}")
    return {
        name: checks.shaped_array(arrays[name], f"{where}[{name!r}]", value.shape, value.dtype)
        for name, value in own[moment].items()
    }


class SGD(_Optimizer):
    """Stochastic gradient descent: ``v = momentum * v + g``, ``p = p - lr * v`` (momentum: Polyak 1964); with
    ``nesterov``, ``p = p - lr * (g + momentum * v)`` (Nesterov 1983, in the form of Sutskever et al. 2013).

    ``params`` maps names to floating-point arrays, for example ``layer.params``; they are updated in place. ``lr`` is
    a number or a function of the number of the step, from 0, such as ``CosineDecay``.
    """

    _settings = ("momentum", "nesterov")

    def __init__(
        self, params: Mapping[str, NDArray], lr: Rate, momentum: float = 0.0, *, nesterov: bool = False
    ) -> None:
        super().__init__(params, lr, ("velocity",))
        self.momentum = checks.probability(momentum, "momentum")
        self.nesterov = checks.flag(nesterov, "nesterov")

    def _update(self, grads: Mapping[str, NDArray], lr: float) -> None:
        for name, value in self.params.items():
            velocity = self._moments["velocity"][name]
            velocity *= self.momentum
            velocity += grads[name]
            value -= lr * (grads[name] + self.momentum * velocity if self.nesterov else velocity)


class Adam(_Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), with the L2 penalty ``g = g + weight_decay * p``.

    With ``n`` the number of the step, from 1::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * (m / (1 - beta1**n)) / (sqrt(v / (1 - beta2**n)) + eps)

    ``params`` maps names to floating-point arrays, for example ``layer.params``; they are updated in place. ``lr`` is
    a number or a function of the number of the step, from 0, such as ``CosineDecay``.
    """

    _settings = ("betas", "eps", "weight_decay")
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Mapping[str, NDArray],
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, ("mean", "square"))
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas: expected two numbers, got {betas!r}")
        self.betas = checks.probability(betas[0], "betas[0]"), checks.probability(betas[1], "betas[1]")
        self.eps = checks.at_least_zero(eps, "eps")
        self.weight_decay = checks.at_least_zero(weight_decay, "weight_decay")

    def _update(self, grads: Mapping[str, NDArray], lr: float) -> None:
        beta1, beta2 = self.betas
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for name, value in self.params.items():
            grad = grads[name]
            if self.weight_decay and self._decoupled:
                value -= lr * self.weight_decay * value
            elif self.weight_decay:
                grad = grad + self.weight_decay * value
            mean, square = self._moments["mean"][name], self._moments["square"][name]
            mean += (1 - beta1) * (grad - mean)
            square += (1 - beta2) * (grad * grad - square)
            value -= (lr / correction1) * mean / (np.sqrt(square / correction2) + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019,
    algorithm 2): in place of the L2 penalty, ``p = p - lr * weight_decay * p`` before Adam's step."""

    _decoupled = True

    def __init__(
        self,
        params: Mapping[str, NDArray],
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
