"""A tape: good for any number of backward passes, and the same answer each time, whatever happens between."""

import numpy as np
import pytest
from helpers import (
    as_tuple,
    assert_meaningful,
    assert_same_bits,
    c_constant,
    differing_bits,
    enliven,
    make,
    map_state,
    normal,
    normal_like,
    numbered,
    row_of,
    using_threads,
)

import fastrnn
from fastrnn.checks import real_steps

pytestmark = pytest.mark.drawn(2)

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 5, 7


@pytest.fixture(params=[(1, False), (2, True)], ids=["plain", "deep-both-ways"])
def structure(request):
    return request.param


@pytest.fixture
def layer(backend, row, dtype, structure, rng):
    num_layers, bidirectional = structure
    layer = make(row, backend, INPUTS, HIDDEN, num_layers, bidirectional=bidirectional, dtype=dtype)
    return enliven(layer, row, rng)


def record(layer, rng):
    """Inputs and results of one forward pass, and gradients to send back."""
    x = normal(rng, (STEPS, BATCH, INPUTS), next(iter(layer.params.values())).dtype)
    state = normal_like(rng, layer(x)[1])
    y, end, tape = layer.forward(x, state)
    return {"x": x, "state": state, "y": y, "end": end}, tape, (normal_like(rng, y), normal_like(rng, state))


def backward(layer, tape, sent):
    grads = layer.backward(tape, *sent)
    results = {"x": grads.x, **numbered("state", grads.state), **grads.params}
    assert_meaningful(results)
    return results


def test_the_same_answer_each_time(layer, rng):
    _, tape, sent = record(layer, rng)
    want = backward(layer, tape, sent)
    for _ in range(5):
        assert_same_bits(backward(layer, tape, sent), want)


def test_the_answer_is_linear_in_what_is_sent(layer, rng):
    """No gradient is left over from an earlier pass: twice the loss has exactly twice the gradient."""
    _, tape, sent = record(layer, rng)
    want = backward(layer, tape, sent)
    doubled = tuple(map_state(lambda a: 2 * a, part) for part in sent)
    assert_same_bits(backward(layer, tape, doubled), {name: 2 * a for name, a in want.items()})


def test_results_are_new_arrays(layer, rng):
    _, tape, sent = record(layer, rng)
    first = backward(layer, tape, sent)
    kept = {name: a.copy() for name, a in first.items()}
    second = backward(layer, tape, tuple(map_state(lambda a: -a, part) for part in sent))
    assert_same_bits(first, kept)
    assert not any(np.shares_memory(a, b) for a in first.values() for b in second.values())


def test_tapes_do_not_mix(layer, rng):
    tapes = [record(layer, rng)[1:] for _ in range(3)]
    want = [backward(layer, *tape) for tape in tapes]
    layer(normal(rng, (50, 40, INPUTS)))
    for i in (2, 0, 1):
        assert_same_bits(backward(layer, *tapes[i]), want[i])
    assert not np.array_equal(want[0]["x"], want[1]["x"])


@pytest.mark.parametrize("name", ["x", "state", "y", "end"])
def test_what_the_caller_does_with_its_arrays_is_no_matter(layer, rng, name):
    arrays, tape, sent = record(layer, rng)
    want = backward(layer, tape, sent)
    for a in as_tuple(arrays[name]):
        a[...] = 17
    assert_same_bits(backward(layer, tape, sent), want)


@pytest.mark.parametrize("shape", [(260, 64, 32, 32), (260, 64, 33, 31), (2100, 2, 128, 128)], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru_reset_before", "tdnn_tanh"])
def test_large_copies(name, isa, dtype, shape, ragged, rng):
    """They are written past the caches."""
    T, B, I, H = shape
    layer = make(row_of(name), fastrnn, I, H, dtype=dtype)
    x = normal(rng, (T, B, I), dtype)
    assert x.nbytes >= c_constant("STREAMED_X")
    assert x.nbytes // I * H >= c_constant("STREAMED_Y")
    lengths = rng.integers(0, T + 1, B) if ragged else None
    with using_threads(2):
        y, _, tape = layer.forward(x, lengths=lengths)
        assert differing_bits(y, layer(x, lengths=lengths)[0]) == 0
    assert differing_bits(tape.h, y) == 0
    steps = real_steps(lengths, T, False) if ragged else ...
    assert differing_bits(tape._levels[0].x[steps], x[steps]) == 0


def test_a_change_of_parameters_never_gives_a_third_answer(layer, rng):
    """The same answer as before, or a refusal; never a mixture of the old parameters and the new."""
    _, tape, sent = record(layer, rng)
    want = backward(layer, tape, sent)
    for p in layer.params.values():
        p *= 2
    try:
        got = backward(layer, tape, sent)
    except ValueError:
        return
    assert_same_bits(got, want)


def test_the_outputs_may_be_their_own_gradients(layer, rng):
    arrays, tape, _ = record(layer, rng)
    y, end = arrays["y"], arrays["end"]
    assert_same_bits(backward(layer, tape, (y, end)), backward(layer, tape, (y.copy(), map_state(np.copy, end))))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, (6, 0, 2, 5)])
def test_h_of_one_layer_is_its_output(backend, row, batch_first, bidirectional, lengths, rng):
    layer = make(row, backend, INPUTS, HIDDEN, batch_first=batch_first, bidirectional=bidirectional)
    y, _, tape = layer.forward(
        normal(rng, (BATCH, BATCH + 2, INPUTS) if batch_first else (6, 4, INPUTS)), lengths=lengths
    )
    assert type(tape.h) is np.ndarray
    assert differing_bits(tape.h, y) == 0


@pytest.mark.parametrize("bidirectional", [False, True])
def test_h_of_several_layers_is_one_array_for_each(backend, row, bidirectional, rng):
    options = {"bidirectional": bidirectional, "dtype": np.float64}
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 3, **options), row, rng)
    x = normal(rng, (STEPS, BATCH, INPUTS))
    y, _, tape = layer.forward(x)
    assert isinstance(tape.h, tuple)
    assert len(tape.h) == 3
    for k, h in enumerate(tape.h):
        first = make(row, backend, INPUTS, HIDDEN, k + 1, **options)
        first.load_state_dict({name: layer.params[name] for name in first.params})
        assert differing_bits(h, first(x)[0]) == 0
    assert differing_bits(tape.h[-1], y) == 0
