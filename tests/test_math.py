"""exp, tanh and logistic: within 2 units in the last place, monotone, bounded, odd where they should be."""

import functools

import numpy as np
import pytest
from helpers import FMA_ISAS

from fastrnn import _core

MAX_ULP = 2
MAX_ULP_TANH = {True: 0.95, False: 1.3}  # of float32, with and without fused multiply-add
FUNCTIONS = ("exp", "tanh", "logistic")


def logistic(x):
    return 1 / (1 + np.exp(-x))


EXACT = {"exp": np.exp, "tanh": np.tanh, "logistic": logistic}

# Where implementations change branch or their result saturates, overflows or underflows, for |x|.
EDGES_FLOAT32 = (
    *(1.2e-38, 1e-20, 2.0**-13, 2.0**-12, 4e-4, 0.0225, 0.1, 0.25, 0.34657359, 0.5, 0.54930614, 0.625),
    *(0.69314718, 1.0, 1.0397208, 2.0, 4.0, 7.9, 8.664339, 9.010913, 10.0, 16.635532, 17.328680, 18.714973),
    *(20.0, 44.0, 87.336544, 87.5, 87.683118, 88.0, 88.029694, 88.376264, 88.722839, 89.0, 89.41599),
    *(103.2789, 103.97208, 127.0, 1e30),
    *(0.3012048, 0.6024097, 1.2048193, 1.8072289, 3.0120482, 4.2168675, 6.6265060, 9.03),  # parts of tanh
)


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return request.param


def consecutive(start, count):
    """`count` consecutive float32 values centred on `start`, ascending."""
    bits = int(np.float32(abs(start)).view(np.uint32))
    first = max(bits - count // 2, 0)
    run = np.arange(first, min(first + count, 0x7F800001), dtype=np.uint32).view(np.float32)
    return run if start > 0 else -run[::-1]


@functools.cache
def runs():
    """Runs of consecutive floats: around every edge on both sides, and across zero."""
    small = consecutive(1e-45, 4096)
    edges = [consecutive(sign * edge, 16384) for edge in EDGES_FLOAT32 for sign in (1, -1)]
    return [np.concatenate([-small[::-1], small]), consecutive(3.4e38, 4096), *edges]


@functools.cache
def sample():
    """2^20 bit patterns spread evenly over all 2^32, the runs, and every kind of special value."""
    spread = (np.arange(2**20, dtype=np.uint64) * 4093 % 2**32).astype(np.uint32).view(np.float32)
    return np.concatenate([spread, *runs(), np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)])


def flushed(a):
    """What is denormal counts as zero."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, a.dtype.type(0), a)


def ulp_error(got, want):
    """|got - want| in units of got's last place at want, a wider type, so its own error does not count.

    Denormal results count as zero; zero is right where the exact value is denormal; infinity is right from
    2^maxexp on.
    """
    info, wide = np.finfo(got.dtype), want.dtype.type
    top = np.ldexp(wide(1), info.maxexp)
    want = np.minimum(want, 4 * top)
    got = flushed(got)
    value = np.where(np.isinf(got), np.maximum(want, top), got.astype(wide))
    exponent = np.maximum(np.frexp(want)[1] - 1, info.minexp)
    error = np.abs(value - want) / np.ldexp(wide(1), exponent - info.nmant)
    smallest = wide(info.tiny) * (1 + MAX_ULP * wide(info.eps))
    return np.where((got == 0) & (np.abs(want) < smallest), 0, error)


def assert_accurate(got, want, x, bound=MAX_ULP):
    error = ulp_error(got, want)
    worst = np.nanargmax(np.where(np.isnan(error), np.inf, error))
    assert error[worst] <= bound, f"{error[worst]:.3g} ULP at x = {x[worst]!r}: {got[worst]!r}, not {want[worst]!r}"


def assert_monotone(values, x):
    values = flushed(values)
    falls = np.flatnonzero(~(values[1:] >= values[:-1]))
    assert falls.size == 0, f"{falls.size} falls, the first after x = {x[falls[0]]!r}"


def assert_bounded(function, y):
    low, high = {"exp": (0, np.inf), "tanh": (-1, 1), "logistic": (0, 1)}[function]
    assert y.min() >= low
    assert y.max() <= high


@np.errstate(all="ignore")
def check_float32(function, x, isa):
    """Everything that holds at every float32 input; x ascending and free of NaN. Returns the values."""
    y = _core.evaluate(function, x)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    bound = MAX_ULP_TANH[isa in FMA_ISAS] if function == "tanh" else MAX_ULP
    assert_accurate(y, EXACT[function](x.astype(np.float64)), x, bound)
    assert_monotone(y, x)
    assert_bounded(function, y)
    return y


def test_float32_sample(isa, function):
    x = sample()
    check_float32(function, np.sort(x[~np.isnan(x)]), isa)


def test_float32_runs(isa, function):
    for x in runs():
        check_float32(function, x, isa)


@pytest.mark.exhaustive
def test_float32_every_input(isa, function):
    chunk, inf = 2**22, 0x7F800000
    starts = range(0, inf + 1, chunk)
    try:
        from tqdm import tqdm
    except ImportError:
        bar = [(sign, start) for sign in (1, -1) for start in starts]
    else:
        bar = tqdm([(sign, start) for sign in (1, -1) for start in starts], desc=f"{function} {isa}")
    for sign, start in bar:
        # One shared value between chunks, so that no pair of neighbours goes unchecked.
        bits = np.arange(max(start - 1, 0), min(start + chunk, inf + 1), dtype=np.uint32)
        x = bits.view(np.float32)
        y = check_float32(function, x if sign > 0 else -x[::-1], isa)
        if function == "tanh" and sign > 0:
            assert np.array_equal(flushed(_core.evaluate(function, -x)), -flushed(y))
    for start in range(inf + 1, 2**31, chunk):
        nan = np.arange(start, min(start + chunk, 2**31), dtype=np.uint32)
        for bits in (nan, nan | np.uint32(2**31)):
            assert np.isnan(_core.evaluate(function, bits.view(np.float32))).all()


def points_float64(count):
    """Finite float64 arguments of every size that matters, ascending."""
    rng = np.random.default_rng(7)
    signs = rng.choice([-1.0, 1.0], count)
    kinds = [
        rng.uniform(-760, 760, count),
        rng.uniform(-20, 20, count),
        rng.standard_normal(count),
        signs * 10.0 ** rng.uniform(-307, 3, count),
        signs * (rng.integers(0, 2100, count) * (np.log(2) / 2) + rng.normal(0, 1e-9, count)),
        signs
        * rng.choice([2.0**-27, 0.25, 0.5493, 0.625, 18.715, 19.0616, 36.0437, 708.396, 709.782, 745.133], count)
        * (1 + rng.normal(0, 1e-6, count)),
    ]
    return np.sort(np.concatenate([kind[: count // len(kinds) + 1] for kind in kinds])[:count])


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double here")
@np.errstate(all="ignore")
def test_float64_against_long_double(isa, function):
    x = points_float64(10**6)
    y = _core.evaluate(function, x)
    assert y.dtype == np.float64
    assert y.shape == x.shape
    assert_accurate(y, EXACT[function](x.astype(np.longdouble)), x)
    assert_bounded(function, y)


@functools.cache
def mpmath_values(function):
    """x, and for each the exact value and its unit in the last place, as mpmath numbers."""
    mpmath = pytest.importorskip("mpmath")
    x = points_float64(3000)
    with mpmath.workdps(50):
        exact = {"exp": mpmath.exp, "tanh": mpmath.tanh, "logistic": lambda v: 1 / (1 + mpmath.exp(-v))}[function]
        values = [exact(mpmath.mpf(float(v))) for v in x]
        ulps = [mpmath.ldexp(1, max(mpmath.frexp(v)[1] - 1, -1022) - 52) for v in values]
    return x, values, ulps


def test_float64_against_mpmath(isa, function):
    mpmath = pytest.importorskip("mpmath")
    info = np.finfo(np.float64)
    x, values, ulps = mpmath_values(function)
    with mpmath.workdps(50):
        for v, got, want, ulp in zip(x, flushed(_core.evaluate(function, x)), values, ulps, strict=True):
            if got == 0:
                assert abs(want) < info.tiny * (1 + MAX_ULP * info.eps), f"zero at x = {v!r}"
            elif np.isinf(got):
                assert want > mpmath.ldexp(1, 1024) - MAX_ULP * ulp, f"infinity at x = {v!r}"
            else:
                error = abs(mpmath.mpf(float(got)) - want) / ulp
                assert error <= MAX_ULP, f"{float(error):.3g} ULP at x = {v!r}"


def test_tanh_is_odd(isa, dtype):
    x = sample() if dtype == np.float32 else points_float64(10**5)
    x = x[~np.isnan(x)]
    assert np.array_equal(flushed(_core.evaluate("tanh", -x)), -flushed(_core.evaluate("tanh", x)))


def test_limits(isa, dtype, function):
    x = np.array([-np.inf, np.inf, -1e4, 1e4, 0.0, -0.0, np.finfo(dtype).tiny / 8], dtype)
    at_zero = {"exp": 1, "tanh": 0, "logistic": 0.5}[function]
    low, high = {"exp": (0, np.inf), "tanh": (-1, 1), "logistic": (0, 1)}[function]
    got = flushed(_core.evaluate(function, x))
    assert np.array_equal(got, np.array([low, high, low, high, at_zero, at_zero, at_zero], dtype))


def test_nan_gives_nan_and_touches_no_neighbour(isa, dtype, function):
    plain = np.linspace(-3, 3, 67).astype(dtype)
    want = _core.evaluate(function, plain)
    for place in range(plain.size):
        x = plain.copy()
        x[place] = np.nan if place % 2 else -np.nan
        got = _core.evaluate(function, x)
        assert np.isnan(got[place])
        assert np.array_equal(np.delete(got, place), np.delete(want, place))


def test_every_tail_and_offset(isa, dtype, function):
    """The value at x depends on x alone: not on its place, nor on how many there are."""
    buffer = np.random.default_rng(1).normal(0, 3, 80).astype(dtype)
    want = _core.evaluate(function, buffer)
    kept = buffer.copy()
    for count in range(71):
        for offset in (0, 1, 3):
            got = _core.evaluate(function, buffer[offset : offset + count])
            assert np.array_equal(got, want[offset : offset + count])
    assert np.array_equal(buffer, kept)
