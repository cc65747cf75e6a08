"""A layer's names, shapes, dtypes, initial values, state and parameters, in both backends."""

import numpy as np
import pytest
from helpers import (
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    differing_bits,
    elman,
    enliven,
    infer,
    make,
    map_state,
    normal,
    normal_like,
    train,
    twin,
)

import fastrnn
from fastrnn import reference

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 5, 7


def expected_parameters(row, num_layers, directions, bias):
    shapes = {}
    for layer in range(num_layers):
        inputs = INPUTS if layer == 0 else directions * HIDDEN
        for suffix in ("", "_reverse")[:directions]:
            shapes[f"weight_ih_l{layer}{suffix}"] = (row.gates * HIDDEN, inputs)
            shapes[f"weight_hh_l{layer}{suffix}"] = (row.gates * HIDDEN, HIDDEN)
            if bias:
                shapes[f"bias_ih_l{layer}{suffix}"] = (row.gates * HIDDEN,)
                shapes[f"bias_hh_l{layer}{suffix}"] = (row.gates * HIDDEN,)
    return shapes


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_have_torchs_names_and_shapes(backend, row, dtype, num_layers, bidirectional, bias, rng):
    options = {"bias": bias, "bidirectional": bidirectional, "dtype": dtype}
    layer = make(row, backend, INPUTS, HIDDEN, num_layers, **options)
    want = expected_parameters(row, num_layers, 1 + bidirectional, bias)
    tape = layer.forward(normal(rng, (STEPS, BATCH, INPUTS)))[2]
    for arrays in (layer.params, layer.state_dict(), layer.backward(tape).params):
        assert {name: a.shape for name, a in arrays.items()} == want
        assert all(type(a) is np.ndarray and a.dtype == dtype for a in arrays.values())


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("layout", ["time", "batch", "ragged"])
def test_shapes_and_dtypes(backend, row, dtype, bidirectional, num_layers, layout, rng):
    options = {"bidirectional": bidirectional, "batch_first": layout == "batch", "dtype": dtype}
    layer = make(row, backend, INPUTS, HIDDEN, num_layers, **options)
    lengths = [2, 0, 6, 1] if layout == "ragged" else None
    leading = {"time": (STEPS, BATCH), "batch": (BATCH, STEPS), "ragged": (9,)}[layout]
    x = normal(rng, (*leading, INPUTS), dtype)
    dy = np.ones((*leading, (1 + bidirectional) * HIDDEN), dtype)
    state_shape = (num_layers * (1 + bidirectional), BATCH, HIDDEN)
    results = train(layer, x, lengths=lengths, dy=dy)
    assert results["y"].shape == dy.shape
    assert results["grads.x"].shape == x.shape
    assert results["state[0]"].shape == results["grads.state[0]"].shape == state_shape
    assert all(a.dtype == dtype for a in results.values())
    for call in (layer, layer.frozen()):
        y, state = call(x, lengths=lengths)
        assert y.shape == dy.shape
        assert y.dtype == dtype
        assert all(s.shape == state_shape and s.dtype == dtype for s in as_tuple(state))


def test_one_unbatched_sequence(backend, row, rng):
    layer = make(row, backend, INPUTS, HIDDEN, bidirectional=True, dtype=np.float64)
    x = normal(rng, (STEPS, INPUTS))
    y, state, tape = layer.forward(x)
    grads = layer.backward(tape, np.ones_like(y), normal_like(rng, state))
    assert y.shape == (STEPS, 2 * HIDDEN)
    assert grads.x.shape == x.shape
    assert map_state(np.shape, grads.state) == map_state(np.shape, state)
    again, state = layer(x, state)  # the returned state is one that is taken
    assert again.shape == y.shape
    assert not np.array_equal(again, y)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_step_shapes(backend, row, dtype, batch, rng):
    layer = make(row, backend, INPUTS, HIDDEN, 2, dtype=dtype)
    x_t = normal(rng, (batch, INPUTS), dtype)
    for step in (layer.step, layer.frozen().step):
        state = None
        for _ in range(2):
            y_t, state = step(x_t, state)
            assert y_t.shape == (batch, HIDDEN)
            assert y_t.dtype == dtype
            assert all(s.shape == (2, batch, HIDDEN) and s.dtype == dtype for s in as_tuple(state))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_equation(backend, row, bidirectional, bias, rng):
    """Against an implementation that is nothing but the equation: names and orientation of all its terms."""
    if row.cls != "RNN":
        pytest.skip("the oracle is an Elman network")
    layer = make(row, backend, INPUTS, HIDDEN, 2, bidirectional=bidirectional, bias=bias, dtype=np.float64)
    enliven(layer, row, rng)
    x = normal(rng, (STEPS, BATCH, INPUTS))
    state = normal_like(rng, layer(x)[1])
    lengths = [6, 0, 3, 5]
    y, end, _ = elman(x, layer.params, state, lengths, row.options["nonlinearity"])
    # 20 terms at most in a sum, two layers of six steps: a hundred rounding units are ample.
    assert_close(infer(layer, x, state, lengths), {"y": y, "state[0]": end}, forward=1e-14, gradient=0)


def test_defaults(backend, row):
    layer = make(row, backend, INPUTS, HIDDEN)
    assert layer.params.keys() == expected_parameters(row, 1, 1, bias=True).keys()
    assert layer(np.zeros((STEPS, BATCH, INPUTS)))[0].shape == (STEPS, BATCH, HIDDEN)
    assert all(p.dtype == np.float32 for p in layer.params.values())


def test_the_default_nonlinearity_is_tanh(backend):
    layer, other = (
        backend.RNN(INPUTS, HIDDEN, seed=1),
        backend.RNN(INPUTS, HIDDEN, seed=1, nonlinearity="tanh"),
    )
    x = np.ones((STEPS, BATCH, INPUTS), np.float32)
    assert differing_bits(layer(x)[0], other(x)[0]) == 0
    assert not np.array_equal(layer(x)[0], backend.RNN(INPUTS, HIDDEN, seed=1, nonlinearity="relu")(x)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64", np.dtype("float64"), np.float32])
def test_dtype_is_anything_numpy_takes(backend, row, dtype):
    layer = make(row, backend, INPUTS, HIDDEN, dtype=dtype)
    assert all(p.dtype == np.dtype(dtype) for p in layer.params.values())


# ---- Initial values. ----


@pytest.mark.parametrize("inputs", [8, 400])
def test_initial_values_fill_the_range(backend, row, dtype, inputs):
    """U(-1/sqrt(H), 1/sqrt(H)) for all, biases too, and whatever the input size."""
    layer = make(row, backend, inputs, 256, 2, bidirectional=True, dtype=dtype, seed=3)
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
        "dy": normal(rng, (STEPS, BATCH, 2 * HIDDEN), dtype),
    }
    x_t = data["x"][0]
    stepper = enliven(make(row, backend, INPUTS, HIDDEN, dtype=dtype), row, rng)
    for name in layer.params:
        before = train(layer, **data)
        layer.params[name] *= dtype(1.5)
        after = train(layer, **data)
        assert not np.array_equal(after["y"], before["y"]), name
        assert differing_bits(layer(data["x"])[0], after["y"]) == 0, name
        fresh = twin(layer, row, backend, INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype)
        assert_same_bits(train(fresh, **data), after, note=name)
    for name in stepper.params:
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
    dy = normal(rng, (STEPS, BATCH, HIDDEN), dtype)
    assert_same_bits(train(layer, x, dy=dy), train(layer, x, zeros, dy=dy))
    assert differing_bits(layer.step(x[0])[0], layer.step(x[0], zeros)[0]) == 0


def test_every_layer_and_direction_uses_its_own_state(backend, row, rng):
    """Row l*D + d of the state is the start of layer l, direction d."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, bidirectional=True, dtype=np.float64), row, rng)
    x = normal(rng, (1, BATCH, INPUTS))
    _, state = layer(x)
    start = map_state(np.abs, normal_like(rng, state))  # above zero, so that rectifiers stay awake
    _, end = layer(x, start)
    for k, expected in enumerate([{0, 2, 3}, {1, 2, 3}, {2}, {3}]):
        other = map_state(np.copy, start)
        for s in as_tuple(other):
            s[k] += 1
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
    y, state = layer(x)
    inputs = {"x": x, "dy": normal_like(rng, y), "lengths": np.array([3, 0, 6, 1])}
    inputs |= {"state": normal_like(rng, state), "dstate": normal_like(rng, state)}
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
    assert y.shape == (2**50, 0, 4)
    assert grads.x.shape == (2**50, 0, 3)
    assert not any(gradient.any() for gradient in grads.params.values())
