"""Bad input: an error that names the argument, what was expected and what came; nothing half-changed."""

import re

import numpy as np
import pytest
from helpers import assert_same_bits, enliven, infer, make, normal, using_threads

import fastrnn
from fastrnn import _core

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4


def refused(call, *parts):
    """`call` raises, and its message holds every part: a regular expression, matched at the ends of words."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert re.search(rf"(?<!\w)(?:{part})(?!\w)", message), f"no {part!r} in: {message}"


def shape(*dims):
    """A shape as a message shows it."""
    return re.escape(str(dims))


@pytest.fixture
def layer(backend, row, rng):
    """A layer that must be the same after the test as before."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, dtype=np.float64), row, rng)
    x, kept = normal(rng, (STEPS, BATCH, INPUTS)), layer.state_dict()
    want = infer(layer, x)
    yield layer
    assert_same_bits(layer.params, kept)
    assert_same_bits(infer(layer, x), want)


@pytest.fixture
def x():
    return np.ones((STEPS, BATCH, INPUTS))


def every_call(layer):
    """What takes x, state and lengths."""
    return layer, layer.forward, layer.frozen()


# What is no array of real numbers, and the words for what came.
NOT_REAL = [
    (lambda s: np.ones(s, np.complex128), "complex128"),
    (lambda s: np.ones(s, np.complex64), "complex64"),
    (lambda s: np.full(s, "1"), r"[<>]U1|str\w*"),
    (lambda s: np.full(s, b"1"), r"[|]?S1|bytes\w*"),
    (lambda s: np.ones(s, object), "object"),
    (lambda s: np.ones(s, "M8[s]"), r"datetime64\S*|[<>]M8\S*"),
]
NOT_REAL_IDS = ["complex128", "complex64", "str", "bytes", "object", "datetime"]


@pytest.mark.parametrize("dims", [(), (3,), (1, 5, 2, 3)], ids=str)
def test_rank_of_x(layer, dims):
    for call in every_call(layer):
        refused(lambda call=call: call(np.ones(dims)), "x", shape(*dims))


@pytest.mark.parametrize("dims", [(5, 2, 7), (5, 7), (0, 2, 7), (5, 2, 0)], ids=str)
def test_last_dimension_of_x(layer, dims):
    for call in every_call(layer):
        refused(lambda call=call: call(np.ones(dims)), "x", str(INPUTS), shape(*dims))


@pytest.mark.parametrize("dims", [(), (3,), (2, 7), (5, 2, 3)], ids=str)
def test_shape_of_x_t(layer, dims):
    for step in (layer.step, layer.frozen().step):
        refused(lambda step=step: step(np.ones(dims)), "x_t", str(INPUTS), shape(*dims))


@pytest.mark.parametrize(("bad", "came"), NOT_REAL, ids=NOT_REAL_IDS)
def test_dtype_of_arrays(layer, x, bad, came):
    y, state, tape = layer.forward(x)
    for call in every_call(layer):
        refused(lambda call=call: call(bad(x.shape)), "x", came)
        refused(lambda call=call: call(x, bad(state.shape)), "state", came)
    for step in (layer.step, layer.frozen().step):
        refused(lambda step=step: step(bad(x[0].shape)), "x_t", came)
        refused(lambda step=step: step(x[0], bad(state.shape)), "state", came)
    refused(lambda: layer.backward(tape, bad(y.shape)), "dy", came)
    refused(lambda: layer.backward(tape, y, bad(state.shape)), "dstate", came)
    first = next(iter(layer.params))
    refused(lambda: layer.load_state_dict({**layer.params, first: bad(layer.params[first].shape)}), first, came)


@pytest.mark.parametrize("x", [None, "text", {}, [[1.0], [2.0, 3.0]]], ids=["None", "text", "dict", "uneven"])
def test_x_that_is_no_array(layer, x):
    for call in every_call(layer):
        refused(lambda call=call: call(x), "x")


@pytest.mark.parametrize("dims", [(), (4,), (2, 4), (1, 3, 4), (1, 2, 5), (2, 2, 4), (1, 1, 2, 4), (2, 1, 4)], ids=str)
def test_shape_of_state(layer, x, dims):
    _, state, tape = layer.forward(x)
    want, came = shape(*state.shape), shape(*dims)
    for call in every_call(layer):
        refused(lambda call=call: call(x, np.ones(dims)), "state", want, came)
    for step in (layer.step, layer.frozen().step):
        refused(lambda step=step: step(x[0], np.ones(dims)), "state", want, came)
    refused(lambda: layer.backward(tape, None, np.ones(dims)), "dstate", want, came)


@pytest.mark.parametrize("dims", [(), (4,), (5, 2), (5, 2, 3), (5, 2, 8), (4, 2, 4), (2, 5, 4), (10, 4)], ids=str)
def test_shape_of_dy(layer, x, dims):
    y, _, tape = layer.forward(x)
    refused(lambda: layer.backward(tape, np.ones(dims)), "dy", shape(*y.shape), shape(*dims))


@pytest.mark.parametrize("dims", [(6, 2, 4), (7, 4), (5, 4), (6, 3)], ids=str)
def test_shape_of_ragged_dy(layer, dims):
    _, _, tape = layer.forward(np.ones((6, INPUTS)), lengths=[4, 2])
    refused(lambda: layer.backward(tape, np.ones(dims)), "dy", shape(6, 4), shape(*dims))


LENGTHS = [
    (5, "5|shape"),
    ([5], r"\(1,\)|1"),
    ([5, 5, 5], r"\(3,\)|3"),
    ([[5, 5]], r"\(1, 2\)"),
    ([-1, 5], "-1"),
    ([5, 6], "6"),
    ([5, 2**40], str(2**40)),
    (np.array([5, 2**63], np.uint64), str(2**63)),
    ([5, -(2**63)], str(-(2**63))),
    ([5, np.nan], "nan|float64"),
    ([5, np.inf], "inf|float64"),
    ([5, 2.5], "2.5|float64"),
    (np.array([5, 2 + 0j]), "complex128"),
    (["5", "2"], r"[<>]U1|str\w*"),
    (np.array([5, None]), "object"),
]


@pytest.mark.parametrize(("lengths", "came"), LENGTHS, ids=[str(lengths) for lengths, _ in LENGTHS])
def test_lengths(layer, x, lengths, came):
    for call in every_call(layer):
        refused(lambda call=call: call(x, lengths=lengths), "lengths", came)


@pytest.mark.parametrize("lengths", [[2, 3], [7], [6, 1], [0, 0], []], ids=str)
def test_lengths_that_do_not_add_up(layer, lengths):
    for call in every_call(layer):
        refused(lambda call=call: call(np.ones((6, INPUTS)), lengths=lengths), "lengths", "6", str(sum(lengths)))


@pytest.mark.parametrize("lengths", [[-1, 7], [np.nan, 6], [2**63 - 1, 2**63 - 1], [[6]]], ids=str)
def test_bad_ragged_lengths(layer, lengths):
    """Also those whose sum would be right, or would overflow."""
    for call in every_call(layer):
        refused(lambda call=call: call(np.ones((6, INPUTS)), lengths=lengths), "lengths")


def test_step_needs_one_direction(backend, row):
    layer = make(row, backend, INPUTS, HIDDEN, bidirectional=True)
    for step in (layer.step, layer.frozen().step):
        refused(lambda step=step: step(np.ones((BATCH, INPUTS))), "bidirectional")


@pytest.mark.parametrize("tape", [None, 3, "tape", (), np.ones(3)], ids=["None", "int", "str", "tuple", "array"])
def test_what_is_no_tape(layer, tape):
    refused(lambda: layer.backward(tape), "tape")


def test_the_tape_of_another_layer(layer, backend, row, x):
    """Even of one that is the same in all but identity, or in size alone."""
    for sizes, options in (
        ((HIDDEN,), {}),
        ((HIDDEN,), {"bidirectional": True}),
        ((HIDDEN + 1,), {}),
        ((HIDDEN, 2), {}),
    ):
        other = make(row, backend, INPUTS, *sizes, dtype=np.float64, **options)
        y, _, tape = other.forward(x)
        refused(lambda tape=tape, y=y: layer.backward(tape, y), "tape")
        other.backward(tape, y)


# ---- Construction. ----

OPTIONS = [
    ("num_layers", 0, "0"),
    ("num_layers", -1, "-1"),
    ("num_layers", 1.5, "1.5|float"),
    ("num_layers", "2", "'?2'?|str"),
    ("dropout", -0.1, "-0.1"),
    ("dropout", 1.5, "1.5"),
    ("dropout", np.nan, "nan"),
    ("dropout", "half", "'?half'?|str"),
    ("dtype", int, r"int\w*"),
    ("dtype", np.int32, "int32"),
    ("dtype", np.float16, "float16"),
    ("dtype", np.complex128, "complex128"),
    ("dtype", "nonsense", "nonsense"),
    ("dtype", ">f4" if np.little_endian else "<f4", ">f4|<f4"),
]


@pytest.mark.parametrize(("name", "value", "came"), OPTIONS, ids=[f"{name}-{value}" for name, value, _ in OPTIONS])
def test_options(backend, row, name, value, came):
    refused(lambda: make(row, backend, INPUTS, HIDDEN, **{name: value}), name, came)


@pytest.mark.parametrize("nonlinearity", ["sine", "", "TANH", None, 3])
def test_nonlinearity(backend, nonlinearity):
    parts = ["nonlinearity", "'?tanh'?", "'?relu'?", "'?logistic'?", "'?identity'?"]
    refused(lambda: backend.RNN(INPUTS, HIDDEN, nonlinearity=nonlinearity), *parts, re.escape(repr(nonlinearity)))


@pytest.mark.parametrize(
    ("value", "came"), [(-1, "-1"), (2.5, "2.5|float"), ("3", "'?3'?|str"), (None, "None|NoneType")]
)
@pytest.mark.parametrize("name", ["input_size", "hidden_size"])
def test_sizes(backend, row, name, value, came):
    sizes = {"input_size": INPUTS, "hidden_size": HIDDEN, name: value}
    refused(lambda: make(row, backend, **sizes), name, came)


def test_no_hidden_units(backend, row):
    refused(lambda: make(row, backend, INPUTS, 0), "hidden_size", "0")


def test_unknown_options(backend, row):
    refused(lambda: make(row, backend, INPUTS, HIDDEN, hidden=3), "'?hidden'?")


# ---- Loading. ----


def test_missing_parameters(layer):
    for name in layer.params:
        given = {key: p + 1 for key, p in layer.params.items() if key != name}
        refused(lambda given=given: layer.load_state_dict(given), name)


def test_unexpected_parameters(layer):
    given = {name: p + 1 for name, p in layer.params.items()}
    refused(lambda: layer.load_state_dict({**given, "weight_ih_l9": np.ones(3)}), "weight_ih_l9")


def test_parameters_of_other_shapes(layer):
    for name, p in layer.params.items():
        given = {key: q + 1 for key, q in layer.params.items()}
        for bad in (
            np.ones((*p.shape, 1)),
            np.ones((p.shape[0] + 1, *p.shape[1:])),
            np.ones(()),
            p.ravel()[:-1],
        ):
            given[name] = bad
            refused(lambda given=given: layer.load_state_dict(given), name, shape(*p.shape), shape(*bad.shape))


@pytest.mark.parametrize("given", [None, 3, "text", [1, 2]], ids=["None", "int", "str", "list"])
def test_what_is_no_state_dict(layer, given):
    refused(lambda: layer.load_state_dict(given), r"dict|mapping|Mapping")


# ---- Functions. ----


@pytest.mark.parametrize(
    ("n", "came"), [(0, "0"), (-1, "-1"), ("a", "'?a'?|str"), (1.5, "1.5|float"), (None, "None|NoneType")]
)
def test_set_num_threads(n, came):
    with using_threads(2):
        refused(lambda: fastrnn.set_num_threads(n), "n|threads|num_threads", came)
        assert fastrnn.get_num_threads() == 2


@pytest.mark.parametrize("name", ["avx1024", "", "AVX2"])
def test_set_isa(name):
    before = _core.get_isa()
    refused(lambda: _core.set_isa(name), re.escape(repr(name)))
    assert _core.get_isa() == before
