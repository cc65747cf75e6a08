"""Small training helpers in plain NumPy: a loss, optimisers, a linear head and text batches.

They are what a recurrent layer needs around it to be trained: ``text_batches`` cuts a text into chunks, a
layer turns them into outputs, ``Linear`` turns those into logits, ``softmax_cross_entropy`` gives the loss
and its gradient, and an optimiser updates every parameter in place. Letters: ``T`` steps, ``B`` sequences,
``V`` classes (the vocabulary), ``I`` inputs, ``O`` outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import checks

__all__ = ["SGD", "Adam", "Linear", "LinearGrads", "softmax_cross_entropy", "text_batches"]


def softmax_cross_entropy(logits: ArrayLike, targets: ArrayLike) -> tuple[NDArray, NDArray]:
    """Cross-entropy of a softmax, in nats, and its gradient.

    ``loss = log(sum_v exp(a_v)) - a_target``, and ``d loss / d a_v = softmax(a)_v - [v = target]`` (Bridle
    1990). The largest logit is subtracted first, so no ``exp`` overflows.

    Parameters
    ----------
    logits : real array, shape (..., V)
        float32 and float64 keep their type; other real types are taken as float64.
    targets : integer array, shape (...)
        The right class of each position, in 0..V-1.

    Returns
    -------
    loss_per_step : array, shape (...)
        The loss of every position; nothing is averaged.
    dlogits : array, shape (..., V)
        Gradient of ``loss_per_step.sum()``. Divide it by the number of positions to train on the mean.

    Raises
    ------
    TypeError
        ``logits`` are not real numbers or ``targets`` are not integers.
    ValueError
        The shapes do not fit, or a target lies outside 0..V-1.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    dtype = logits.dtype if logits.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    logits = checks.real_array(logits, "logits", dtype)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integers, got dtype {targets.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {logits.shape}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]} to match logits, got {targets.shape}")
    if targets.size and not 0 <= targets.min() <= targets.max() < logits.shape[-1]:
        raise ValueError(
            f"targets: expected classes in 0..{logits.shape[-1] - 1}, got {targets.min()}..{targets.max()}"
        )

    target = targets[..., np.newaxis].astype(np.intp)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    target_logit = np.take_along_axis(shifted, target, axis=-1)
    dlogits = np.exp(shifted, out=shifted)
    total = dlogits.sum(axis=-1, keepdims=True)
    loss = np.log(total) - target_logit
    dlogits /= total
    np.put_along_axis(dlogits, target, np.take_along_axis(dlogits, target, axis=-1) - 1, axis=-1)
    return loss[..., 0], dlogits


class _Optimizer:
    """What optimisers share: the parameters, the learning rate ``lr`` (free to change), and the checks."""

    def __init__(self, params: Mapping[str, NDArray], lr: float) -> None:
        for name, value in params.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                given = getattr(value, "dtype", type(value).__name__)
                raise TypeError(f"params[{name!r}]: expected a floating-point array, got {given}")
        self.params = dict(params)
        self.lr = _at_least_zero("lr", lr)

    def step(self, grads: Mapping[str, ArrayLike]) -> None:
        """Update every parameter in place.

        ``grads`` holds real arrays with the keys and shapes of ``params``. A ValueError or TypeError about
        them leaves all parameters as they were.
        """
        if grads.keys() != self.params.keys():
            raise ValueError(f"grads: expected the keys {sorted(self.params)}, got {sorted(grads)}")
        self._update(
            {
                name: checks.shaped_array(grads[name], f"grads[{name!r}]", value.shape, value.dtype)
                for name, value in self.params.items()
            }
        )

    def _update(self, grads: Mapping[str, NDArray]) -> None:
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent: ``v = momentum * v + g``, ``p = p - lr * v`` (momentum: Polyak 1964).

    ``params`` maps names to floating-point arrays, for example ``layer.params``; they are updated in place.
    """

    def __init__(self, params: Mapping[str, NDArray], lr: float, momentum: float = 0.0) -> None:
        super().__init__(params, lr)
        self.momentum = checks.probability(momentum, "momentum")
        self._velocity = {name: np.zeros_like(value) for name, value in self.params.items()}

    def _update(self, grads: Mapping[str, NDArray]) -> None:
        for name, value in self.params.items():
            velocity = self._velocity[name]
            velocity *= self.momentum
            velocity += grads[name]
            value -= self.lr * velocity


class Adam(_Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), with the L2 penalty ``g = g + weight_decay * p``.

    With ``n`` the number of the step, from 1::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * (m / (1 - beta1**n)) / (sqrt(v / (1 - beta2**n)) + eps)

    ``params`` maps names to floating-point arrays, for example ``layer.params``; they are updated in place.
    """

    def __init__(
        self,
        params: Mapping[str, NDArray],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr)
        self.betas = checks.probability(betas[0], "betas[0]"), checks.probability(betas[1], "betas[1]")
        self.eps = _at_least_zero("eps", eps)
        self.weight_decay = _at_least_zero("weight_decay", weight_decay)
        self._steps = 0
        self._mean = {name: np.zeros_like(value) for name, value in self.params.items()}
        self._square = {name: np.zeros_like(value) for name, value in self.params.items()}

    def _update(self, grads: Mapping[str, NDArray]) -> None:
        self._steps += 1
        beta1, beta2 = self.betas
        correction1, correction2 = 1 - beta1**self._steps, 1 - beta2**self._steps
        for name, value in self.params.items():
            grad = grads[name] + self.weight_decay * value if self.weight_decay else grads[name]
            mean, square = self._mean[name], self._square[name]
            mean += (1 - beta1) * (grad - mean)
            square += (1 - beta2) * (grad * grad - square)
            value -= (self.lr / correction1) * mean / (np.sqrt(square / correction2) + self.eps)


class LinearGrads(NamedTuple):
    """What ``Linear.backward`` returns: the gradients of the input and of the parameters."""

    x: NDArray
    params: dict[str, NDArray]


class Linear:
    """A linear head, ``y = x W^T + b``, for inputs of shape (..., I).

    ``params`` holds ``weight`` (O, I) and ``bias`` (O,), drawn from U(-1/sqrt(I), 1/sqrt(I)). ``dtype`` is
    float32 or float64.
    """

    def __init__(
        self, input_size: int, output_size: int, *, dtype: DTypeLike = np.float32, seed: int | None = None
    ) -> None:
        input_size = checks.positive_integer(input_size, "input_size")
        output_size = checks.positive_integer(output_size, "output_size")
        self.dtype = checks.real_dtype(dtype, "dtype")
        rng = np.random.default_rng(seed)
        bound = input_size**-0.5
        self.params = {
            "weight": rng.uniform(-bound, bound, (output_size, input_size)).astype(self.dtype),
            "bias": rng.uniform(-bound, bound, output_size).astype(self.dtype),
        }

    def __call__(self, x: ArrayLike) -> NDArray:
        """The output (..., O) for ``x`` (..., I); nothing is recorded."""
        return self.forward(x)[0]

    def forward(self, x: ArrayLike) -> tuple[NDArray, NDArray]:
        """The output (..., O) for ``x`` (..., I), and the tape that ``backward`` needs."""
        weight, bias = self.params["weight"], self.params["bias"]
        x = checks.real_array(x, "x", self.dtype)
        if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x: expected shape (..., {weight.shape[1]}), got {x.shape}")
        return x @ weight.T + bias, x

    def backward(self, tape: NDArray, dy: ArrayLike) -> LinearGrads:
        """Gradients for ``dy`` (..., O): ``dx = dy W``, and, summed, ``dW = dy^T x``, ``db = dy``.

        ``tape`` comes from ``forward``.
        """
        weight = self.params["weight"]
        dy = checks.shaped_array(dy, "dy", (*tape.shape[:-1], weight.shape[0]), self.dtype)
        flat_dy = dy.reshape(-1, weight.shape[0])
        flat_x = tape.reshape(-1, weight.shape[1])
        return LinearGrads(dy @ weight, {"weight": flat_dy.T @ flat_x, "bias": flat_dy.sum(axis=0)})


def text_batches(ids: ArrayLike, batch_size: int, steps: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Cut one long sequence into chunks for truncated back-propagation through time (Williams & Peng 1990).

    The sequence is split into ``batch_size`` contiguous streams that are read side by side, ``steps`` at a
    time, so the state at the end of a chunk is the right initial state of the next one. What does not fill a
    last chunk is left out.

    Parameters
    ----------
    ids : integer array, shape (N,)
        Codes of the characters (or words), in the order of the text.
    batch_size, steps : int
        B and T.

    Yields
    ------
    inputs, targets : integer arrays, shape (T, B)
        ``targets`` are ``inputs`` one place later in the text. Both are views of ``ids``.

    Raises
    ------
    TypeError
        ``ids`` are not integers.
    ValueError
        ``ids`` is not one-dimensional or too short for a single chunk, or B or T is below 1.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got dtype {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"ids: expected shape (N,), got {ids.shape}")
    batch_size = checks.positive_integer(batch_size, "batch_size")
    steps = checks.positive_integer(steps, "steps")
    length = (ids.size - 1) // batch_size
    if length < steps:
        needed = batch_size * steps + 1
        raise ValueError(f"ids: expected at least batch_size * steps + 1 = {needed} of them, got {ids.size}")
    inputs, targets = (ids[start : start + batch_size * length].reshape(batch_size, length).T for start in (0, 1))
    return ((inputs[t : t + steps], targets[t : t + steps]) for t in range(0, length - steps + 1, steps))


def _at_least_zero(name: str, value: float) -> float:
    if not 0 <= value < np.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    return float(value)
