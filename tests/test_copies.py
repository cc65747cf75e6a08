"""Layers are copied and pickled whole, and their parameters stay their own."""

import copy
import inspect
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


def test_what_refers_to_the_parameters_refers_to_those_of_a_deep_copy():
    layer = fastrnn.RNN(3, 4)
    layer.optimizer = fastrnn.train.SGD(layer.params, 0.1)
    other = copy.deepcopy(layer)
    assert all(other.optimizer.params[name] is value for name, value in other.params.items())


def test_arrays_that_a_pickle_only_lends(backend, rng):
    """With buffers out of band they are read-only, and may lie at any address."""
    layer = backend.GRU(3, 4)
    buffers = []
    stream = pickle.dumps(layer, protocol=5, buffer_callback=buffers.append)
    odd = [memoryview(b"." + buffer.raw().tobytes())[1:] for buffer in buffers]
    other = pickle.loads(stream, buffers=odd)
    x = rng.standard_normal((5, 2, 3))
    assert np.array_equal(other(x)[0], layer(x)[0])
    for value in other.params.values():
        assert value.flags.aligned
        value += 1


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


def test_values_that_are_parameters_themselves():
    """All are read before the first is written."""
    layer = fastrnn.RNN(3, 3, bidirectional=True, seed=0)
    before = layer.state_dict()
    other = {name: name.removesuffix("_reverse") if name.endswith("_reverse") else name + "_reverse" for name in before}
    layer.load_state_dict({other[name]: value for name, value in layer.params.items()})
    assert all(np.array_equal(layer.params[other[name]], value) for name, value in before.items())
    layer.params |= {other[name]: value for name, value in layer.params.items()}
    assert all(np.array_equal(layer.params[name], value) for name, value in before.items())


def test_options_stay_as_they_were_when_the_layer_was_made(backend, row):
    """But for two that calls read; a subclass and a user may add to a layer what they like, and change that."""
    layer = make(row, backend, 3, 4)
    for name in (*inspect.signature(getattr(backend, row.cls)).parameters, "num_directions"):
        if name not in ("dropout", "batch_first", "seed", "init"):
            with pytest.raises(AttributeError, match=f"^{name}: "):
                setattr(layer, name, getattr(layer, name))
    layer.dropout = 0.5
    layer.seed = layer.note = 1
    layer.seed = layer.note = 2
    other = copy.deepcopy(layer)
    assert (other.dropout, other.seed, other.note) == (0.5, 2, 2)


def test_frozen_layers_and_tapes_are_their_own_copies(backend, row):
    layer = make(row, backend, 3, 4)
    for one in (layer.frozen(), layer.forward(np.ones((5, 2, 3)))[2]):
        assert copy.copy(one) is copy.deepcopy(one) is one
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(one)


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
    layer.params["bias_hh_l0"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^bias_hh_l0: .*read-only"):
        layer.load_state_dict(ones)
    assert not any((value == 1).any() for value in layer.params.values())
    layer.params["bias_hh_l0"].flags.writeable = True
    layer.params |= ones
    assert all((value == 1).all() for value in layer.params.values())


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (1.5, TypeError), ("a", TypeError), (np.random.RandomState(1), TypeError), (True, TypeError)],
)
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
