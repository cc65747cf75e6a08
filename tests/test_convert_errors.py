"""Parameters of other libraries: what is refused, and what the error names."""

import re

import numpy as np
import pytest
from formats import EVERY, FORMATS, INPUTS, PROJECTED, Case, drawn, leaves, pair

import fastrnn
from fastrnn import convert


def refused(error, call, *parts):
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), f"no {part!r} in: {caught.value}"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cell", ["lstm", "CEC", "TDNN", None, 3])
def test_unknown_cells(name, cell):
    to, back, _ = FORMATS[name]
    refused(ValueError, lambda: to({}, cell), "cell", "'LSTM'", repr(cell))
    refused(ValueError, lambda: back([], cell), "cell", "'LSTM'", repr(cell))


@pytest.mark.parametrize("name", FORMATS)
def test_state_dicts_that_are_none(name, rng):
    to = FORMATS[name][0]
    good = drawn(Case("LSTM", {}, 2, True), rng)
    refused(ValueError, lambda: to({}, "LSTM"), "state_dict", "'weight_ih_l0'", "none")
    for key in good:
        if key != "weight_ih_l1":
            refused(ValueError, lambda key=key: to({k: a for k, a in good.items() if k != key}, "LSTM"), "state_dict")
        refused(
            ValueError, lambda key=key: to(good | {key: good[key][:-1]}, "LSTM"), "state_dict", "expected shape", key
        )
        refused(
            ValueError, lambda key=key: to(good | {key: good[key][None]}, "LSTM"), "state_dict", "expected shape", key
        )
        refused(TypeError, lambda key=key: to(good | {key: good[key] * 1j}, "LSTM"), key, "complex128")
        refused(TypeError, lambda key=key: to(good | {key: good[key].astype(int)}, "LSTM"), key, "int64")
    refused(ValueError, lambda: to(good | {"weight_ih_l3": good["weight_ih_l1"]}, "LSTM"), "'weight_ih_l3'")
    refused(ValueError, lambda: to(good | {0: 1}, "LSTM"), "expected no key 0")
    for cell in ("RNN", "GRU"):
        refused(ValueError, lambda cell=cell: to(good, cell), "state_dict", "expected shape")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("given", [None, 3, [1], "weights", fastrnn.RNN(2, 3)], ids=lambda x: type(x).__name__)
def test_what_is_no_state_dict(name, given):
    message = "expected a mapping of names to arrays"
    refused(TypeError, lambda: FORMATS[name][0](given, "RNN"), f"state_dict: {message}", type(given).__name__)


def test_flags_that_are_none(rng):
    gru, lstm = drawn(Case("GRU"), rng), drawn(Case("LSTM"), rng)
    refused(TypeError, lambda: convert.to_keras(gru, "GRU", reset_after="no"), "reset_after: expected True or False")
    refused(TypeError, lambda: convert.from_keras([], "GRU", reset_after=None), "reset_after: expected True or False")
    refused(TypeError, lambda: convert.to_onnx(lstm, "LSTM", coupled="no"), "coupled: expected True or False")


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("keras", {"peephole": True}, "Keras"),
        ("keras", {"proj_size": PROJECTED}, "Keras"),
        ("flax", {"peephole": True}, "Flax"),
        ("flax", {"proj_size": PROJECTED}, "Flax"),
        ("onnx", {"proj_size": PROJECTED}, "ONNX"),
        *((name, {"forget_gate": False}, "expected shape") for name in FORMATS),
        *((name, {"coupled": True}, "expected shape") for name in FORMATS),
    ],
)
def test_what_a_format_does_not_have(name, options, word, rng):
    refused(ValueError, lambda: FORMATS[name][0](drawn(Case("LSTM", options), rng), "LSTM"), "state_dict", word)


def test_another_kind_of_cell_is_named(rng):
    coupled, gru = drawn(Case("LSTM", {"coupled": True}), rng), drawn(Case("GRU"), rng)
    refused(ValueError, lambda: convert.to_onnx(coupled, "LSTM"), "state_dict['weight_ih_l0']", "4 blocks", "'LSTM'")
    refused(ValueError, lambda: convert.to_onnx(gru, "RNN"), "state_dict['weight_ih_l0']", "1 blocks", "'RNN'")
    full = drawn(Case("LSTM"), rng)
    refused(ValueError, lambda: convert.to_onnx(full, "LSTM", coupled=True), "3 blocks", "a coupled LSTM")


def test_coupled_is_for_the_lstm(rng):
    state_dict = drawn(Case("GRU"), rng)
    refused(ValueError, lambda: convert.to_onnx(state_dict, "GRU", coupled=True), "coupled", "GRU")
    refused(ValueError, lambda: convert.from_onnx([], "RNN", coupled=True), "coupled", "RNN")


@pytest.mark.parametrize(
    ("name", "what"), [("keras", "weights"), ("onnx", "nodes"), ("flax", "layers"), ("onednn", "layers")]
)
def test_what_is_no_list_of_layers(name, what, rng):
    to, back, _ = FORMATS[name]
    good = to(drawn(Case("LSTM", {}, 2, True), rng), "LSTM")
    refused(ValueError, lambda: back([], "LSTM"), what, "none")
    refused(TypeError, lambda: back(None, "LSTM"), what, "NoneType")
    refused(TypeError, lambda: back({0: 1}, "LSTM"), what, "dict")
    refused(TypeError, lambda: back([good[0], None], "LSTM"), f"{what}[1]", "NoneType")
    refused(ValueError, lambda: back([good[1], good[0]], "LSTM"), f"{what}[1]", str(INPUTS))
    one = to(drawn(Case("LSTM", {}, 1, False), rng), "LSTM")
    refused(ValueError, lambda: back([good[0], one[0]], "LSTM"), f"{what}[1]")
    without = to(drawn(Case("LSTM", {}, 2, True, False), rng), "LSTM")
    if name != "flax":
        refused(ValueError, lambda: back([good[0], without[1]], "LSTM"), f"{what}[1]", "bias")
    refused(ValueError, lambda: back(good, "GRU"), f"{what}[0]", "expected")


def replaced(tree, path, value):
    """A copy of nested lists, tuples and dicts with another leaf."""
    if not path:
        return value
    parts = dict(enumerate(tree)) if isinstance(tree, (list, tuple)) else dict(tree)
    parts[path[0]] = replaced(parts[path[0]], path[1:], value)
    return type(tree)(parts.values()) if isinstance(tree, (list, tuple)) else parts


@pytest.mark.parametrize(("name", "case"), [p for p in EVERY if p.values[1].num_layers == 1 and p.values[1].bias])
def test_arrays_of_a_wrong_shape(name, case, rng):
    to, back = pair(name, case)
    good = to(drawn(case, rng))
    back(good)
    for where, a in leaves(good):
        path = [int(key) if key.isdigit() else key.strip("'") for key in re.findall(r"\[(\w+|'\w+')\]", where)]
        assert path
        place = path[-1] if isinstance(path[-1], str) else f"[{path[-1]}]"
        for axis in range(a.ndim):
            wrongs = [np.take(a, [], axis=axis)]
            if a.shape[axis] != INPUTS:  # which may be any number
                wrongs.append(np.repeat(a, 2, axis=axis))
            for wrong in wrongs:
                refused(ValueError, lambda wrong=wrong, path=path: back(replaced(good, path, wrong)), "expected")
        refused(ValueError, lambda path=path: back(replaced(good, path, 1.0)), "expected", place, "got ()")
        refused(TypeError, lambda path=path, a=a: back(replaced(good, path, a.astype("U"))), place, "U")


@pytest.mark.parametrize("D", [0, 3])
def test_a_wrong_number_of_directions(D, rng):
    (node,), ((tree,),) = (to(drawn(Case("RNN"), rng), "RNN") for to in (convert.to_onnx, convert.to_flax))
    refused(ValueError, lambda: convert.from_flax([[tree] * D], "RNN"), "layers[0]", "directions", f"got {D}")
    node = {name: np.repeat(a, D, axis=0) for name, a in node.items()}
    refused(ValueError, lambda: convert.from_onnx([node], "RNN"), "nodes[0]", f"got {D}" if D else "got (0,")


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_keras_arrays_of_a_wrong_number(count):
    refused(ValueError, lambda: convert.from_keras([[np.ones((2, 2))] * count], "LSTM"), "weights[0]", str(count))


@pytest.mark.parametrize("name", ["keras", "onednn"])
@pytest.mark.parametrize("reset_after", [False, True])
def test_the_two_forms_of_the_gru_have_other_biases(name, reset_after, rng):
    to, back, _ = FORMATS[name]
    converted = to(drawn(Case("GRU"), rng), "GRU", reset_after=reset_after)
    refused(ValueError, lambda: back(converted, "GRU", reset_after=not reset_after), "bias", "expected shape")


@pytest.mark.parametrize(("name", "key"), [("onnx", "W"), ("onnx", "R"), ("onednn", "weights_layer"), ("flax", "hi")])
def test_keys_that_are_missing_or_unknown(name, key, rng):
    to, back, _ = FORMATS[name]
    good = to(drawn(Case("LSTM"), rng), "LSTM")
    entry, wrap = (good[0][0], lambda e: [(e,)]) if name == "flax" else (good[0], lambda e: [e])
    missing = {k: v for k, v in entry.items() if k != key}
    refused(ValueError, lambda: back(wrap(missing), "LSTM"), "expected the keys", key)
    refused(ValueError, lambda: back(wrap(entry | {"other": 0}), "LSTM"), "expected the keys", "other")


def test_biases_of_flax_stand_where_its_cells_have_them(rng):
    tree = convert.to_flax(drawn(Case("LSTM"), rng), "LSTM")[0][0]
    biases = {name for name, arrays in tree.items() if "bias" in arrays}
    assert biases == {"hi", "hf", "hg", "ho"}
    tree["ii"]["bias"] = tree["hi"].pop("bias")
    refused(ValueError, lambda: convert.from_flax([[tree]], "LSTM"), "layers[0][0]", "kernel, bias")
