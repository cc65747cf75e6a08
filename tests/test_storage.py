"""Layers in files: the same bits come back; what is damaged or hostile is refused and takes no memory; a failure to
save leaves what was there."""

import itertools
import json
import os
import re
import stat
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, make, run_script

from fastrnn import storage

safetensors_numpy = pytest.importorskip("safetensors.numpy")

SIZES = {"input_size": 3, "hidden_size": 4}
LAYERS = [
    ("RNN", {"nonlinearity": "relu", "bias": False}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "peephole": True, "dropout": 0.25}),
    ("LSTM", {"coupled": True, "batch_first": True}),
    ("LSTM", {"forget_gate": False, "proj_size": 0}),
    ("GRU", {"num_layers": 3, "reset_after": False}),
    ("CEC", {"num_layers": 2, "bidirectional": True, "readout": "tanh"}),
    ("TDNN", {"num_layers": 2, "context": [-3, 0, 1]}),
]


def drawn(class_name, options, rng):
    """Parameters with zeros of both signs, infinities and NaN among them."""
    special = np.array([-0.0, np.inf, -np.inf, np.nan])
    return {
        name: np.where(rng.random(shape) < 0.1, rng.choice(special, shape), rng.standard_normal(shape)).astype(
            options.get("dtype", "float32")
        )
        for name, shape in storage.parameter_shapes(class_name, options)
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


def only(path):
    """Nothing else is left in its folder."""
    return os.listdir(path.parent) == [path.name]


def refused(path, *parts):
    with pytest.raises(ValueError, match=r"expected a layer that fastrnn saved") as caught:
        storage.load(path)
    for part in (str(path), *parts):
        assert part in str(caught.value), f"no {part!r} in: {caught.value}"


# ---- What is saved comes back. ----


@pytest.mark.parametrize(("class_name", "options"), LAYERS)
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_round_trip(class_name, options, dtype, path, rng):
    options = SIZES | options | ({"dtype": dtype} if dtype else {})
    params = drawn(class_name, options, rng)
    storage.save(path, class_name, options, params)
    assert only(path)
    for given in (path, str(path)):
        got_name, got_options, got = storage.load(given)
        assert (got_name, got_options) == (class_name, options)
        assert list(got) == list(params)
        assert_same_bits(got, params)
        assert all(p.flags.writeable and p.flags.aligned and p.flags.c_contiguous for p in got.values())


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_parameters_that_options_imply_are_a_layers(backend, row, num_layers, bidirectional, bias):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    layer = make(row, backend, 3, 5, **options)
    implied = storage.parameter_shapes(row.cls, {"input_size": 3, "hidden_size": 5} | options | row.options_for(5))
    assert list(implied) == [(name, p.shape) for name, p in layer.params.items()]


@pytest.mark.parametrize("class_name", ["RNN", "LSTM", "GRU", "CEC", "TDNN"])
def test_options_that_are_left_out_have_a_layers_defaults(backend, class_name):
    layer = getattr(backend, class_name)(3, 5)
    implied = storage.parameter_shapes(class_name, {"input_size": 3, "hidden_size": 5})
    assert list(implied) == [(name, p.shape) for name, p in layer.params.items()]


def test_a_plain_safetensors_file(path, rng):
    params = drawn("GRU", SIZES, rng)
    storage.save(path, "GRU", SIZES, params)
    assert_same_bits(dict(sorted(safetensors_numpy.load_file(path).items())), dict(sorted(params.items())))


def test_equal_layers_make_equal_files(path, rng):
    params = drawn("LSTM", SIZES, rng)
    files = set()
    for order in (params, dict(reversed(params.items()))):
        storage.save(path, "LSTM", SIZES, order)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_arrays_of_any_layout(path, rng):
    params = drawn("LSTM", SIZES, rng)
    odd = {name: np.repeat(p, 2, axis=0)[::2] if p.ndim == 1 else np.asfortranarray(p) for name, p in params.items()}
    assert not any(p.flags.c_contiguous for p in odd.values())
    storage.save(path, "LSTM", SIZES, odd)
    assert_same_bits(storage.load(path)[2], params)


def test_relative_paths(path, rng, monkeypatch):
    monkeypatch.chdir(path.parent)
    params = drawn("RNN", SIZES, rng)
    storage.save(path.name, "RNN", SIZES, params)
    assert only(path)
    assert_same_bits(storage.load(Path(path.name))[2], params)


# ---- Saving is all or nothing. ----


@pytest.fixture
def saved(path, rng):
    """A file that must be as before after the test."""
    storage.save(path, "RNN", SIZES, drawn("RNN", SIZES, rng))
    before = path.read_bytes()
    yield path
    assert only(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", [(safetensors_numpy, "save_file"), (os, "replace"), (os, "fsync"), (os, "chmod")])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
def test_a_failure_leaves_the_old_file(saved, step, error, rng, monkeypatch):
    def fail(*arguments):
        raise error("no")

    monkeypatch.setattr(*step, fail)
    with pytest.raises(error):
        storage.save(saved, "RNN", SIZES, drawn("RNN", SIZES, rng))
    monkeypatch.undo()


def test_a_full_disk(saved):
    script = """
import resource, sys
import numpy as np
from fastrnn import storage
options = {"input_size": 100, "hidden_size": 100}
params = {name: np.ones(shape, np.float32) for name, shape in storage.parameter_shapes("RNN", options)}
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    storage.save(sys.argv[1], "RNN", options, params)
except OSError as error:
    print(type(error).__name__, error)
"""
    assert str(saved) in run_script(script, str(saved))


@pytest.mark.parametrize(
    ("class_name", "options", "parts"),
    [
        ("RNN", SIZES | {"hidden_size": 5}, ["weight_ih_l0", "(5, 3)", "(4, 3)"]),
        ("RNN", SIZES | {"num_layers": 2}, ["weight_ih_l1"]),
        ("RNN", SIZES | {"bias": False}, ["bias_hh_l0"]),
        ("RNN", SIZES | {"dtype": "float64"}, ["float64", "float32"]),
        ("Elman", SIZES, ["class", "Elman"]),
        ("RNN", {"input_size": 3}, ["hidden_size"]),
        ("RNN", SIZES | {"note": "x" * 2**20}, ["header"]),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(saved, class_name, options, parts, rng):
    with pytest.raises(ValueError, match="not saved") as caught:
        storage.save(saved, class_name, options, drawn("RNN", SIZES, rng))
    assert all(part in str(caught.value) for part in [str(saved), *parts]), caught.value


def test_options_that_json_does_not_hold(saved, rng):
    with pytest.raises(TypeError):
        storage.save(saved, "RNN", SIZES | {"dtype": np.float32}, drawn("RNN", SIZES, rng))


def test_permissions(path, rng):
    params = drawn("RNN", SIZES, rng)
    previous = os.umask(0o027)
    try:
        storage.save(path, "RNN", SIZES, params)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        storage.save(path, "RNN", SIZES, params)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(previous)


def test_a_link_stays_one(path, rng):
    link = path.with_name("link")
    link.symlink_to(path)
    params = drawn("RNN", SIZES, rng)
    for _ in range(2):
        storage.save(link, "RNN", SIZES, params)
        assert link.is_symlink()
        assert not path.is_symlink()
    assert_same_bits(storage.load(path)[2], params)


# ---- What cannot be a path, or has nothing to read. ----


@pytest.mark.parametrize("bad", [None, 3, b"layer", ["layer"], 1.5], ids=str)
def test_what_is_no_path(bad):
    with pytest.raises(TypeError, match=r"^path: "):
        storage.load(bad)
    with pytest.raises(TypeError, match=r"^path: "):
        storage.save(bad, "RNN", SIZES, {})


def test_files_that_are_not_there(path):
    with pytest.raises(FileNotFoundError):
        storage.load(path)
    with pytest.raises(OSError, match=re.escape(str(path.parent))):
        storage.load(path.parent)
    with pytest.raises(FileNotFoundError):
        storage.save(path / "layer", "RNN", SIZES, {})


def test_without_safetensors(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: storage.load(saved), lambda: storage.save(saved, "RNN", SIZES, {})):
        with pytest.raises(ImportError, match=r"pip install 'fastrnn\[safetensors\]'"):
            call()


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


def written(path, header, data=b"", length=None):
    """A file of that header, an object or bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


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


def test_loading_takes_the_memory_of_the_parameters(path, rng):
    options = {"input_size": 500, "hidden_size": 500}
    params = drawn("RNN", options, rng)
    storage.save(path, "RNN", options, params)
    tracemalloc.start()
    try:
        loaded = storage.load(path)[2]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_same_bits(loaded, params)
    assert peak < sum(p.nbytes for p in params.values()) + 2**20
