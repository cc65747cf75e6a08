"""The offsets of a time-delay network, and the zeros outside the sequence that they reach."""

import numpy as np
import oracles
import pytest
from helpers import (
    NONLINEARITIES,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    infer,
    mask_of,
    normal,
    normal_like,
    poison,
    train,
    using_isa,
    using_threads,
    why_meaningless,
)

import fastrnn
from fastrnn import _core, reference

STEPS, BATCH, INPUTS, HIDDEN = 7, 5, 3, 6
LENGTHS = (7, 0, 1, 4, 2)
CONTEXTS = [(0,), (-1,), (3,), (1, 0, -1), (-2, -1, 0, 1, 2), (5, -4, 0, 2), (-6, 6), (0, 7), (-30, 0, 100), (-9,)]


def oracle(layer, x, lengths, context, nonlinearity="tanh"):
    options = {"context": context, "nonlinearity": nonlinearity}
    return oracles.run("TDNN", options, layer.params, x, (), lengths).results


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_any_offsets_in_any_order(backend, dtype, context, bidirectional, rng):
    layer = backend.TDNN(
        INPUTS, HIDDEN, 2, context=context, nonlinearity="tanh", bidirectional=bidirectional, dtype=dtype
    )
    x = normal(rng, (STEPS, BATCH, INPUTS), dtype)
    want = oracle(layer, x.astype(np.float64), LENGTHS, context)
    assert_meaningful({"y": want["y"]}, mask_of(LENGTHS, STEPS))
    limit = 1e-14 if dtype == np.float64 else 1e-6
    for name in _core.isas() if backend is fastrnn else _core.isas()[:1]:
        with using_isa(name):
            got = infer(layer, poison(x, LENGTHS), lengths=LENGTHS)
        assert_close({"y": got["y"].astype(np.float64)}, want, forward=limit, gradient=0, note=name)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gradients_of_few_steps_and_far_offsets(isa, nonlinearity, steps, rng):
    """Kernels against reference, where most of what the offsets reach is outside; one that sees nothing gets 0."""
    context = (-2, 0, 1, 19, -40)
    options = {"context": context, "nonlinearity": nonlinearity, "dtype": np.float64, "seed": 1}
    x = normal(rng, (steps, 13, 37))
    seen = [abs(offset) < steps for offset in context]
    kernels, exact = (backend.TDNN(37, 21, **options) for backend in (fastrnn, reference))
    dy = normal_like(rng, kernels(x)[0])
    want = train(exact, x, dy=dy)
    gradient = want["grads.weight_l0"].copy()
    want["grads.weight_l0"] = gradient[:, seen]
    assert_meaningful(want)
    got = train(kernels, x, dy=dy)
    assert not got["grads.weight_l0"][:, np.logical_not(seen)].any()
    got["grads.weight_l0"] = got["grads.weight_l0"][:, seen]
    assert_close(got, want, forward=1e-13, gradient=1e-12)


@pytest.mark.parametrize("context", [(-700, -300, 0, 1, 500), (-2, 0, 1), (-40, -9), (3, 900)], ids=str)
def test_gradients_of_offsets_farther_than_a_chunk(isa, context, rng):
    """Against the reference, in two shards, one of which begins within a sequence; the same bits for any threads."""
    lengths = (1000, 900, 40, 0, 700)
    options = {"context": context, "nonlinearity": "tanh", "bidirectional": True, "dtype": np.float64, "seed": 1}
    x, dy = normal(rng, (max(lengths), len(lengths), 9)), normal(rng, (max(lengths), len(lengths), 22))
    kernels, exact = (backend.TDNN(9, 11, **options) for backend in (fastrnn, reference))
    want = train(exact, x, lengths=lengths, dy=dy)
    assert_meaningful(want, mask_of(lengths, max(lengths)))
    with using_threads(1):
        got = train(kernels, x, lengths=lengths, dy=dy)
    assert_close(got, want, forward=1e-13, gradient=1e-12)
    for n in (2, 3, 4):
        with using_threads(n):
            assert_same_bits(train(kernels, x, lengths=lengths, dy=dy), got, note=f"{n} threads")


@pytest.mark.parametrize(
    "form",
    [list, np.array, lambda c: np.array(c, np.int8), lambda c: [np.int64(o) for o in c]],
    ids=["list", "array", "int8", "of int64"],
)
def test_the_context_is_any_sequence_of_integers(backend, form, rng):
    x = normal(rng, (STEPS, BATCH, INPUTS))
    given, plain = (backend.TDNN(INPUTS, HIDDEN, context=c, seed=1) for c in (form((-1, 0, 2)), (-1, 0, 2)))
    assert_same_bits(infer(given, x), infer(plain, x))


def test_a_range_of_offsets(backend, rng):
    x = normal(rng, (STEPS, BATCH, INPUTS))
    given, plain = (backend.TDNN(INPUTS, HIDDEN, context=c, seed=1) for c in (range(-2, 3), (-2, -1, 0, 1, 2)))
    assert_same_bits(infer(given, x), infer(plain, x))


def test_a_later_change_of_the_context_is_no_matter(backend, rng):
    x, context = normal(rng, (STEPS, BATCH, INPUTS)), np.array([-1, 0, 1])
    layer = backend.TDNN(INPUTS, HIDDEN, context=context)
    want = infer(layer, x)
    context[:] = 5
    assert_same_bits(infer(layer, x), want)


@pytest.mark.parametrize("offset", [2**31 - 1, -(2**31), 2**32, -(2**32), 2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_offsets_out_of_all_reach(backend, offset, rng):
    """Refused, or all that they see is zeros; never a wrapped sum."""
    x = normal(rng, (STEPS, BATCH, INPUTS))
    try:
        layer = backend.TDNN(INPUTS, HIDDEN, context=(0, offset), nonlinearity="identity", dtype=np.float64, seed=1)
    except ValueError as error:
        assert "context" in str(error)  # noqa: PT017
        return
    near = backend.TDNN(INPUTS, HIDDEN, context=(0,), nonlinearity="identity", dtype=np.float64)
    near.load_state_dict({"weight_l0": layer.params["weight_l0"][:, :1], "bias_l0": layer.params["bias_l0"]})
    for lengths in (None, LENGTHS):
        got = train(layer, x, lengths=lengths, dy=np.ones((STEPS, BATCH, HIDDEN)))
        want = train(near, x, lengths=lengths, dy=np.ones((STEPS, BATCH, HIDDEN)))
        weight = got["grads.weight_l0"]
        assert not weight[:, 1].any()
        got["grads.weight_l0"] = weight[:, :1]
        assert_close(got, want, forward=1e-14, gradient=1e-13)


def test_sequences_do_not_see_their_neighbours(isa, dtype, rng):
    """Ragged: what an offset reaches past a sequence's end is zero, not the next sequence."""
    layer = fastrnn.TDNN(INPUTS, HIDDEN, context=(-3, 0, 2), nonlinearity="tanh", dtype=dtype, seed=1)
    x = normal(rng, (9, INPUTS), dtype)
    dy = normal(rng, (9, HIDDEN), dtype)
    whole = train(layer, x, lengths=[4, 0, 2, 3], dy=dy)
    assert why_meaningless(whole) is None
    for start, stop in ((0, 4), (4, 6), (6, 9)):
        alone = train(layer, x[start:stop], dy=dy[start:stop])
        want = {name: whole[name][start:stop] for name in ("y", "grads.x")}
        assert_same_bits({name: alone[name] for name in want}, want)
