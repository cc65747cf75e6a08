"""A layer's names, shapes, dtypes, initial values, state and parameters, in both backends."""

import numpy as np
import oracles
import pytest
from helpers import (
    arguments_for,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    differing_bits,
    enliven,
    infer,
    make,
    map_state,
    mask_of,
    normal,
    normal_like,
    steps_of,
    train,
    twin,
)

import fastrnn
from fastrnn import reference

pytestmark = pytest.mark.drawn(1)

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 5, 7


def expected_parameters(row, num_layers, directions, bias):
    """By name, in any order."""
    shapes, rows, outputs = {}, row.gates * HIDDEN, row.output_size(HIDDEN)
    for layer in range(num_layers):
        inputs = INPUTS if layer == 0 else directions * outputs
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:directions]:
            if row.cls == "TDNN":
                layer_shapes = {"weight": (HIDDEN, len(row.options["context"]), inputs), "bias": (HIDDEN,)}
            else:
                layer_shapes = {"weight_ih": (rows, inputs), "bias_ih": (rows,)}
            if row.cls in ("RNN", "LSTM", "GRU"):
                layer_shapes |= {"weight_hh": (rows, outputs), "bias_hh": (rows,)}
            if row.projected:
                layer_shapes["weight_hr"] = (outputs, HIDDEN)
            if row.options.get("peephole"):
                layer_shapes["weight_peep"] = (3 * HIDDEN,)
            shapes |= {name + suffix: dims for name, dims in layer_shapes.items() if bias or "bias" not in name}
    return shapes


@pytest.mark.drawn(3)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_have_the_contracts_names_and_shapes(backend, row, dtype, num_layers, bidirectional, bias, rng):
    options = {"bias": bias, "bidirectional": bidirectional, "dtype": dtype}
    layer = make(row, backend, INPUTS, HIDDEN, num_layers, **options)
    want = expected_parameters(row, num_layers, 1 + bidirectional, bias)
    tape = layer.forward(normal(rng, (STEPS, BATCH, INPUTS)))[2]
    for arrays in (layer.params, layer.state_dict(), layer.backward(tape).params):
        assert {name: a.shape for name, a in arrays.items()} == want
        assert all(type(a) is np.ndarray and a.dtype == dtype for a in arrays.values())


@pytest.mark.drawn(3)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("layout", ["time", "batch", "ragged"])
def test_shapes_and_dtypes(backend, row, dtype, bidirectional, num_layers, layout, rng):
    options = {"bidirectional": bidirectional, "batch_first": layout == "batch", "dtype": dtype}
    layer = make(row, backend, INPUTS, HIDDEN, num_layers, **options)
    lengths = [2, 0, 6, 1] if layout == "ragged" else None
    leading = {"time": (STEPS, BATCH), "batch": (BATCH, STEPS), "ragged": (9,)}[layout]
    x = normal(rng, (*leading, INPUTS), dtype)
    dy = np.ones((*leading, (1 + bidirectional) * row.output_size(HIDDEN)), dtype)
    state_shapes = row.state_shapes(num_layers * (1 + bidirectional), BATCH, HIDDEN)
    results = train(layer, x, lengths=lengths, dy=dy)
    assert results["y"].shape == dy.shape
    assert results["grads.x"].shape == x.shape
    for i, state_shape in enumerate(state_shapes):
        assert results[f"state[{i}]"].shape == results[f"grads.state[{i}]"].shape == state_shape
    assert all(a.dtype == dtype for a in results.values())
    for call in (layer, layer.frozen()):
        y, state = call(x, lengths=lengths)
        assert y.shape == dy.shape
        assert y.dtype == dtype
        assert tuple(s.shape for s in as_tuple(state)) == state_shapes
        assert all(s.dtype == dtype for s in as_tuple(state))


def test_the_form_of_the_state(backend, row):
    """One array, the pair (h, c), or None: from a call, from forward, and as a gradient."""
    layer = make(row, backend, INPUTS, HIDDEN)
    x = np.zeros((STEPS, BATCH, INPUTS))
    _, state, tape = layer.forward(x)
    states = [state, layer(x)[1], layer.frozen()(x)[1], layer.backward(tape, dstate=state).state]
    states += [step(x[0])[1] for step in steps_of(row, layer)]
    form = {0: type(None), 1: np.ndarray, 2: tuple}[len(row.parts)]
    assert [type(s) for s in states] == [form] * len(states)
    assert all(len(as_tuple(s)) == len(row.parts) for s in states)


def test_one_unbatched_sequence(backend, row, rng):
    layer = make(row, backend, INPUTS, HIDDEN, bidirectional=True, dtype=np.float64)
    x = normal(rng, (STEPS, INPUTS))
    y, state, tape = layer.forward(x)
    grads = layer.backward(tape, np.ones_like(y), normal_like(rng, state))
    assert y.shape == (STEPS, 2 * row.output_size(HIDDEN))
    assert grads.x.shape == x.shape
    assert map_state(np.shape, grads.state) == map_state(np.shape, state)
    again, _ = layer(x, state)  # the returned state is one that is taken
    assert again.shape == y.shape
    assert np.array_equal(again, y) == (state is None)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_step_shapes(backend, row, dtype, batch, rng):
    layer = make(row, backend, INPUTS, HIDDEN, 2, dtype=dtype)
    x_t = normal(rng, (batch, INPUTS), dtype)
    for step in steps_of(row, layer):
        state = None
        for _ in range(2):
            y_t, state = step(x_t, state)
            assert y_t.shape == (batch, row.output_size(HIDDEN))
            assert y_t.dtype == dtype
            assert tuple(s.shape for s in as_tuple(state)) == row.state_shapes(2, batch, HIDDEN)
            assert all(s.dtype == dtype for s in as_tuple(state))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_equation(backend, row, bidirectional, bias, rng):
    """Against an implementation that is nothing but the equation: names and orientation of all its terms."""
    layer = make(row, backend, INPUTS, HIDDEN, 2, bidirectional=bidirectional, bias=bias, dtype=np.float64)
    enliven(layer, row, rng)
    x = normal(rng, (STEPS, BATCH, INPUTS))
    state = normal_like(rng, layer(x)[1])
    lengths = [6, 0, 3, 5]
    want = oracles.run(row.cls, row.options_for(HIDDEN), layer.params, x, as_tuple(state), lengths).results
    assert_meaningful(want, mask_of(lengths, STEPS))
    # 20 terms at most in a sum, two layers of six steps: a hundred rounding units are ample.
    assert_close(infer(layer, x, state, lengths), want, forward=1e-14, gradient=0)


def test_defaults(backend, row):
    layer = make(row, backend, INPUTS, HIDDEN)
    assert layer.params.keys() == expected_parameters(row, 1, 1, bias=True).keys()
    assert layer(np.zeros((STEPS, BATCH, INPUTS)))[0].shape == (STEPS, BATCH, row.output_size(HIDDEN))
    assert all(p.dtype == np.float32 for p in layer.params.values())


DEFAULTS = [
    ("RNN", {"nonlinearity": "tanh"}),
    ("LSTM", {"proj_size": 0, "peephole": False, "forget_gate": True, "coupled": False}),
    ("GRU", {"reset_after": True}),
    ("CEC", {"nonlinearity": "tanh", "readout": "identity"}),
    ("TDNN", {"context": (-2, -1, 0, 1, 2), "nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("cls", "options"), DEFAULTS, ids=[cls for cls, _ in DEFAULTS])
def test_the_defaults_of_own_options(backend, cls, options, rng):
    x = normal(rng, (STEPS, BATCH, INPUTS))
    results = []
    for given in ({}, options):
        layer = getattr(backend, cls)(INPUTS, HIDDEN, seed=1, **given)
        results.append({**layer.params, **infer(layer, x)})
    assert_same_bits(*results)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("dtype", ["float32", "float64", np.dtype("float64"), np.float32])
def test_dtype_is_anything_numpy_takes(backend, row, dtype):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=dtype)
    assert all(p.dtype == np.dtype(dtype) for p in layer.params.values())


# ---- Initial values. ----


@pytest.mark.drawn(1)
def test_initial_values_fill_the_range(backend, row, dtype):
    """U(-1/sqrt(H), 1/sqrt(H)) for all, biases too, and whatever the input size: 8 of the first layer, then 512."""
    layer = make(row, backend, 8, 256, 2, bidirectional=True, dtype=dtype, seed=3)
    bound = 1 / 16
    for name, p in layer.params.items():
        assert np.abs(p).max() <= bound, name
        # Of 256 or more uniform values, all within 95 % of the range has a chance of 0.95^256 = 2e-6.
        assert p.max() > 0.9 * bound, name
        assert p.min() < -0.9 * bound, name
        # Five standard deviations of a mean of uniform values.
        assert abs(p.mean()) < 5 * bound / np.sqrt(3 * p.size), name
        assert len(np.unique(p)) > 0.9 * p.size, name


def test_no_two_parameters_start_alike(backend, row):
    layer = make(row, backend, HIDDEN, HIDDEN, 2, bidirectional=True, seed=3)
    values = [p.ravel()[:HIDDEN].tobytes() for p in layer.params.values()]
    assert len(set(values)) == len(values)


def test_the_seed_gives_the_parameters(backend, row, dtype):
    def params(seed):
        return make(row, backend, INPUTS, HIDDEN, 2, dtype=dtype, seed=seed).state_dict()

    assert_same_bits(params(7), params(7))
    for one, other in ((7, 8), (None, None), (0, None)):
        a, b = params(one), params(other)
        assert not any(np.array_equal(a[name], b[name]) for name in a)


def test_both_backends_start_alike(row, dtype):
    """Swapping them in a program changes its speed and nothing else."""
    sizes = (INPUTS, HIDDEN, 2)
    options = {"bidirectional": True, "dtype": dtype, "seed": 7}
    assert_same_bits(make(row, fastrnn, *sizes, **options).params, make(row, reference, *sizes, **options).params)


# ---- Parameters are the layer's own arrays. ----


def test_a_change_in_place_is_seen_by_the_next_call(backend, row, dtype, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype), row, rng)
    data = {
        "x": normal(rng, (STEPS, BATCH, INPUTS), dtype),
        "dy": normal(rng, (STEPS, BATCH, 2 * row.output_size(HIDDEN)), dtype),
    }
    x_t = data["x"][0]
    stepper = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    before = train(layer, **data)
    for name in layer.params:
        layer.params[name] *= dtype(1.5)
        after = train(layer, **data)
        assert not np.array_equal(after["y"], before["y"]), name
        assert differing_bits(layer(data["x"])[0], after["y"]) == 0, name
        fresh = twin(layer, row, backend, INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype)
        assert_same_bits(train(fresh, **data), after, note=name)
        before = after
    for name in stepper.params if steps_of(row, stepper) else ():
        state = normal_like(rng, stepper.step(x_t)[1])
        before = stepper.step(x_t, state)[0]
        stepper.params[name][...] *= dtype(1.5)
        assert not np.array_equal(stepper.step(x_t, state)[0], before), name


def test_loading_keeps_the_arrays_and_copies_the_values(backend, row, dtype, rng):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=dtype)
    arrays = dict(layer.params)
    given = {name: normal(rng, p.shape, dtype) for name, p in arrays.items()}
    layer.load_state_dict(given)
    assert_same_bits(layer.params, given)
    assert_same_bits(arrays, given)
    for a in given.values():
        a += 1
    assert not any(np.array_equal(p, given[name]) for name, p in layer.params.items())


def test_state_dict_goes_round(backend, row, dtype, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, dtype=dtype), row, rng)
    for other_backend in (fastrnn, reference):
        other = twin(layer, row, other_backend, INPUTS, HIDDEN, 2, dtype=dtype)
        assert_same_bits(other.state_dict(), layer.state_dict())


def test_loading_converts_real_dtypes(backend, row):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=np.float32)
    integers = {name: np.arange(p.size).reshape(p.shape) for name, p in layer.params.items()}
    layer.load_state_dict(integers)
    for name, p in layer.params.items():
        assert p.dtype == np.float32
        assert np.array_equal(p, integers[name])


# ---- State. ----


def test_no_state_is_a_state_of_zeros(backend, row, dtype, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, dtype=dtype), row, rng)
    x = normal(rng, (STEPS, BATCH, INPUTS), dtype)
    zeros = map_state(np.zeros_like, layer(x)[1])
    dy = normal(rng, (STEPS, BATCH, row.output_size(HIDDEN)), dtype)
    assert_same_bits(train(layer, x, dy=dy), train(layer, x, zeros, dy=dy))
    for step in steps_of(row, layer):
        assert differing_bits(step(x[0])[0], step(x[0], zeros)[0]) == 0


def test_every_layer_and_direction_uses_its_own_state(backend, row, rng):
    """Row l*D + d of the state is the start of layer l, direction d, and so for each array of the state alone."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, bidirectional=True, dtype=np.float64), row, rng)
    x = normal(rng, (1, BATCH, INPUTS))
    _, state = layer(x)
    start = map_state(np.abs, normal_like(rng, state))  # above zero, so that rectifiers stay awake
    _, end = layer(x, start)
    for part in range(len(row.parts)):
        for k, expected in enumerate([{0, 2, 3}, {1, 2, 3}, {2}, {3}]):
            other = map_state(np.copy, start)
            as_tuple(other)[part][k] += 1
            changed = as_tuple(layer(x, other)[1])[0] != as_tuple(end)[0]
            assert {i for i in range(4) if changed[i].any()} == expected


def test_outputs_are_new_arrays(backend, row, rng):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=np.float64)
    x = normal(rng, (STEPS, BATCH, INPUTS))
    state = normal_like(rng, layer(x)[1])
    for steps in (STEPS, 0):
        y, end = layer(x[:steps], state)
        arrays = [x, y, *as_tuple(state), *as_tuple(end), *layer.params.values()]
        for i, a in enumerate(arrays):
            assert not any(np.shares_memory(a, b) for b in arrays[:i])
    y, _ = layer(x, state)
    kept = y.copy()
    layer(2 * x, state)
    assert differing_bits(y, kept) == 0


def test_a_call_changes_no_input(backend, row, rng):
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, bidirectional=True, dtype=np.float64), row, rng)
    x = normal(rng, (STEPS, BATCH, INPUTS))
    inputs = arguments_for(layer, x, rng) | {"lengths": np.array([3, 0, 6, 1])}
    kept = {name: map_state(np.copy, a) for name, a in inputs.items()} | layer.state_dict()
    assert_meaningful(train(layer, **{**inputs, "lengths": None}))
    train(layer, **inputs)
    infer(layer, x, inputs["state"], inputs["lengths"])
    now = inputs | layer.params
    for name, before in kept.items():
        for a, b in zip(as_tuple(now[name]), as_tuple(before), strict=True):
            assert differing_bits(np.asarray(a), np.asarray(b)) == 0, name


def test_an_empty_batch_takes_no_time_however_long(row):
    layer = make(row, fastrnn, 3, 4)
    y, _, tape = layer.forward(np.empty((2**50, 0, 3), np.float32))
    grads = layer.backward(tape)
    assert y.shape == (2**50, 0, row.output_size(4))
    assert grads.x.shape == (2**50, 0, 3)
    assert not any(gradient.any() for gradient in grads.params.values())
