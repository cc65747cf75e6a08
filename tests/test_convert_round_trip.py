"""Parameters of other libraries: the same bits after a conversion and back, from either side; copies, of any layout."""

import numpy as np
import pytest
from formats import EVERY, HIDDEN, PROJECTED, Case, drawn, leaves, pair
from helpers import assert_same_bits

from fastrnn import convert


def refilled(tree, rng):
    """The same tree with other numbers, zeros of both signs, infinities and NaN among them; blocks of zeros remain."""
    for _, a in leaves(tree):
        assert a.flags.c_contiguous
        assert a.flags.owndata or a.base.flags.owndata
        special = np.array([-0.0, 0.0, np.inf, np.nan, 1e-310, -1e-45])
        values = np.where(rng.random(a.shape) < 0.2, rng.choice(special, a.shape), rng.standard_normal(a.shape))
        with np.errstate(under="ignore"):
            a[...] = np.where(a == 0, a, values)
    return tree


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_from_a_format_and_back_bit_for_bit(name, case, dtype, rng):
    to, back = pair(name, case)
    theirs = refilled(to(drawn(case, rng, dtype)), rng)
    kept = {path: a.copy() for path, a in leaves(theirs)}
    state_dict = back(theirs)
    assert all(a.flags.c_contiguous and a.dtype == dtype for a in state_dict.values())
    assert_same_bits(dict(leaves(to(state_dict))), kept)
    for a in state_dict.values():  # they are copies
        a[...] = 0
    assert_same_bits(dict(leaves(theirs)), kept)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_arrays_of_any_layout(name, case, rng):
    to, _ = pair(name, case)
    state_dict = drawn(case, rng)
    theirs = to({p: np.asfortranarray(a) if a.ndim == 2 else np.repeat(a, 2)[::2] for p, a in state_dict.items()})
    assert all(a.flags.c_contiguous for _, a in leaves(theirs))
    assert_same_bits(dict(leaves(theirs)), dict(leaves(to(state_dict))))


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_from_a_state_dict_and_back(name, case, dtype, rng):
    to, back = pair(name, case)
    state_dict = drawn(case, rng, dtype)
    kept = {path: a.copy() for path, a in state_dict.items()}
    theirs = to(state_dict)
    got = back(theirs)
    for _, a in leaves(theirs):  # they are copies
        a[...] = 0
    assert_same_bits(state_dict, kept)
    if name == "flax" and not case.bias:
        assert not any(got.pop(name).any() for name in list(got) if name.startswith("bias"))
    both_biases = name == "onnx" or (name == "keras" and case.options.get("reset_after"))
    if case.bias and not both_biases:
        n = -HIDDEN if case.cell == "GRU" and case.options.get("reset_after", True) else None
        for b_ih in [b for b in state_dict if b.startswith("bias_ih")]:
            b_hh = b_ih.replace("ih", "hh")
            kept[b_ih][:n] += kept[b_hh][:n]
            kept[b_hh][:n] = 0
    assert_same_bits(got, kept)


def test_parameters_of_a_converted_layer_are_named_and_ordered_as_a_layers(rng):
    case = Case("LSTM", {"peephole": True, "proj_size": PROJECTED}, 2, True)
    state_dict = drawn(case, rng)
    got = convert.from_onednn(convert.to_onednn(state_dict, "LSTM"), "LSTM")
    assert list(got) == list(state_dict)
