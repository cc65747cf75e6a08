"""The packing and the micro-kernel: every tail, each element a chain of fused multiply-adds for each slice."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import differing_bits

from fastrnn import _core


def framed(a):
    """A contiguous copy with NaN before and after it, so that a read outside shows in the result."""
    buffer = np.full(a.size + 128, np.nan, a.dtype)
    inside = buffer[64 : 64 + a.size].reshape(a.shape)
    inside[...] = a
    return inside


def check_integers(m, n, k, dtype, a, b):
    """Small integers: every order of summation is exact, so one answer is right to the bit."""
    a, b = framed(a[:m, :k]), framed(b[:k, :n])
    got = _core.product(a, b)
    want = (a.astype(np.int64) @ b.astype(np.int64)).astype(dtype)
    assert got.shape == (m, n)
    assert got.dtype == dtype
    assert differing_bits(got + 0, want) == 0, f"M={m} N={n} K={k}"  # + 0: a zero of either sign is exact


@pytest.mark.parametrize("k", range(10))
def test_every_tail(isa, dtype, k):
    rng = np.random.default_rng(k)
    a = rng.integers(-8, 9, (20, k)).astype(dtype)
    b = rng.integers(-8, 9, (k, 70)).astype(dtype)
    for m, n in itertools.product(range(1, 21), range(1, 71)):
        check_integers(m, n, k, dtype, a, b)


@pytest.mark.parametrize("shape", [(1, 257, 1000), (64, 300, 513), (129, 33, 2049), (333, 7, 255), (40, 1025, 64)])
def test_large(isa, dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(m)
    # |sum| <= 2049 * 8 * 8 < 2^24: exact in float32 too.
    a = rng.integers(-8, 9, (m, k)).astype(dtype)
    b = rng.integers(-8, 9, (k, n)).astype(dtype)
    check_integers(m, n, k, dtype, a, b)


def rounded(exact, dtype):
    """A fraction to the nearest float of `dtype`, ties to even, in one rounding."""
    nearest = float(exact)
    if dtype == np.float64 or Fraction(nearest) == exact:
        return dtype(nearest)
    # To float32 by way of float64: only a float64 half-way between two float32 would be rounded twice.
    low_bits = int(np.float64(nearest).view(np.uint64)) & 0x1FFFFFFF
    if low_bits == 0x10000000:
        nearest = math.nextafter(nearest, math.inf if exact > Fraction(nearest) else -math.inf)
    return dtype(nearest)


SLICE = 256  # of a product's K, at most: what rounding leaves grows with the root of this


def chain(row, column, dtype, fused):
    total = dtype(0)
    for p, q in zip(row, column, strict=True):
        if fused:
            total = rounded(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(total)), dtype)
        else:
            total = total + p * q
    return total


def slices(row, column, dtype, fused):
    """Equal slices, the last one perhaps shorter, each a chain; added one after the other."""
    length = math.ceil(len(row) / math.ceil(len(row) / SLICE))
    total = dtype(0)
    for k in range(0, len(row), length):
        total = total + chain(row[k : k + length], column[k : k + length], dtype, fused)
    return total


@pytest.mark.parametrize("shape", [(1, 1, 256), (1, 1, 300), (2, 1, 1000), (3, 5, 40), (7, 18, 9), (14, 33, 65)])
def test_chains_in_index_order(isa, dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    got = _core.product(a, b)
    places = list(itertools.product(range(m), range(n)))
    for i, j in (places[p] for p in rng.permutation(len(places))[:60]):
        want = slices(a[i], b[:, j], dtype, fused=isa != "generic")
        assert got[i, j] == want, f"[{i}, {j}]: {got[i, j]!r}, not {want!r}"


def test_the_expected_chain_is_right():
    """The emulation itself: one rounding, and a case where two roundings would differ."""
    eps = np.float32(2.0**-12)
    assert chain([1 + eps], [1 + eps], np.float32, True) == np.float32(1 + 2.0**-11)
    assert rounded(Fraction(1) + Fraction(1, 2**24) + Fraction(1, 2**80), np.float32) == np.float32(1 + 2.0**-23)
    assert rounded(Fraction(1) + Fraction(1, 2**24), np.float32) == 1
    third = [np.float64(1 / 3)]
    assert chain(third, third, np.float64, True) == third[0] * third[0]
