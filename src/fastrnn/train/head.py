"""A linear head: from a layer's outputs to logits or to values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import checks


class LinearGrads(NamedTuple):
    """What ``Linear.backward`` returns: the gradients of the input and of the parameters."""

    x: NDArray
    params: dict[str, NDArray]


class LinearTape(NamedTuple):
    """What ``Linear.forward`` recorded."""

    x: NDArray
    weight: NDArray


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
        checks.addressable((output_size, input_size), "weight")
        self.dtype = checks.real_dtype(dtype, "dtype")
        rng = checks.random_generator(seed, "seed")
        bound = input_size**-0.5
        self.params = {
            "weight": rng.uniform(-bound, bound, (output_size, input_size)).astype(self.dtype),
            "bias": rng.uniform(-bound, bound, output_size).astype(self.dtype),
        }

    def __call__(self, x: ArrayLike) -> NDArray:
        """The output (..., O) for ``x`` (..., I); nothing is recorded."""
        return self._checked(x) @ self.params["weight"].T + self.params["bias"]

    def forward(self, x: ArrayLike) -> tuple[NDArray, LinearTape]:
        """The output (..., O) for ``x`` (..., I), and the tape that ``backward`` needs: what becomes of x and the
        parameters afterwards does not change the gradients."""
        x = self._checked(x)
        return self(x), LinearTape(x.copy(), self.params["weight"].copy())

    def backward(self, tape: LinearTape, dy: ArrayLike) -> LinearGrads:
        """Gradients for ``dy`` (..., O): ``dx = dy W``, and, summed, ``dW = dy^T x``, ``db = dy``.

        ``tape`` comes from ``forward``.
        """
        if not isinstance(tape, LinearTape) or tape.weight.shape != self.params["weight"].shape:
            raise TypeError(f"tape: expected what this head's forward returned, got {type(tape).__name__}")
        O, I = tape.weight.shape
        dy = checks.shaped_array(dy, "dy", (*tape.x.shape[:-1], O), self.dtype)
        flat_dy, flat_x = dy.reshape(-1, O), tape.x.reshape(-1, I)
        return LinearGrads(dy @ tape.weight, {"weight": flat_dy.T @ flat_x, "bias": flat_dy.sum(axis=0)})

    def _checked(self, x):
        x = checks.real_array(x, "x", self.dtype)
        inputs = self.params["weight"].shape[1]
        if x.ndim == 0 or x.shape[-1] != inputs:
            raise ValueError(f"x: expected shape (..., {inputs}), got {x.shape}")
        return x
