"""Checks of what callers hand in. Every error names the argument, what was expected and what came."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Mapping

import numpy as np

from . import _core

# Elements of one array; more cannot be addressed, whatever the dtype.
_MOST_ELEMENTS = 2**55


def real_array(value, name: str, dtype: np.dtype) -> np.ndarray:
    """``value`` as an aligned C-contiguous array of ``dtype``: itself if it is one, else a converted copy."""
    if _core.ready(value, dtype):
        return value
    value = array(value, name)
    if value.dtype.kind not in "fiub" and not _is_small_float(value.dtype):
        raise TypeError(f"{name}: expected an array of real numbers, got dtype {value.dtype}")
    return np.require(value, dtype, ("C", "A"))


def _is_small_float(dtype):
    """Is it one that NumPy only knows from another package, such as bfloat16?"""
    return dtype.isbuiltin == 2 and np.can_cast(dtype, np.float32)


def array(value, name: str, of: str = "real numbers") -> np.ndarray:
    """``value`` as an array, of whatever type."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"{name}: expected an array of {of}, got one with masked values: fill them, or give lengths")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # of nested lists, or of another library's tensors
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected an array of {of}, got {type(value).__name__}: {error}") from None


def path(value, name: str) -> str:
    """``value`` as the path of a file."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected str or os.PathLike, got {value!r}")
    if "\0" in text:
        raise ValueError(f"{name}: expected a path without a null character, got {text!r}")
    return text


def mapping(value, name: str, of: str) -> Mapping:
    """``value``, which must be a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping of {of}, got {type(value).__name__}")
    return value


def writeable_arrays(value, name: str) -> Mapping[str, np.ndarray]:
    """``value``, which maps names to floating-point arrays that can be changed in place."""
    for key, item in mapping(value, name, "names to arrays").items():
        if not isinstance(item, np.ndarray) or item.dtype.kind != "f":
            given = getattr(item, "dtype", type(item).__name__)
            raise TypeError(f"{name}[{key!r}]: expected a floating-point array, got {given}")
        if not item.flags.writeable:
            raise ValueError(f"{name}[{key!r}]: expected an array that can be changed in place, got a read-only one")
    return value


def random_generator(seed, name: str) -> np.random.Generator:
    """A generator from a seed: None, an integer of at least 0, or what else numpy.random.default_rng takes."""
    try:
        if isinstance(seed, (bool, np.bool_)):
            raise TypeError
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: expected None, a generator or an integer of at least 0, got {seed!r}") from None


def shaped_array(value, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``real_array`` of exactly this shape."""
    value = real_array(value, name, dtype)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    return value


def positive_integer(value, name: str) -> int:
    """``value`` as an int, at least 1."""
    return integer_at_least(value, name, 1)


def integer_at_least(value, name: str, least: int) -> int:
    """``value`` as an int, at least ``least``."""
    number = integer(value, name)
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number


def integer(value, name: str) -> int:
    """``value`` as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    return number


def offsets(value, name: str) -> tuple[int, ...]:
    """``value`` as a tuple of distinct ints, each of which fits 32 bits."""
    try:
        given = list(value)
    except TypeError:
        raise TypeError(f"{name}: expected integers, got {value!r}") from None
    numbers = tuple(integer(number, name) for number in given)
    if not numbers:
        raise ValueError(f"{name}: expected at least one integer, got none")
    for number in numbers:
        if not -(2**31) < number < 2**31:
            raise ValueError(f"{name}: expected integers beyond -2**31 and below 2**31, got {number}")
    number, times = Counter(numbers).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{name}: expected distinct integers, got {number} more than once")
    return numbers


def flag(value, name: str) -> bool:
    """``value`` as a bool, which it must be."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def real_number(value, name: str) -> float:
    """``value`` as a float; infinity if it is an integer beyond all floats."""
    try:
        if not isinstance(value, (str, bytes, bool, np.bool_)):
            return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name}: expected a number, got {value!r}")


def probability(value, name: str) -> float:
    """``value`` as a float in [0, 1)."""
    number = real_number(value, name)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    return number


def at_least_zero(value, name: str) -> float:
    """``value`` as a finite float, 0 or more."""
    number = real_number(value, name)
    if not 0.0 <= number < np.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    return number


def greater_than_zero(value, name: str) -> float:
    """``value`` as a finite float greater than 0."""
    number = real_number(value, name)
    if not 0.0 < number < np.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return number


def choice(value, name: str, choices: tuple[str, ...]) -> str:
    """``value``, which must be one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def real_dtype(value, name: str) -> np.dtype:
    """``value`` as the dtype float32 or float64."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        try:
            if value is not None and dtype == value:
                return dtype
        except TypeError:  # nothing that names a dtype
            break
    raise ValueError(f"{name}: expected float32 or float64, got {value!r}")


def addressable(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """``shape``, if an array of it can be addressed at all."""
    elements = 1
    for size in shape:
        elements *= size
    if elements > _MOST_ELEMENTS:
        raise ValueError(f"{name}: expected at most 2**55 elements, got shape {shape}")
    return shape


def sequence_lengths(lengths, B: int | None, T: int | None) -> np.ndarray:
    """``lengths`` as int64 (B,), each in 0..T; None for B or T puts no bound."""
    lengths = array(lengths, "lengths", "integers")
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"lengths: expected integers, got dtype {lengths.dtype}")
    if lengths.ndim != 1 or (B is not None and lengths.shape != (B,)):
        raise ValueError(f"lengths: expected shape ({'B' if B is None else B},), got {lengths.shape}")
    wrong = np.flatnonzero((lengths < 0) | (lengths > (np.iinfo(np.int64).max if T is None else T)))
    if wrong.size:
        bound = "0 or more" if T is None else f"0 to {T}"
        raise ValueError(f"lengths: expected {bound}, got {lengths[wrong[0]]} at index {wrong[0]}")
    return np.array(lengths, np.int64, order="C")


def real_steps(lengths: np.ndarray, T: int, batch_first: bool) -> np.ndarray:
    """``(T, B)``, or ``(B, T)`` if ``batch_first``: true where a sequence has a step."""
    real = np.arange(T) < lengths[:, None]
    return real if batch_first else real.T


def sequences(
    x, lengths, size: int, batch_first: bool, dtype: np.dtype, name: str = "x"
) -> tuple[np.ndarray, _core.Batch]:
    """``x`` as an array of the layer's dtype, and the batch of sequences that it holds.

    A 2-D ``x`` is one unbatched sequence ``(T, size)`` or, with ``lengths``, a ragged batch ``(sum(lengths), size)``.
    """
    x = real_array(x, name, dtype)
    if x.ndim not in (2, 3) or x.shape[-1] != size:
        batched = f"(B, T, {size})" if batch_first else f"(T, B, {size})"
        raise ValueError(
            f"{name}: expected shape {batched}, (T, {size}) or, with lengths, (sum(lengths), {size}), got {x.shape}"
        )
    if x.ndim == 3:
        B, T = x.shape[:2] if batch_first else x.shape[1::-1]
        if lengths is not None:
            lengths = sequence_lengths(lengths, B, T)
        return x, _core.Batch(T, B, lengths, batch_first)
    if lengths is None:
        return x, _core.Batch(x.shape[0], 1)
    lengths = sequence_lengths(lengths, None, None)
    total = sum(lengths.tolist())
    if total != x.shape[0]:
        raise ValueError(f"lengths: expected a sum of {x.shape[0]}, the rows of the ragged {name}, got {total}")
    return x, _core.Batch(int(lengths.max(initial=0)), lengths.size, lengths, ragged=True)
