"""`fastrnn` and `fastrnn.reference`: the same names with the same signatures."""

import importlib
import inspect

import numpy as np
import pytest
from helpers import ROWS, make

import fastrnn
from fastrnn import reference


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def callables(module):
    names = getattr(module, "__all__", public(module))
    return {
        name for name in names if inspect.isclass(getattr(module, name)) or inspect.isroutine(getattr(module, name))
    }


SHARED = sorted(callables(fastrnn) & callables(reference))
CLASSES = sorted({row.cls for row in ROWS})


def parameters(function):
    """Names, kinds and defaults; annotations are for readers."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def methods(cls):
    names = public(cls) | {"__call__"}
    return {name for name in names if inspect.isroutine(inspect.getattr_static(cls, name, None))}


@pytest.mark.parametrize("name", ["convert", "initial", "train", "train.losses"])
def test_modules_are_imported_from_both(name):
    assert importlib.import_module(f"fastrnn.reference.{name}") is importlib.import_module(f"fastrnn.{name}")


def test_every_layer_is_in_both():
    assert set(CLASSES) <= set(SHARED)
    assert all(name in fastrnn.__all__ for name in CLASSES)


@pytest.mark.parametrize("name", SHARED)
def test_constructors_and_functions(name):
    assert parameters(getattr(fastrnn, name)) == parameters(getattr(reference, name))


@pytest.mark.parametrize("name", CLASSES)
def test_methods(name):
    ours, theirs = getattr(fastrnn, name), getattr(reference, name)
    assert methods(ours) == methods(theirs)
    assert {"__call__", "forward", "backward", "step", "frozen", "state_dict", "load_state_dict"} <= methods(ours)
    for method in methods(ours):
        assert parameters(getattr(ours, method)) == parameters(getattr(theirs, method)), method


def test_instances(row):
    ours, theirs = (make(row, backend, 3, 4) for backend in (fastrnn, reference))
    assert public(ours) == public(theirs)
    assert public(ours.frozen()) == public(theirs.frozen())
    for method in ("__call__", "step"):
        assert parameters(getattr(ours.frozen(), method)) == parameters(getattr(theirs.frozen(), method))
    x = np.ones((5, 2, 3))
    (_, _, tape), (_, _, other) = ours.forward(x), theirs.forward(x)
    for name in ("h", "c", "gates"):
        assert hasattr(tape, name) == hasattr(other, name) == (name in row.records)
    assert public(ours.backward(tape)) == public(theirs.backward(other)) >= {"x", "state", "params"}


OWN_OPTIONS = {
    "RNN": {"nonlinearity": "tanh"},
    "LSTM": {"proj_size": 0, "peephole": False, "forget_gate": True, "coupled": False},
    "GRU": {"reset_after": True},
    "CEC": {"nonlinearity": "tanh", "readout": "identity"},
    "TDNN": {"context": (-2, -1, 0, 1, 2), "nonlinearity": "relu"},
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_constructor_is_the_contracts(name):
    common = inspect.signature(getattr(fastrnn, name)).parameters
    expected = {
        "input_size": inspect.Parameter.empty,
        "hidden_size": inspect.Parameter.empty,
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "dtype": np.float32,
        "seed": None,
    } | OWN_OPTIONS[name]
    assert {key: common[key].default for key in expected} == expected
    positional = [key for key, p in common.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["input_size", "hidden_size", "num_layers"]


@pytest.mark.parametrize("name", CLASSES)
def test_the_calls_are_the_contracts(name, backend):
    cls = getattr(backend, name)
    keyword = inspect.Parameter.KEYWORD_ONLY
    calls = {
        "__call__": (["x", "state"], ["lengths"]),
        "forward": (["x", "state"], ["lengths", "checkpoint_every", "rng"]),
        "backward": (["tape", "dy", "dstate"], []),
        "step": (["x_t", "state"], []),
    }
    for method, (positional, keywords) in calls.items():
        _, *given = inspect.signature(getattr(cls, method)).parameters.values()  # without self
        assert [p.name for p in given if p.kind is not keyword] == positional, method
        assert {p.name for p in given if p.kind is keyword} >= set(keywords), method
        assert all(p.default is None for p in given if p.name not in ("x", "x_t", "tape")), method
