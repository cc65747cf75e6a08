"""Inputs of any real dtype and memory layout: the same bits as from plain arrays; inputs unmodified."""

import numpy as np
import pytest
from helpers import assert_meaningful, assert_same_bits, enliven, make, numbered, train

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


@pytest.fixture
def data(rng):
    """Small non-negative integers, which every real dtype holds exactly."""
    shapes = {"x": (STEPS, BATCH, INPUTS), "dy": (STEPS, BATCH, HIDDEN)}
    shapes |= {"state": (1, BATCH, HIDDEN), "dstate": (1, BATCH, HIDDEN)}
    return {name: rng.integers(0, 4, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("argument", ["x", "state", "dy", "dstate"])
def test_any_real_array_will_do(backend, row, dtype, data, form, argument, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    plain = {name: a.astype(dtype) for name, a in data.items()}
    want = train(layer, **plain)
    assert_meaningful(want)
    given = FORMS[form](plain[argument])
    kept = given.copy()
    assert_same_bits(train(layer, **{**plain, argument: given}), want)
    assert given.dtype == kept.dtype
    assert np.array_equal(given, kept)


@pytest.mark.parametrize("form", FORMS)
def test_steps_and_frozen_layers_take_them_too(backend, row, dtype, data, form, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    x, state = data["x"].astype(dtype), data["state"].astype(dtype)
    given = FORMS[form](x)
    for call, place in ((layer, ...), (layer.frozen(), ...), (layer.step, 2), (layer.frozen().step, 2)):
        want = call(x[place], state)
        got = call(given[place], FORMS[form](state))
        results = [{"y": y, **numbered("state", end)} for y, end in (got, want)]
        assert_same_bits(*results)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_load_from_them(backend, row, dtype, form, rng):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=dtype)
    whole = {name: rng.integers(0, 4, p.shape).astype(dtype) for name, p in layer.params.items()}
    given = {}
    for name, a in whole.items():
        given[name] = FORMS[form](a.reshape(1, *a.shape) if a.ndim == 2 else a[None, None])
        given[name] = given[name].reshape(a.shape) if a.ndim == 1 else given[name][0]
    layer.load_state_dict(given)
    assert_same_bits(layer.params, whole)
    assert all(type(p) is np.ndarray for p in layer.params.values())


def test_wider_values_round_once(backend, row, rng):
    """float64 input to a float32 layer is what its float32 copy is."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=np.float32), row, rng)
    wide = {
        "x": rng.standard_normal((STEPS, BATCH, INPUTS)),
        "state": rng.standard_normal((1, BATCH, HIDDEN)),
    }
    wide |= {
        "dy": rng.standard_normal((STEPS, BATCH, HIDDEN)),
        "dstate": rng.standard_normal((1, BATCH, HIDDEN)),
    }
    narrow = {name: a.astype(np.float32) for name, a in wide.items()}
    assert_same_bits(train(layer, **wide), train(layer, **narrow))


def test_one_array_as_several_arguments(backend, row, dtype, rng):
    """Inputs that overlap."""
    layer = enliven(make(row, backend, HIDDEN, HIDDEN, dtype=dtype), row, rng)
    memory = rng.standard_normal((STEPS + 1, BATCH, HIDDEN)).astype(dtype)
    shared = {"x": memory[:-1], "dy": memory[1:], "state": memory[2:3], "dstate": memory[:1]}
    apart = {name: a.copy() for name, a in shared.items()}
    kept = memory.copy()
    assert_same_bits(train(layer, **shared), train(layer, **apart))
    assert np.array_equal(memory, kept)


def test_a_broadcast_input(backend, row, dtype, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    x = np.broadcast_to(rng.standard_normal((1, 1, INPUTS)).astype(dtype), (STEPS, BATCH, INPUTS))
    dy = np.broadcast_to(dtype(1), (STEPS, BATCH, HIDDEN))
    assert_same_bits(train(layer, x, dy=dy), train(layer, x.copy(), dy=dy.copy()))
