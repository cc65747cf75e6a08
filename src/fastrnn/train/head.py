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
        rng = checks.random_generator(seed, "seed")
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
