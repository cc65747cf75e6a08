"""Layers are copied and pickled whole, and their parameters stay their own."""

import copy
import pickle

import numpy as np
import pytest
from helpers import make

import fastrnn

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_computes_the_same_and_is_independent(backend, row, way, rng):
    layer = make(row, backend, 3, 4)
    other = WAYS[way](layer)
    x = rng.standard_normal((5, 2, 3))
    before = layer(x)[0].copy()
    assert repr(other) == repr(layer)
    assert np.array_equal(other(x)[0], before)
    for value in other.params.values():
        value += 1
    assert np.array_equal(layer(x)[0], before)


class Named(fastrnn.GRU):
    """A layer with a constructor and an attribute of its own."""

    def __init__(self, name):
        super().__init__(3, 4, bidirectional=True)
        self.name = name


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_has_what_a_subclass_and_its_user_added(way, rng):
    layer = Named("encoder")
    layer.note = ["of a user"]
    other = WAYS[way](layer)
    x = rng.standard_normal((5, 2, 3))
    assert type(other) is Named
    assert (other.name, other.note) == ("encoder", ["of a user"])
    assert np.array_equal(other(x)[0], layer(x)[0])


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_with_the_same_masks(backend, way, rng):
    layer = backend.GRU(3, 4, num_layers=2, dropout=0.5, seed=1)
    x = rng.standard_normal((5, 2, 3))
    layer.forward(x)
    other = WAYS[way](layer)
    assert np.array_equal(layer.forward(x)[0], other.forward(x)[0])


@pytest.mark.parametrize("way", WAYS)
def test_parameters_alone_become_a_dict(backend, way):
    layer = backend.RNN(3, 4)
    kept = WAYS[way](layer.params)
    assert type(kept) is dict
    assert {name: value.tolist() for name, value in kept.items()} == {
        name: value.tolist() for name, value in layer.params.items()
    }
    assert all((kept[name] is value) == (way == "copy") for name, value in layer.params.items())


def test_parameters_cannot_be_exchanged():
    layer = fastrnn.RNN(3, 4)
    with pytest.raises(AttributeError, match=r"^params: "):
        layer.params = {}


def test_parameters_are_all_changed_or_none():
    layer = fastrnn.RNN(3, 4)
    ones = {name: np.ones_like(value) for name, value in layer.params.items()}
    with pytest.raises(ValueError, match=r"^bias_hh_l0: expected shape \(4,\), got \(5,\)"):
        layer.params.update(ones | {"bias_hh_l0": np.ones(5)})
    assert not any((value == 1).any() for value in layer.params.values())
    layer.params |= ones
    assert all((value == 1).all() for value in layer.params.values())


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.5, TypeError), ("a", TypeError)])
def test_a_bad_seed_is_named(seed, error):
    with pytest.raises(error, match=r"^seed: "):
        fastrnn.RNN(3, 4, seed=seed)


def test_an_optimiser_wants_what_it_can_update():
    fixed = np.broadcast_to(1.0, 2)
    with pytest.raises(ValueError, match=r"^params\['a'\]: .*read-only"):
        fastrnn.train.SGD({"a": fixed}, 0.1)
    with pytest.raises(TypeError, match=r"^params: "):
        fastrnn.train.SGD([fixed], 0.1)
    with pytest.raises(TypeError, match=r"^grads: "):
        fastrnn.train.SGD({"a": np.ones(2)}, 0.1).step(None)


def test_the_reference_offers_all_that_the_package_does():
    assert set(fastrnn.__all__) - {"reference"} == set(fastrnn.reference.__all__)
