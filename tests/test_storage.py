"""Layers in files: the same bits come back, in no more memory than they take; a failure to save leaves what was
there."""

import os
import re
import stat
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from files import SIZES, drawn
from helpers import assert_same_bits, make, run_script

from fastrnn import storage

safetensors_numpy = pytest.importorskip("safetensors.numpy")

LAYERS = [
    ("RNN", {"nonlinearity": "relu", "bias": False}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "peephole": True, "dropout": 0.25}),
    ("LSTM", {"coupled": True, "batch_first": True}),
    ("LSTM", {"forget_gate": False, "proj_size": 0}),
    ("GRU", {"num_layers": 3, "reset_after": False}),
    ("CEC", {"num_layers": 2, "bidirectional": True, "readout": "tanh"}),
    ("TDNN", {"num_layers": 2, "context": [-3, 0, 1]}),
]


def only(path):
    """Nothing else is left in its folder."""
    return os.listdir(path.parent) == [path.name]


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_stays(tmp_path, rng):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        storage.save(path, "RNN", SIZES, drawn("RNN", SIZES, rng))
    assert path.is_fifo()
    assert only(path)


def test_a_null_character_in_a_path(rng):
    with pytest.raises(ValueError, match=r"^path: expected a path without a null character"):
        storage.save("a\0b", "RNN", SIZES, drawn("RNN", SIZES, rng))
    with pytest.raises(FileNotFoundError, match=r"none/layer\.safetensors'$"):
        storage.save("none/layer.safetensors", "RNN", SIZES, drawn("RNN", SIZES, rng))


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
