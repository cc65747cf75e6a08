"""Layers in files that are damaged or hostile: they are refused, and take no memory."""

import itertools
import json
import os
import tracemalloc

import numpy as np
import pytest
from files import SIZES, drawn, refused, written
from helpers import assert_same_bits

from fastrnn import storage

safetensors_numpy = pytest.importorskip("safetensors.numpy")


# ---- Damage. ----


def loaded(path):
    """What `load` returns, or None if it refuses."""
    try:
        return storage.load(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return None


def small(path, rng):
    """The smallest interesting file, and the length of its header."""
    options = {"input_size": 1, "hidden_size": 2, "num_layers": 2, "dropout": 0.5}
    params = drawn("RNN", options, rng)
    storage.save(path, "RNN", options, params)
    whole = path.read_bytes()
    return whole, 8 + int.from_bytes(whole[:8], "little"), params


def test_every_truncation(path, rng):
    whole, header, _ = small(path, rng)
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        refused(path, *(["too few for its header"] if n < header else []))
    for extra in (b"\0", b"\0" * 4, whole):
        path.write_bytes(whole + extra)
        refused(path)


def test_every_byte_of_the_header(path, rng):
    """Another byte makes the file one to refuse or, in what says nothing of the parameters, still one that can be used:
    with parameters that are those its options imply."""
    whole, header, params = small(path, rng)
    other_bytes = [*b'0159-"{}[],: \\x\0\xff', *(1 << bit for bit in range(8))]
    counts = {True: 0, False: 0}
    data = sorted(p.tobytes() for p in params.values())
    with open(path, "r+b", buffering=0) as file:
        for place, other in itertools.product(range(header), other_bytes):
            byte = other if place >= 8 else whole[place] ^ other
            if byte == whole[place]:
                continue
            os.pwrite(file.fileno(), bytes([byte]), place)
            result = loaded(path)
            if result:
                class_name, options, got = result
                assert class_name in ("RNN", "CEC")
                assert list(storage.parameter_shapes(class_name, options)) == [(n, p.shape) for n, p in got.items()]
                assert sorted(p.tobytes() for p in got.values()) == data
            counts[result is not None] += 1
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert path.read_bytes() == whole
    assert_same_bits(storage.load(path)[2], params)
    assert counts[False] > 5000
    assert counts[True] > 50


def test_drawn_damage(path, rng):
    """Several bytes anywhere, overwritten, inserted, removed or repeated."""
    whole, header, _ = small(path, rng)
    refusals = 0
    for _ in range(3000):
        mutant = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            start, n = rng.integers(0, header), rng.integers(0, 9)
            pieces = rng.bytes(n), mutant[start : start + n] * 2, b"", b"9" * n, b"[" * n
            mutant[start : start + rng.integers(0, 9)] = pieces[rng.integers(len(pieces))]
        path.write_bytes(mutant)
        refusals += loaded(path) is None
    assert refusals > 2900


# ---- Hostility. ----


def plausible(about, shapes=None, dtype="F32", metadata=None):
    """A header as `save` makes it, and the data."""
    shapes = {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 4]} if shapes is None else shapes
    header, end = {"__metadata__": metadata or {"fastrnn": json.dumps(about)}}, 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * {"F64": 8, "F32": 4, "I32": 4}.get(dtype, 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return header, bytes(end)


def about(class_name="RNN", version=1, **options):
    return {"version": version, "class": class_name, "options": SIZES | {"bias": False} | options}


def refused_in_little_memory(path, *parts):
    tracemalloc.start()
    try:
        refused(path, *parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22 + 4 * path.stat().st_size


def test_the_file_that_those_below_differ_from(path):
    written(path, *plausible(about()))
    assert list(storage.load(path)[2]) == ["weight_ih_l0", "weight_hh_l0"]


HUGE = [2**31, 2**40, 2**62, 2**63, 2**64, 10**400]
NO_SIZE = [0, -1, 4.0, "4", True, None, [4], {}, float("nan"), float("inf")]


@pytest.mark.parametrize("value", HUGE + NO_SIZE, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "proj_size"])
def test_sizes(path, name, value):
    shapes = {"weight_ih_l0": [16, 3], "weight_hh_l0": [16, 4]}
    written(path, *plausible(about("LSTM"), shapes))
    storage.load(path)
    written(path, *plausible(about("LSTM", **{name: value}), shapes))
    if name == "proj_size" and isinstance(value, int) and value == 0:
        storage.load(path)
    else:
        refused_in_little_memory(path)


@pytest.mark.parametrize("name", ["bias", "bidirectional", "peephole", "coupled", "forget_gate"])
@pytest.mark.parametrize("value", [0, 1, "yes", None, [], {}], ids=str)
def test_flags(path, name, value):
    written(path, *plausible(about("LSTM", **{name: value}), {"weight_ih_l0": [16, 3], "weight_hh_l0": [16, 4]}))
    refused(path, name)


@pytest.mark.parametrize("value", [None, 5, "-2,-1", {"0": 1}, [], [0], [0] * 100_000], ids=lambda v: str(v)[:20])
def test_contexts(path, value):
    written(path, *plausible(about("TDNN", context=[0, 1]), {"weight_l0": [4, 2, 3]}))
    storage.load(path)
    written(path, *plausible(about("TDNN", context=value), {"weight_l0": [4, 2, 3]}))
    refused_in_little_memory(path)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        5,
        [],
        "RNN",
        {},
        {"version": 1},
        {"version": 1, "class": "RNN"},
        {"version": 1, "class": "RNN", "options": []},
        {"version": 1, "class": "RNN", "options": None},
        about(version=2),
        about(version="1"),
        about("Layer"),
        about("rnn"),
        about(["RNN"]),
        about({"RNN": 1}),
        about("x" * 500_000),
        about(dtype="float16"),
        about(dtype="float64"),
        about(dtype=["float32"]),
        about(dtype=None),
        about("LSTM"),
        about("GRU"),
        about("CEC"),
        about("TDNN"),
        about(bias=True),
        about(bidirectional=True),
        about(num_layers=2),
        about(input_size=4),
        about(hidden_size=3),
    ],
    ids=lambda wrong: str(wrong)[:80],
)
def test_metadata(path, wrong):
    written(path, *plausible(wrong))
    refused_in_little_memory(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 500_000, '{"a":' * 100_000, "9" * 500_000, "1e999", "NaN", '"\\ud800"', "nul", "{}}"],
    ids=lambda text: text[:10],
)
def test_metadata_that_are_no_json(path, text):
    written(path, *plausible(None, metadata={"fastrnn": text}))
    refused_in_little_memory(path)


def test_files_of_others(path, rng):
    tensors = {"weight": rng.standard_normal((3, 4)).astype(np.float32)}
    for metadata in (None, {"format": "pt"}):
        safetensors_numpy.save_file(tensors, path, metadata)
        refused(path, "no 'fastrnn'")
    for other in (
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04\x95" + b"a" * 100,
        b"\x93NUMPY" + b"\0" * 100,
        b"GIF89a",
        b"",
    ):
        path.write_bytes(other)
        refused_in_little_memory(path)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "I32", "F64", "F4", "f32", 5, None])
def test_dtypes(path, dtype):
    written(path, *plausible(about(), dtype=dtype))
    refused(path)


def test_one_tensor_of_another_dtype(path):
    header, _ = plausible(about())
    header["weight_hh_l0"] |= {"dtype": "F64", "data_offsets": [48, 48 + 128]}
    written(path, header, bytes(48 + 128))
    refused(path, "weight_hh_l0", "float32", "float64")


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"weight_ih_l0": [4, 3]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 3]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [16]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [2, 8]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 4, 1]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [0, 4]},
        {"weight_ih_l0": [4, 3], "weight_hh_l1": [4, 4]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 4], "bias_ih_l0": [4]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 4], "": []},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 4], "../../x": [1]},
        {"weight_ih_l0": [4, 3], "weight_hh_l0": [4, 4]} | {f"x{k}": [1] for k in range(5000)},
    ],
    ids=lambda shapes: str(shapes)[:100],
)
def test_tensors(path, shapes):
    written(path, *plausible(about(), shapes))
    refused_in_little_memory(path)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([4, 4], [0, 64]),  # over another's data
        ([4, 4], [48, 2**62]),
        ([4, 4], [48, 2**64]),
        ([4, 4], [112, 48]),
        ([4, 4], [-16, 48]),
        ([4, 4], [52, 116]),
        ([4, 4], [48, 108]),
        ([4, 4], [48]),
        ([4, 4], [48.0, 112.0]),
        ([4, 4], None),
        ([2**31, 2**31], [48, 112]),
        ([2**62, 4], [48, 112]),
        ([2**63, 2], [48, 112]),
        ([2**64, 4], [48, 112]),
        ([2**32, 2**32], [48, 48]),
        ([-4, -4], [48, 112]),
        ([4.0, 4], [48, 112]),
        ("44", [48, 112]),
        (None, [48, 112]),
        ([1] * 100_000, [48, 112]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_extents(path, shape, offsets):
    header, data = plausible(about())
    header["weight_hh_l0"] |= {"shape": shape, "data_offsets": offsets}
    written(path, header, data)
    refused_in_little_memory(path)


@pytest.mark.parametrize("length", [0, 1, 7, 2**20, 2**20 + 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_of_the_header(path, length):
    header, data = plausible(about())
    written(path, header, data, length)
    refused_in_little_memory(path)


def test_a_header_as_large_as_its_file(path):
    for filling in (b" ", b"[", b'{"', b"\xff"):
        written(path, filling * (2**22 // len(filling)))
        refused_in_little_memory(path, "header")


def test_names_that_come_twice(path):
    """Whichever is taken, its bytes must be there."""
    header, data = plausible(about())
    text = json.dumps(header).encode()
    again = b',"weight_hh_l0":{"dtype":"F32","shape":[1048576,1048576],"data_offsets":[48,4398046511152]}}'
    written(path, text[:-1] + again, data)
    refused_in_little_memory(path)
