"""The kernels against the NumPy reference: outputs, states and the gradients of everything."""

import functools
from collections import namedtuple

import numpy as np
import pytest
from helpers import (
    ROWS,
    arguments_for,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    enliven,
    infer,
    make,
    map_state,
    mask_of,
    meaningful_part,
    normal,
    normal_like,
    pack,
    poison,
    row_of,
    train,
    twin,
    using_isa,
    using_threads,
    why_meaningless,
)

import fastrnn
from fastrnn import _core, reference

# float64, relative to the largest element: a thousand times the rounding unit 1.1e-16, for sums of some
# hundred terms, over up to 50 steps; gradients go through those twice.
FORWARD64, GRADIENT64 = 1e-13, 1e-12
# float32 against float64: the rounding unit is 6e-8. A gradient sums over all steps and sequences, in terms
# of either sign, so its error grows with the square root of T * B (65 at the largest here) besides.
FORWARD32, GRADIENT32 = 2e-6, 1e-5

Case = namedtuple(
    "Case",
    "row hidden_size input_size num_layers bidirectional bias layout steps batch lengths with_state loss threads",
)


def make_case(case, backend, dtype=np.float64):
    return make(
        case.row,
        backend,
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        batch_first=case.layout == "batch",
        bidirectional=case.bidirectional,
        dtype=dtype,
        seed=0,
    )


def draw_case(seed):
    """Every row in turn, one time in 25 a wide one."""
    rng = np.random.default_rng(seed)
    row = ROWS[seed % len(ROWS)]

    def pick(*values):
        return values[rng.integers(len(values))]

    wide = seed // len(ROWS) % 25 == 24
    layout = pick("time", "batch", "unbatched", "ragged")
    bias = pick(False, True)
    # Without a bias, gates forget half of the memory in a step; and in one step most offsets see no input.
    short = wide or (row.kept and not bias)
    steps = pick(2 if row.cls == "TDNN" else 1, 2, 7, 7 if short else 50)
    batch = 1 if layout == "unbatched" else pick(1, 2, 5, 7, 33)
    lengths = None
    if layout == "ragged" or (layout != "unbatched" and rng.random() < 0.5):
        lengths = rng.integers(0, steps + 1, batch)
        lengths[rng.integers(batch)] = steps  # never all zero
    return Case(
        row=row,
        hidden_size=pick(255, 256, 257) if wide else int(rng.integers(1, 66)),
        input_size=int(rng.integers(1, 41)),
        num_layers=1 if wide else pick(1, 2, 3),
        bidirectional=pick(False, True),
        bias=bias,
        layout=layout,
        steps=steps,
        batch=batch,
        lengths=lengths,
        # Without an initial state, one step leaves the gradient of the recurrent weights at exactly zero.
        with_state=steps == 1 or pick(False, True),
        loss=pick("dy", "dstate", "both") if row.parts else "dy",
        threads=pick(1, 2, 3),
    )


def lay_out(a, case):
    """From (T, B, ...) to the layout of the case; whatever padding there is becomes NaN."""
    if case.layout == "unbatched":
        return a[:, 0]
    if case.layout == "ragged":
        return pack(a, case.lengths)
    if case.lengths is not None:
        a = poison(a, case.lengths)
    return a.swapaxes(0, 1) if case.layout == "batch" else a


def valid_steps(case):
    """True where `y` has a real step, in the layout of the case; None where all are."""
    if case.lengths is None or case.layout == "ragged":
        return None
    mask = mask_of(case.lengths, case.steps)
    return mask.T if case.layout == "batch" else mask


def draw_data(case, layer, rng):
    """Arguments of `train` for the case."""
    shape = (case.steps, case.batch)
    data = {"x": lay_out(normal(rng, (*shape, case.input_size)), case), "lengths": case.lengths}
    y, state = layer(data["x"], lengths=case.lengths)
    if case.with_state:
        data["state"] = normal_like(rng, state)
    if case.loss != "dstate":
        data["dy"] = lay_out(normal(rng, (*shape, y.shape[-1])), case)
    if case.loss != "dy":
        data["dstate"] = normal_like(rng, state)
    return data


def draw_meaningful(case, seed):
    """A reference layer, data, and its results, none of which is mostly zeros or has vanished.

    Small rectifying layers are often dead at first: draw again, judging by the reference alone.
    """
    rng = np.random.default_rng([seed, 1])
    for _ in range(300):
        layer = enliven(make_case(case, reference), case.row, rng)
        data = draw_data(case, layer, rng)
        want = train(layer, **data)
        if why_meaningless(meaningful_part(want, valid_steps(case))) is None:
            break
    assert_meaningful(want, valid_steps(case))
    return layer, data, want


@pytest.mark.parametrize("seed", range(19 * len(ROWS)))
def test_drawn_configuration(seed):
    case = draw_case(seed)
    layer, data, want = draw_meaningful(case, seed)
    kernels = make_case(case, fastrnn)
    kernels.load_state_dict(layer.state_dict())
    with using_threads(case.threads):
        for name in _core.isas():
            with using_isa(name):
                assert_close(train(kernels, **data), want, FORWARD64, GRADIENT64, note=f"{name} {case}")
    valid = valid_steps(case)
    if valid is not None:
        assert not want["y"][~valid].any()
        assert not want["grads.x"][~valid].any()


@pytest.mark.drawn(1, representatives=2)
@pytest.mark.parametrize("sizes", [range(1, 33), range(33, 66), range(255, 258)], ids=str)
def test_every_hidden_size(isa, row, sizes):
    """A vector's tail in hidden units, against every tail in inputs and batch rows."""
    rng = np.random.default_rng(3)
    for hidden_size in sizes:
        inputs, batch = hidden_size % 19 + 1, hidden_size % 9 + 1
        case = Case(row, hidden_size, inputs, 1, False, True, "time", 3, batch, None, True, "both", 1)
        layer = enliven(make_case(case, reference), row, rng)
        data = draw_data(case, layer, rng)
        kernels = make_case(case, fastrnn)
        kernels.load_state_dict(layer.state_dict())
        assert_close(train(kernels, **data), train(layer, **data), FORWARD64, GRADIENT64, note=f"H={hidden_size}")


@functools.cache
def threads_case(row_id, steps, batch, input_size, hidden_size, num_layers, directions):
    """The reference's part of `test_threads`, once for all instruction sets and thread counts."""
    bidirectional = directions == 2
    sizes = (hidden_size, input_size, num_layers, bidirectional, True, "time", steps, batch)
    return draw_meaningful(Case(row_of(row_id), *sizes, lengths=None, with_state=True, loss="both", threads=0), steps)


@pytest.mark.drawn(2, representatives=6)
@pytest.mark.parametrize(
    "shape",  # T, B, I, H, L, D
    [(50, 33, 40, 65, 1, 1), (50, 1, 24, 257, 1, 1), (50, 5, 17, 40, 2, 2), (130, 64, 9, 24, 1, 2)],
    ids=str,
)
def test_threads(isa, row, threads, shape):
    layer, data, want = threads_case(row.id, *shape)
    kernels = twin(layer, row, fastrnn, *shape[2:5], bidirectional=shape[5] == 2, dtype=np.float64)
    assert_close(train(kernels, **data), want, FORWARD64, GRADIENT64)


@pytest.mark.parametrize("projection", [0, 1, 10, 86])
@pytest.mark.parametrize("batch", [1, 5])
def test_more_threads_than_vectors_of_outputs(isa, dtype, batch, projection, rng):
    """Workers that have no part of the last product of a step."""
    options = {"dtype": dtype, "seed": 1, "proj_size": projection}
    kernels, exact = (backend.LSTM(24, 130, **options) for backend in (fastrnn, reference))
    x = normal(rng, (20, batch, 24), dtype)
    y, state = kernels(x)
    data = {"x": x, "dy": normal_like(rng, y), "dstate": normal_like(rng, state)}
    want = train(exact, **data)
    limits = (FORWARD64, GRADIENT64) if dtype == np.float64 else (FORWARD32, GRADIENT32)
    for n in (3, 4, 8):
        with using_threads(n):
            assert_close(train(kernels, **data), want, *limits, note=f"{n} threads")


@pytest.mark.drawn(1, representatives=4)
@pytest.mark.parametrize(
    "shape",  # T, B, I, H, L, D
    [(128, 5, 24, 48, 1, 1), (128, 33, 31, 17, 1, 2), (128, 1, 64, 256, 1, 1), (40, 7, 13, 65, 3, 1)],
    ids=str,
)
def test_float32_is_near_float64(isa, row, shape, rng):
    """With default initial parameters, as float32 values in both.

    With these, the sums of cells that forget nothing run to 50 or more, whose rounding alone, 3e-6, shifts tanh(c) by
    as much, in any float32 arithmetic: those have parameters that keep c small.
    """
    steps, batch, input_size, hidden_size, num_layers, directions = shape
    sizes = (input_size, hidden_size, num_layers)
    kernels = make(row, fastrnn, *sizes, bidirectional=directions == 2, dtype=np.float32, seed=1)
    if not row.forgets:
        enliven(kernels, row, rng)
    exact = twin(kernels, row, reference, *sizes, bidirectional=directions == 2, dtype=np.float64)
    x = normal(rng, (steps, batch, input_size), np.float32)
    data = arguments_for(kernels, x, rng)
    want = train(exact, **data)
    assert_meaningful(want)
    got = train(kernels, **data)
    assert all(a.dtype == np.float32 for a in got.values())
    assert_close(got, want, FORWARD32, GRADIENT32)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (0, 1), (4, 0), (0, 0)])
@pytest.mark.parametrize("layout", ["time", "batch"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_nothing_to_do(backend, row, layout, bidirectional, steps, batch, rng):
    """No steps, or no sequences: states and their gradients pass through, parameters get none."""
    directions = 1 + bidirectional
    case = Case(row, 7, 5, 2, bidirectional, True, layout, steps, batch, None, True, "both", 1)
    layer = enliven(make_case(case, backend), row, rng)
    x, y = ((batch, steps, n) if layout == "batch" else (steps, batch, n) for n in (5, row.output_size(7) * directions))
    state, dstate = (normal_like(rng, layer(np.empty(x))[1]) for _ in range(2))
    assert tuple(s.shape for s in as_tuple(state)) == row.state_shapes(2 * directions, batch, 7)
    for name in _core.isas():
        with using_isa(name):
            got = train(layer, np.empty(x), state, dy=np.empty(y), dstate=dstate)
        assert got["y"].shape == y
        assert got["grads.x"].shape == x
        for i, (s, ds) in enumerate(zip(as_tuple(state), as_tuple(dstate), strict=True)):
            assert np.array_equal(got[f"state[{i}]"], s)
            assert np.array_equal(got[f"grads.state[{i}]"], ds)
        for key, p in layer.params.items():
            assert got[f"grads.{key}"].shape == p.shape
            assert not got[f"grads.{key}"].any()


@pytest.mark.parametrize("steps", [0, 6])
def test_all_lengths_zero(backend, row, steps, rng):
    """As no steps at all, padded or ragged."""
    layer = enliven(make(row, backend, 3, 5, dtype=np.float64), row, rng)
    padded = np.full((steps, 4, 3), np.nan)
    state = normal_like(rng, layer(padded, lengths=[0] * 4)[1])
    for x in (padded, np.empty((0, 3))):
        got = infer(layer, x, state, lengths=[0] * 4)
        assert not got["y"].any()
        assert all(np.array_equal(got[f"state[{i}]"], s) for i, s in enumerate(as_tuple(state)))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("with_dy", [False, True])
@pytest.mark.parametrize("with_dstate", [False, True])
def test_none_is_a_gradient_of_zeros(backend, row, with_dy, with_dstate, rng):
    layer = enliven(make(row, backend, 3, 5, 2, dtype=np.float64), row, rng)
    y, state, tape = layer.forward(normal(rng, (6, 4, 3)))
    dy, dstate = normal_like(rng, y), normal_like(rng, state)
    got = layer.backward(tape, dy if with_dy else None, dstate if with_dstate else None)
    want = layer.backward(tape, dy * with_dy, map_state(lambda s: s * with_dstate, dstate))
    for a, b in zip(
        [got.x, *as_tuple(got.state), *got.params.values()],
        [want.x, *as_tuple(want.state), *want.params.values()],
        strict=True,
    ):
        assert a.shape == b.shape
        assert np.array_equal(a, b)


@pytest.mark.parametrize("row", [row for row in ROWS if row.cls == "LSTM"], ids=lambda row: row.id)
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=["dh", "dc", "neither"])
@pytest.mark.drawn(1)
def test_each_half_of_dstate_may_be_none(backend, row, given, rng):
    layer = enliven(make(row, backend, 3, 5, 2, bidirectional=True, dtype=np.float64), row, rng)
    y, state, tape = layer.forward(normal(rng, (6, 4, 3)))
    dy, dstate = normal_like(rng, y), normal_like(rng, state)
    got = layer.backward(tape, dy, tuple(s if one else None for s, one in zip(dstate, given, strict=True)))
    want = layer.backward(tape, dy, tuple(s * one for s, one in zip(dstate, given, strict=True)))
    assert_same_bits(
        *({"x": g.x, "h": g.state[0], "c": g.state[1], **g.params} for g in (got, want)),
    )


@pytest.mark.drawn(2)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_inputs(isa, dtype, row, value, rng):
    """The kernels give NaN, +Inf and -Inf exactly where the reference does; other sequences are untouched."""
    layer = enliven(make(row, reference, 5, 19, dtype=dtype), row, rng)
    kernels = twin(layer, row, fastrnn, 5, 19, dtype=dtype)
    x = normal(rng, (6, 7, 5), dtype)
    plain = kernels(x)[0]
    x[2, 3, 1] = value
    with np.errstate(all="ignore"):
        want = layer(x)[0]
    got = kernels(x)[0]
    for kind in (np.isnan, np.isposinf, np.isneginf):
        assert np.array_equal(kind(got), kind(want))
    assert np.array_equal(np.delete(got, 3, axis=1), np.delete(plain, 3, axis=1))
    first = 2 - max(row.options.get("context", (0,)))  # the first step that sees it
    assert np.array_equal(got[:first, 3], plain[:first, 3])
    assert not np.array_equal(got[first:, 3], plain[first:, 3])


def test_an_inactive_relu_passes_no_nan(backend):
    """Its derivative is zero, whatever the gradient is; as in PyTorch."""
    layer = backend.RNN(2, 3, nonlinearity="relu", bias=False, dtype=np.float64)
    layer.params["weight_ih_l0"][...] = [[1, 1], [-1, -1], [1, 2]]
    y, _, tape = layer.forward(np.ones((2, 1, 2)))
    inactive = y == 0
    assert inactive.any()
    grads = layer.backward(tape, np.where(inactive, np.nan, 1.0))
    assert np.isfinite(grads.x).all()
    assert np.isfinite(grads.params["weight_ih_l0"]).all()
