"""`jvp`: directional derivatives of forward, against central differences, the reference and backward (its adjoint);
and that they depend on the tape and the directions alone."""

import numpy as np
import pytest
from helpers import (
    FMA_ISAS,
    REPRESENTATIVES,
    ROWS,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    enliven,
    make,
    map_state,
    mask_of,
    meaningful_part,
    normal,
    normal_like,
    numbered,
    pack,
    poison,
    row_of,
    twin,
    using_isa,
    using_threads,
)
from test_central_differences import BATCH, HIDDEN, INPUTS, LAYERS, STEPS, draw
from test_errors import NOT_REAL, NOT_REAL_IDS, refused, shape, with_one_bad
from test_forward_backward import FORWARD64, GRADIENT32, GRADIENT64

import fastrnn
from fastrnn import reference

# Along a direction of standard normal elements outputs change by about 1, less in a short sequence of a cell that
# saturates; they round at 1e-16 and the step's own error is 1e-10 times a third derivative of order 1 to 10.
STEP, LIMIT = 1e-5, 1e-8

LENGTHS = (2, 0, STEPS)
LAYOUTS = ("time", "padded", "batch", "padded batch", "ragged", "unbatched")


def tangents(layer, tape, dx=None, dstate=None):
    dy, end = layer.jvp(tape, dx, dstate)
    return {"y": dy, **numbered("state", end)}


def lay_out(a, layout):
    """From (T, B, ...) to a layout; whatever padding there is becomes NaN."""
    if layout == "unbatched":
        return a[:, 0]
    if layout == "ragged":
        return pack(a, LENGTHS)
    a = poison(a, LENGTHS) if "padded" in layout else a
    return a.swapaxes(0, 1) if "batch" in layout else a


def valid_steps(layout):
    if "padded" not in layout:
        return None
    valid = mask_of(LENGTHS, STEPS)
    return valid.T if "batch" in layout else valid


def lengths_of(layout):
    return LENGTHS if layout == "ragged" or "padded" in layout else None


def draw_laid_out(row, backend, layout, rng, dtype=np.float64, **options):
    """A layer; x, state, dy, dstate for a loss; and a direction: dx and dstart."""
    options |= {"batch_first": "batch" in layout, "dtype": dtype, "seed": 0}
    layer = enliven(make(row, backend, INPUTS, HIDDEN, LAYERS, **options), row, rng)
    batch = 1 if layout == "unbatched" else BATCH
    x, dx = (lay_out(normal(rng, (STEPS, batch, INPUTS), dtype), layout) for _ in range(2))
    _, state = layer(x, lengths=lengths_of(layout))
    width = layer.num_directions * row.output_size(HIDDEN)
    data = {name: normal_like(rng, state) for name in ("state", "dstate", "dstart")}
    return layer, data | {"x": x, "dx": dx, "dy": lay_out(normal(rng, (STEPS, batch, width), dtype), layout)}


def inner(a, b, valid=None):
    """The sum of the products, and of their magnitudes, which bounds how it rounds."""
    terms = [
        (p * q if valid is None or i else (p * q)[valid]).ravel() for i, (p, q) in enumerate(zip(a, b, strict=True))
    ]
    terms = np.concatenate(terms).astype(np.float64)
    return terms.sum(), np.abs(terms).sum()


# ---- What it is. ----


@pytest.mark.drawn(2, representatives=4)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [(STEPS,) * BATCH, LENGTHS], ids=["whole", "lengths"])
def test_central_differences(backend, row, bidirectional, lengths, rng):
    layer, data = draw(row, backend, lengths, bidirectional=bidirectional)
    dx, dstart = normal_like(rng, data["x"]), normal_like(rng, data["state"])

    def moved(step):
        pairs = zip(as_tuple(data["state"]), as_tuple(dstart), strict=True)
        state = tuple(s + step * ds for s, ds in pairs)
        y, end = layer(data["x"] + step * dx, state[0] if len(state) == 1 else state or None, lengths=lengths)
        return {"y": y, **numbered("state", end)}

    above, below = moved(STEP), moved(-STEP)
    want = {name: (above[name] - below[name]) / (2 * STEP) for name in above}
    got = tangents(layer, layer.forward(data["x"], data["state"], lengths=lengths)[2], dx, dstart)
    # Of rectifiers those that are off have none.
    assert all(np.count_nonzero(a) > 3 for a in want.values())
    assert_close(got, want, LIMIT, LIMIT)
    assert not got["y"][~mask_of(lengths, STEPS)].any()


@pytest.mark.drawn(2)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_adjoint_of_backward(backend, row, layout, bidirectional, dropout, rng):
    """<(dy, dstate), jvp(dx, dstart)> = <backward(dy, dstate), (dx, dstart)>"""
    layer, data = draw_laid_out(row, backend, layout, rng, bidirectional=bidirectional, dropout=dropout)
    tape = layer.forward(data["x"], data["state"], lengths=lengths_of(layout))[2]
    got, grads = tangents(layer, tape, data["dx"], data["dstart"]), layer.backward(tape, data["dy"], data["dstate"])
    valid = valid_steps(layout)
    left, scale = inner([data["dy"], *as_tuple(data["dstate"])], [*got.values()], valid)
    right, _ = inner([data["dx"], *as_tuple(data["dstart"])], [grads.x, *as_tuple(grads.state)], valid)
    assert scale > 0.1
    assert abs(left - right) <= GRADIENT64 * scale


@pytest.mark.drawn(2)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_and_reference(isa, dtype, row, layout, bidirectional, rng):
    layer, data = draw_laid_out(row, reference, layout, rng, bidirectional=bidirectional, dropout=0.3)
    options = {"bidirectional": bidirectional, "dropout": 0.3, "batch_first": layer.batch_first}
    kernels = twin(layer, row, fastrnn, INPUTS, HIDDEN, LAYERS, dtype=dtype, **options)
    layer.load_state_dict(kernels.state_dict())  # as they are in float32
    given = {name: map_state(lambda a: a.astype(dtype), a) for name, a in data.items()}
    got, want = (
        tangents(
            one,
            one.forward(given["x"], given["state"], lengths=lengths_of(layout), rng=np.random.default_rng(3))[2],
            given["dx"],
            given["dstart"],
        )
        for one in (kernels, layer)
    )
    assert all(a.dtype == dtype for a in got.values())
    # A derivative is taken at what forward computed: it has the errors of both, as gradients have.
    assert_close(got, want, GRADIENT32 if dtype == np.float32 else GRADIENT64, 0)


@pytest.mark.drawn(1, representatives=3)
@pytest.mark.parametrize(
    "dims",  # T, B, I, H, L, D
    [(50, 33, 40, 65, 1, 1), (50, 1, 24, 130, 1, 1), (60, 5, 17, 40, 2, 2), (130, 64, 9, 24, 1, 2)],
    ids=str,
)
def test_sizes(isa, threads, row, dims, rng):
    steps, batch, inputs, hidden, layers, directions = dims
    layer = enliven(
        make(row, reference, inputs, hidden, layers, bidirectional=directions == 2, dtype=np.float64), row, rng
    )
    kernels = twin(layer, row, fastrnn, inputs, hidden, layers, bidirectional=directions == 2, dtype=np.float64)
    x, dx = (normal(rng, (steps, batch, inputs)) for _ in range(2))
    dstart = normal_like(rng, layer(x[:1])[1])
    lengths = np.append(rng.integers(0, steps, batch - 1), steps)
    got, want = (tangents(one, one.forward(x, lengths=lengths)[2], dx, dstart) for one in (kernels, layer))
    assert_meaningful(meaningful_part(want, mask_of(lengths, steps)))
    assert_close(got, want, GRADIENT64, 0)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("zero", ["dx", "dstart", "both"])
def test_none_is_a_direction_of_zeros(backend, row, zero, bidirectional, rng):
    layer, data = draw_laid_out(row, backend, "time", rng, bidirectional=bidirectional)
    tape = layer.forward(data["x"], data["state"])[2]
    dx = None if zero in ("dx", "both") else data["dx"]
    dstart = None if zero in ("dstart", "both") else data["dstart"]
    zeros = [np.zeros_like(data["dx"]), map_state(np.zeros_like, data["dstart"])]
    tangents(layer, tape, data["dx"], data["dstart"])  # of whose directions nothing is left
    got = tangents(layer, tape, dx, dstart)
    want = tangents(layer, tape, zeros[0] if dx is None else dx, zeros[1] if dstart is None else dstart)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert zero != "both" or not any(a.any() for a in got.values())


@pytest.mark.parametrize("row", [row for row in ROWS if row.cls == "LSTM"], ids=lambda row: row.id)
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=["dh", "dc", "neither"])
@pytest.mark.drawn(1)
def test_each_half_of_dstate_may_be_none(backend, row, given, rng):
    layer, data = draw_laid_out(row, backend, "padded", rng, bidirectional=True)
    tape = layer.forward(data["x"], data["state"], lengths=LENGTHS)[2]
    got = layer.jvp(tape, data["dx"], tuple(s if one else None for s, one in zip(data["dstart"], given, strict=True)))
    want = layer.jvp(tape, data["dx"], tuple(s * one for s, one in zip(data["dstart"], given, strict=True)))
    for a, b in zip([got[0], *got[1]], [want[0], *want[1]], strict=True):
        assert np.array_equal(a, b)


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_nothing_to_do(backend, row, bidirectional, steps, batch, checkpoint_every, rng):
    """No steps, or no sequences: directions of states pass through."""
    layer = make(row, backend, INPUTS, HIDDEN, 2, bidirectional=bidirectional, dtype=np.float64)
    x = np.empty((steps, batch, INPUTS))
    y, end, tape = layer.forward(x, checkpoint_every=checkpoint_every)
    dstate = normal_like(rng, end)
    got = tangents(layer, tape, x, dstate)
    assert got["y"].shape == y.shape
    assert all(np.array_equal(got[f"state[{i}]"], s) for i, s in enumerate(as_tuple(dstate)))


def test_a_length_of_zero_passes_its_direction_on(backend, row, rng):
    layer, data = draw_laid_out(row, backend, "padded", rng, bidirectional=True)
    got = tangents(layer, layer.forward(data["x"], lengths=LENGTHS)[2], data["dx"], data["dstart"])
    assert not got["y"][:, 1].any()
    for i, s in enumerate(as_tuple(data["dstart"])):
        assert np.array_equal(got[f"state[{i}]"][:, 1], s[:, 1])


# ---- What it depends on. ----


@pytest.mark.drawn(2)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("every", [1, 2, 100])
def test_checkpoints_give_the_same_bits(backend, row, layout, every, rng):
    layer, data = draw_laid_out(row, backend, layout, rng, bidirectional=True, dropout=0.3)
    plain, sparse = (
        tangents(
            layer,
            layer.forward(
                data["x"],
                data["state"],
                lengths=lengths_of(layout),
                checkpoint_every=k,
                rng=np.random.default_rng(3),
            )[2],
            data["dx"],
            data["dstart"],
        )
        for k in (None, every)
    )
    if backend is fastrnn:
        assert_same_bits(sparse, plain)
    else:
        assert_close(sparse, plain, FORWARD64, 0)


@pytest.mark.drawn(1, representatives=4)
@pytest.mark.parametrize(
    "dims",  # T, B, I, H, L, D: many rows, units that threads split, several windows
    [(23, 33, 19, 37, 1, 1), (60, 1, 24, 130, 1, 1), (70, 20, 11, 37, 2, 2)],
    ids=str,
)
def test_threads_instruction_sets_and_checkpoints_give_the_same_bits(dtype, row, dims, rng):
    steps, batch, inputs, hidden, layers, directions = dims
    options = {"bidirectional": directions == 2, "dtype": dtype, "seed": 0}
    layer = enliven(make(row, fastrnn, inputs, hidden, layers, **options), row, rng)
    x, dx = (normal(rng, (steps, batch, inputs), dtype) for _ in range(2))
    dstart = normal_like(rng, layer(x[:1])[1])
    lengths = np.append(rng.integers(0, steps, batch - 1), steps)
    other = twin(layer, row, fastrnn, inputs, hidden, layers, batch_first=True, **options)
    want = None
    for name in FMA_ISAS or ("generic",):
        for n in (1, 2, 3):
            for every in (None, 7):
                with using_isa(name), using_threads(n):
                    tape = layer.forward(x, lengths=lengths, checkpoint_every=every)[2]
                    got = tangents(layer, tape, dx, dstart)
                    want = want or got
                    assert_same_bits(got, want, note=f"{name}, {n} threads, checkpoint_every={every}:")
                    tape = layer.forward(pack(x, lengths), lengths=lengths, checkpoint_every=every)[2]
                    got = tangents(layer, tape, pack(dx, lengths), dstart)
                    assert_same_bits(got, {**want, "y": pack(want["y"], lengths)}, note=f"ragged, {every}:")
                    tape = other.forward(x.swapaxes(0, 1), lengths=lengths, checkpoint_every=every)[2]
                    got = tangents(other, tape, dx.swapaxes(0, 1), dstart)
                    assert_same_bits(got, {**want, "y": want["y"].swapaxes(0, 1)}, note=f"batch first, {every}:")
    assert_meaningful(meaningful_part(want, mask_of(lengths, steps)))


@pytest.mark.drawn(1)
@pytest.mark.parametrize("every", [None, 2])
def test_a_tape_is_complete_and_serves_any_number_of_times(backend, row, dtype, every, rng):
    """Neither the parameters and inputs after forward, nor passes in between, change the answer; nor is anything given
    changed."""
    layer, data = draw_laid_out(row, backend, "time", rng, dtype=dtype, bidirectional=True, dropout=0.3)
    _, _, tape = layer.forward(data["x"], data["state"], checkpoint_every=every)
    kept = [a.copy() for name in data for a in as_tuple(data[name])]
    want = tangents(layer, tape, data["dx"], data["dstart"])
    first = {name: a.copy() for name, a in want.items()}
    back = layer.backward(tape, data["dy"]).x
    assert all(np.array_equal(a, b) for a, b in zip([a for n in data for a in as_tuple(data[n])], kept, strict=True))
    for a in (*layer.params.values(), data["x"], *as_tuple(data["state"])):
        a[...] = 17
    layer.forward(data["x"])
    for _ in range(3):
        assert_same_bits(tangents(layer, tape, data["dx"], data["dstart"]), want)
    assert np.array_equal(layer.backward(tape, data["dy"]).x, back)
    assert_same_bits(want, first)


def test_dropout_has_the_masks_of_the_tape(backend, rng):
    """The second of two linear layers copies what reaches it: tangents are dropped exactly where outputs are."""
    layer = backend.RNN(3, 20, 2, nonlinearity="identity", bias=False, dropout=0.5, dtype=np.float64, seed=1)
    layer.params["weight_ih_l1"][...], layer.params["weight_hh_l1"][...] = np.eye(20), 0
    x = normal(rng, (STEPS, BATCH, 3))
    y, _, tape = layer.forward(x)
    assert 0.3 < np.mean(y == 0) < 0.7  # half of 300 elements: 0.2 is 7 standard deviations
    dy, _ = layer.jvp(tape, x)  # a linear map's derivative is the map
    assert np.array_equal(dy == 0, y == 0)
    assert np.abs(dy - y).max() <= FORWARD64 * np.abs(y).max()


@pytest.mark.parametrize("row", REPRESENTATIVES, ids=lambda row: row.id)
def test_other_dtypes_and_layouts_of_memory(backend, row, rng):
    layer, data = draw_laid_out(row, backend, "time", rng)
    tape = layer.forward(data["x"])[2]
    want = tangents(layer, tape, np.rint(data["dx"]), data["dstart"])
    dx = np.asfortranarray(np.rint(data["dx"]).astype(np.int16))
    start = map_state(lambda s: np.repeat(s, 2, axis=-1)[..., ::2], data["dstart"])
    assert_same_bits(tangents(layer, tape, dx, start), want)


# ---- Bad input. ----


@pytest.fixture(params=[row_of("rnn_tanh"), row_of("lstm"), row_of("tdnn_relu")], ids=lambda row: row.id)
def taped(request, backend):
    layer = make(request.param, backend, 3, 4, dtype=np.float64)
    x = np.ones((5, 2, 3))
    _, state, tape = layer.forward(x)
    return layer, x, state, tape


@pytest.mark.parametrize("dims", [(), (5, 2), (5, 3), (5, 2, 4), (2, 5, 3), (6, 2, 3)], ids=str)
def test_shape_of_dx(taped, dims):
    layer, x, _, tape = taped
    refused(lambda: layer.jvp(tape, np.ones(dims)), "dx", shape(*x.shape), shape(*dims))


@pytest.mark.parametrize(("bad", "came"), NOT_REAL, ids=NOT_REAL_IDS)
def test_dtype_of_directions(taped, bad, came):
    layer, x, state, tape = taped
    refused(lambda: layer.jvp(tape, bad(x.shape)), "dx", came)
    for given, _ in with_one_bad(state, bad):
        refused(lambda given=given: layer.jvp(tape, x, given), "dstate", came)


def test_shape_of_dstate(taped):
    layer, x, state, tape = taped
    for given, s in with_one_bad(state, lambda dims: np.ones((*dims[:-1], dims[-1] + 1))):
        refused(lambda given=given: layer.jvp(tape, x, given), "dstate", shape(*s.shape))
    for given in (np.ones(3), (state, state, state)):
        refused(lambda given=given: layer.jvp(tape, x, given), "dstate")


def test_tapes_of_others(taped, backend):
    layer, x, _, tape = taped
    for bad in (None, 3, x, "tape"):
        refused(lambda bad=bad: layer.jvp(bad), "tape", type(bad).__name__)
    other = type(layer)(3, 4, dtype=np.float64)
    refused(lambda: other.jvp(tape, x), "tape")
