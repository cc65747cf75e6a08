"""Bad input: an error that names the argument, what was expected and what came; nothing half-changed."""

import re

import numpy as np
import pytest
from helpers import (
    NONLINEARITIES,
    as_tuple,
    assert_same_bits,
    enliven,
    infer,
    make,
    normal,
    steps_of,
    using_threads,
)

import fastrnn
from fastrnn import _core

pytestmark = pytest.mark.drawn(1)

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


def with_one_bad(state, bad):
    """For each array of the state: the state with `bad(shape)` in its place, and that array."""
    if not isinstance(state, tuple):
        return [(bad(s.shape), s) for s in as_tuple(state)]
    return [((*state[:i], bad(s.shape), *state[i + 1 :]), s) for i, s in enumerate(state)]


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
    (lambda s: np.ma.masked_array(np.ones(s), True), "masked"),
]
NOT_REAL_IDS = ["complex128", "complex64", "str", "bytes", "object", "datetime", "masked"]


@pytest.mark.parametrize("dims", [(), (3,), (1, 5, 2, 3)], ids=str)
def test_rank_of_x(layer, dims):
    for call in every_call(layer):
        refused(lambda call=call: call(np.ones(dims)), "x", shape(*dims))


@pytest.mark.parametrize("dims", [(5, 2, 7), (5, 7), (0, 2, 7), (5, 2, 0)], ids=str)
def test_last_dimension_of_x(layer, dims):
    for call in every_call(layer):
        refused(lambda call=call: call(np.ones(dims)), "x", str(INPUTS), shape(*dims))


@pytest.mark.parametrize("dims", [(), (3,), (2, 7), (5, 2, 3)], ids=str)
def test_shape_of_x_t(layer, row, dims):
    for step in steps_of(row, layer):
        refused(lambda step=step: step(np.ones(dims)), "x_t", str(INPUTS), shape(*dims))


@pytest.mark.parametrize(("bad", "came"), NOT_REAL, ids=NOT_REAL_IDS)
def test_dtype_of_arrays(layer, row, x, bad, came):
    y, state, tape = layer.forward(x)
    for call in every_call(layer):
        refused(lambda call=call: call(bad(x.shape)), "x", came)
    for step in steps_of(row, layer):
        refused(lambda step=step: step(bad(x[0].shape)), "x_t", came)
    refused(lambda: layer.backward(tape, bad(y.shape)), "dy", came)
    for given, _ in with_one_bad(state, bad):
        for call in every_call(layer):
            refused(lambda call=call, given=given: call(x, given), "state", came)
        for step in steps_of(row, layer):
            refused(lambda step=step, given=given: step(x[0], given), "state", came)
        refused(lambda given=given: layer.backward(tape, y, given), "dstate", came)
    first = next(iter(layer.params))
    refused(lambda: layer.load_state_dict({**layer.params, first: bad(layer.params[first].shape)}), first, came)


@pytest.mark.parametrize("x", [None, "text", {}, [[1.0], [2.0, 3.0]]], ids=["None", "text", "dict", "uneven"])
def test_x_that_is_no_array(layer, x):
    for call in every_call(layer):
        refused(lambda call=call: call(x), "x")


@pytest.mark.parametrize("dims", [(), (4,), (2, 4), (1, 3, 4), (1, 2, 5), (2, 2, 4), (1, 1, 2, 4), (2, 1, 4)], ids=str)
def test_shape_of_state(layer, row, x, dims):
    _, state, tape = layer.forward(x)
    for given, replaced in with_one_bad(state, lambda _: np.ones(dims)):
        want, came = shape(*replaced.shape), shape(*dims)
        for call in every_call(layer):
            refused(lambda call=call, given=given: call(x, given), "state", want, came)
        for step in steps_of(row, layer):
            refused(lambda step=step, given=given: step(x[0], given), "state", want, came)
        refused(lambda given=given: layer.backward(tape, None, given), "dstate", want, came)


def pairs_of(h, c):
    """What is no pair (h, c)."""
    return [h, c, np.stack([c, c]), (h,), (), (h, c, c), {"h": h, "c": c}, "hc", 3]


@pytest.mark.parametrize("case", range(9))
def test_the_state_of_an_lstm_is_a_pair(backend, case, rng):
    """Not one array, and not three; and h and c do not change places."""
    layer = backend.LSTM(INPUTS, HIDDEN, proj_size=2, dtype=np.float64)
    x = normal(rng, (STEPS, BATCH, INPUTS))
    _, (h, c), tape = layer.forward(x)
    given = pairs_of(h, c)[case]
    for call in every_call(layer):
        refused(lambda call=call: call(x, given), "state")
        refused(lambda call=call: call(x, (c, h)), "state", shape(1, BATCH, 2), shape(1, BATCH, HIDDEN))
    for step in (layer.step, layer.frozen().step):
        refused(lambda step=step: step(x[0], given), "state")
        refused(lambda step=step: step(x[0], (c, h)), "state")
    refused(lambda: layer.backward(tape, None, given), "dstate")
    refused(lambda: layer.backward(tape, None, (c, h)), "dstate")


@pytest.mark.parametrize("name", ["RNN", "GRU", "CEC"])
def test_a_pair_is_no_state_of_other_cells(backend, name):
    layer = getattr(backend, name)(INPUTS, HIDDEN)
    x = np.ones((STEPS, BATCH, INPUTS))
    _, state, tape = layer.forward(x)
    for call in every_call(layer):
        refused(lambda call=call: call(x, (state, state)), "state")
    refused(lambda: layer.backward(tape, None, (state, state)), "dstate")


def test_a_tdnn_has_no_state_and_takes_no_steps(backend):
    layer = backend.TDNN(INPUTS, HIDDEN)
    x = np.ones((STEPS, BATCH, INPUTS))
    y, state, tape = layer.forward(x)
    assert state is None
    for given in (np.zeros((1, BATCH, HIDDEN)), np.zeros((1, BATCH, 0)), (None,), 0):
        for call in every_call(layer):
            with pytest.raises(ValueError, match=r"\bstate\b"):
                call(x, given)
        with pytest.raises(ValueError, match=r"\bdstate\b"):
            layer.backward(tape, y, given)
    for step in (layer.step, layer.frozen().step):
        with pytest.raises(ValueError, match=r"\bstep\b"):
            step(x[0])


@pytest.mark.parametrize("dims", [(), (4,), (5, 2), (5, 2, 3), (5, 2, 8), (4, 2, 4), (2, 5, 4), (10, 4)], ids=str)
def test_shape_of_dy(layer, x, dims):
    y, _, tape = layer.forward(x)
    refused(lambda: layer.backward(tape, np.ones(dims)), "dy", shape(*y.shape), shape(*dims))


@pytest.mark.parametrize("dims", [(6, 2, 4), (7, 4), (5, 4), (6, 3)], ids=str)
def test_shape_of_ragged_dy(layer, dims):
    y, _, tape = layer.forward(np.ones((6, INPUTS)), lengths=[4, 2])
    refused(lambda: layer.backward(tape, np.ones(dims)), "dy", shape(*y.shape), shape(*dims))


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
        refused(lambda step=step: step(np.ones((BATCH, INPUTS))), "bidirectional" if steps_of(row, layer) else "step")


@pytest.mark.parametrize("tape", [None, 3, "tape", (), np.ones(3)], ids=["None", "int", "str", "tuple", "array"])
def test_what_is_no_tape(layer, tape):
    refused(lambda: layer.backward(tape), "tape")


def test_the_tape_of_another_layer(layer, backend, row, x):
    """Even of one that is the same in all but identity, or in size alone, or of another class."""
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
    for cls in ("RNN", "LSTM", "GRU", "CEC", "TDNN"):
        _, _, tape = getattr(backend, cls)(INPUTS, HIDDEN, dtype=np.float64).forward(x)
        refused(lambda tape=tape: layer.backward(tape), "tape")


# ---- Construction. ----

OPTIONS = [
    ("num_layers", 0, "0"),
    ("num_layers", -1, "-1"),
    ("num_layers", 1.5, "1.5|float"),
    ("num_layers", "2", "'?2'?|str"),
    ("dropout", -0.1, "-0.1"),
    ("dropout", 1.5, "1.5"),
    ("dropout", np.nan, "nan"),
    ("dropout", 10**400, "10+"),
    ("dropout", -(10**400), "-10+"),
    ("dropout", "half", "'?half'?|str"),
    ("dropout", "0.5", "'0.5'"),
    ("dropout", True, "True"),
    ("dtype", int, r"int\w*"),
    ("dtype", np.int32, "int32"),
    ("dtype", np.float16, "float16"),
    ("dtype", np.complex128, "complex128"),
    ("dtype", "nonsense", "nonsense"),
    ("dtype", ">f4" if np.little_endian else "<f4", ">f4|<f4"),
]


@pytest.mark.parametrize(("name", "value", "came"), OPTIONS, ids=[f"{name}-{value}"[:20] for name, value, _ in OPTIONS])
def test_options(backend, row, name, value, came):
    refused(lambda: make(row, backend, INPUTS, HIDDEN, **{name: value}), name, came)


@pytest.mark.parametrize("value", ["sine", "", "TANH", None, 3])
@pytest.mark.parametrize(
    ("cls", "option", "choices"),
    [
        ("RNN", "nonlinearity", NONLINEARITIES),
        ("CEC", "nonlinearity", NONLINEARITIES),
        ("TDNN", "nonlinearity", NONLINEARITIES),
        ("CEC", "readout", ("identity", "tanh")),
    ],
)
def test_choices(backend, cls, option, choices, value):
    parts = [option, *(f"'?{choice}'?" for choice in choices), re.escape(repr(value))]
    refused(lambda: getattr(backend, cls)(INPUTS, HIDDEN, **{option: value}), *parts)


def test_a_readout_is_not_any_nonlinearity(backend):
    for readout in ("relu", "logistic"):
        refused(lambda readout=readout: backend.CEC(INPUTS, HIDDEN, readout=readout), "readout", f"'?{readout}'?")


OWN_OPTIONS = [
    ("LSTM", "proj_size", -1, "-1"),
    ("LSTM", "proj_size", HIDDEN, "4"),
    ("LSTM", "proj_size", HIDDEN + 1, "5"),
    ("LSTM", "proj_size", 2**64, str(2**64)),
    ("LSTM", "proj_size", 1.5, "1.5|float"),
    ("LSTM", "proj_size", "2", "'?2'?|str"),
    ("LSTM", "proj_size", None, "None|NoneType"),
    ("LSTM", "peephole", "no", "'?no'?|str"),
    ("LSTM", "forget_gate", None, "None|NoneType"),
    ("LSTM", "coupled", "no", "'?no'?|str"),
    ("GRU", "reset_after", "no", "'?no'?|str"),
    ("TDNN", "context", (), r"\(\)|empty|none|0"),
    ("TDNN", "context", (0, 1, 0), r"0"),
    ("TDNN", "context", (-1, -1), r"-1"),
    ("TDNN", "context", (0, 0.5), "0.5|float"),
    ("TDNN", "context", (0, 1.0), "1.0|float"),
    ("TDNN", "context", np.array([0.0, 1.0]), ""),
    ("TDNN", "context", (0, "1"), "'?1'?|str"),
    ("TDNN", "context", (0, None), "None|NoneType"),
    ("TDNN", "context", "01", "'?01'?|'?0'?|str"),
    ("TDNN", "context", None, "None|NoneType"),
    ("TDNN", "context", 2, "2|int"),
    ("TDNN", "context", (2**70,), str(2**70)),
    ("TDNN", "context", ((0, 1),), r"\(0, 1\)|tuple"),
]


@pytest.mark.parametrize(
    ("cls", "option", "value", "came"), OWN_OPTIONS, ids=["-".join(map(str, case[:3])) for case in OWN_OPTIONS]
)
def test_own_options(backend, cls, option, value, came):
    refused(lambda: getattr(backend, cls)(INPUTS, HIDDEN, **{option: value}), option, came)


def test_no_projection_of_one_unit(backend):
    refused(lambda: backend.LSTM(INPUTS, 1, proj_size=1), "proj_size", "1")


def test_coupled_gates_need_a_forget_gate(backend):
    for peephole in (False, True):
        with pytest.raises(ValueError, match=r"(coupled.*forget_gate|forget_gate.*coupled)"):
            backend.LSTM(INPUTS, HIDDEN, coupled=True, forget_gate=False, peephole=peephole)


@pytest.mark.parametrize(
    ("cls", "option"),
    [
        *(("RNN", name) for name in ("proj_size", "peephole", "reset_after", "readout", "context")),
        *(("LSTM", name) for name in ("nonlinearity", "reset_after", "readout", "context")),
        *(("GRU", name) for name in ("nonlinearity", "peephole", "proj_size", "forget_gate", "coupled")),
        *(("CEC", name) for name in ("peephole", "proj_size", "context", "reset_after")),
        *(("TDNN", name) for name in ("peephole", "proj_size", "readout", "reset_after")),
    ],
)
def test_options_of_other_cells(backend, cls, option):
    with pytest.raises(TypeError, match=option):
        getattr(backend, cls)(INPUTS, HIDDEN, **{option: True})


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
