"""Inputs of any real dtype and memory layout: the same bits as from plain arrays; inputs unmodified."""

import numpy as np
import pytest
from helpers import (
    as_tuple,
    assert_meaningful,
    assert_same_bits,
    enliven,
    make,
    map_state,
    numbered,
    steps_of,
    train,
)

pytestmark = pytest.mark.drawn(2, representatives=4)

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 5, 7


def misaligned(a):
    inside = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    inside[...] = a
    assert not inside.flags.aligned
    return inside


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def in_a_record(a):
    """A field of a packed record array: strides that are no multiple of the item size."""
    records = np.zeros(a.shape, np.dtype([("gap", "u1"), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def subclass(a):
    class Array(np.ndarray):
        pass

    return a.view(Array)


DTYPES = [
    "float16",
    "float32",
    "float64",
    "longdouble",
    "int8",
    "uint8",
    "int16",
    "uint32",
    "int64",
    "uint64",
    ">f4",
    ">i8",
]

FORMS = {name: (lambda a, name=name: a.astype(name)) for name in DTYPES} | {
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "strided in steps": lambda a: np.repeat(a, 3, axis=0)[::3],
    "reversed": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "transposed": lambda a: a.transpose(1, 2, 0).copy().transpose(2, 0, 1),
    "misaligned": misaligned,
    "read-only": read_only,
    "in a record": in_a_record,
    "subclass": subclass,
}


def draw(layer, draw_array):
    """All arguments of `train`, each array drawn by its shape."""
    x = draw_array((STEPS, BATCH, INPUTS))
    y, state = layer(x)
    states = {name: map_state(lambda s: draw_array(s.shape), state) for name in ("state", "dstate")}
    return {"x": x, "dy": draw_array(y.shape), **states}


def integers(rng, dtype):
    """Small and not negative, so that every real dtype holds them exactly."""
    return lambda shape: rng.integers(0, 4, shape).astype(dtype)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2"])
def test_small_floats_of_another_package(backend, name, rng):
    small = pytest.importorskip("ml_dtypes")
    layer = backend.GRU(INPUTS, HIDDEN, seed=0)
    x = rng.integers(0, 4, (STEPS, BATCH, INPUTS)).astype(np.float32)
    assert np.array_equal(layer(x.astype(getattr(small, name)))[0], layer(x)[0])


def same_values(a, b):
    return all(p.dtype == q.dtype and np.array_equal(p, q) for p, q in zip(as_tuple(a), as_tuple(b), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("argument", ["x", "state", "dy", "dstate"])
def test_any_real_array_will_do(backend, row, dtype, form, argument, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    plain = draw(layer, integers(rng, dtype))
    want = train(layer, **plain)
    assert_meaningful(want)
    given = map_state(FORMS[form], plain[argument])
    kept = map_state(np.copy, given)
    assert_same_bits(train(layer, **{**plain, argument: given}), want)
    assert same_values(given, kept)


@pytest.mark.parametrize("form", FORMS)
def test_steps_and_frozen_layers_take_them_too(backend, row, dtype, form, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    data = draw(layer, integers(rng, dtype))
    x, state = data["x"], data["state"]
    given = FORMS[form](x)
    for call, place in ((layer, ...), (layer.frozen(), ...), *((step, 2) for step in steps_of(row, layer))):
        want = call(x[place], state)
        got = call(given[place], map_state(FORMS[form], state))
        results = [{"y": y, **numbered("state", end)} for y, end in (got, want)]
        assert_same_bits(*results)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_load_from_them(backend, row, dtype, form, rng):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=dtype)
    whole = {name: rng.integers(0, 4, p.shape).astype(dtype) for name, p in layer.params.items()}
    given = {}
    for name, a in whole.items():
        given[name] = FORMS[form](a.reshape((1,) * (3 - a.ndim) + a.shape))[(0,) * (3 - a.ndim)]
    layer.load_state_dict(given)
    assert_same_bits(layer.params, whole)
    assert all(type(p) is np.ndarray for p in layer.params.values())


def test_wider_values_round_once(backend, row, rng):
    """float64 input to a float32 layer is what its float32 copy is."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=np.float32), row, rng)
    wide = draw(layer, rng.standard_normal)
    narrow = {name: map_state(lambda a: a.astype(np.float32), a) for name, a in wide.items()}
    assert_same_bits(train(layer, **wide), train(layer, **narrow))


def test_one_array_as_several_arguments(backend, row, dtype, rng):
    """Inputs that overlap."""
    layer = enliven(make(row, backend, HIDDEN, HIDDEN, dtype=dtype), row, rng)
    memory = rng.standard_normal((STEPS + 1, BATCH, HIDDEN)).astype(dtype)
    y, state = layer(memory)
    outputs = y.shape[-1]
    shared = {"x": memory[:-1], "dy": memory[1:, :, :outputs]}
    shared |= {"state": map_state(lambda s: memory[2:3, :, : s.shape[-1]], state)}
    shared |= {"dstate": map_state(lambda s: memory[:1, :, : s.shape[-1]], state)}
    apart = {name: map_state(np.copy, a) for name, a in shared.items()}
    kept = memory.copy()
    assert_same_bits(train(layer, **shared), train(layer, **apart))
    assert np.array_equal(memory, kept)


def test_a_broadcast_input(backend, row, dtype, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    x = np.broadcast_to(rng.standard_normal((1, 1, INPUTS)).astype(dtype), (STEPS, BATCH, INPUTS))
    dy = np.broadcast_to(dtype(1), (STEPS, BATCH, row.output_size(HIDDEN)))
    assert_same_bits(train(layer, x, dy=dy), train(layer, x.copy(), dy=dy.copy()))
