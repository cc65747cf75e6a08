"""The gradient flow of every cell: against differences, `backward`, other layouts, single sequences and layers."""

import numpy as np
import pytest
from flows import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUTS,
    LENGTHS,
    RECURRENT,
    STEPS,
    alone,
    assert_flows_agree,
    assert_form,
    recurrent_gradient,
    study,
)
from helpers import as_tuple, mask_of, normal, pack, poison, twin

import fastrnn
from fastrnn import reference


@pytest.fixture(params=CELLS, ids=[row.id for row in CELLS])
def cell(request):
    return request.param


@pytest.mark.parametrize("row", RECURRENT, ids=[row.id for row in RECURRENT])
def test_lags_sum_to_the_whole_gradient(gradient_flow, close, row, rng):
    layer, x, dy, state = study(row, rng)
    grads = layer.backward(layer.forward(x, state, lengths=LENGTHS)[2], dy)
    flow = gradient_flow(layer, x, dy, state, lengths=LENGTHS, lag_matrices=True)
    assert_form(flow, STEPS, BATCH)
    assert flow.lag_matrices.dtype == np.float64
    want = recurrent_gradient(layer, grads)
    assert np.abs(want).max() > 0.01
    np.testing.assert_allclose(flow.lag_matrices.sum(0), want, rtol=1e-12, atol=1e-12 * np.abs(want).max())
    np.testing.assert_allclose(flow.lag_gradient, np.sqrt((flow.lag_matrices**2).sum((1, 2))), rtol=close)
    # Fewer lags are the first of them, and without being asked for the matrices are not kept.
    part = gradient_flow(layer, x, dy, state, lengths=LENGTHS, max_lag=3)
    np.testing.assert_allclose(part.lag_gradient, flow.lag_gradient[:4], rtol=close)
    assert part.lag_matrices is None


def test_a_lag_is_what_one_steps_weights_do_so_many_steps_later(gradient_flow, cell, rng):
    """By central differences: the weights change in step k alone, and step k + l is watched."""
    layer, x, dy, state = study(cell, rng, steps=5)
    name = "weight_ih_l0" if cell.cls == "CEC" else "weight_hh_l0"
    weights, direction, size = layer.params[name].copy(), normal(rng, layer.params[name].shape), 1e-5
    want = np.zeros(5)
    for k in range(5):
        for sign in (1, -1):
            s = state
            for t in range(5):
                layer.params[name] = weights + sign * size * direction * (t == k)
                y, s = layer.step(x[t], s)
                if t >= k:
                    want[t - k] += sign * (dy[t] * y).sum() / (2 * size)
    layer.params[name] = weights
    got = (gradient_flow(layer, x, dy, state, lag_matrices=True).lag_matrices * direction).sum((1, 2))
    np.testing.assert_allclose(got, want, atol=1e-8 * np.abs(want).max())  # size^2, and rounding over size


def jacobian(layer, x, state, b, wanted):
    """d(what `wanted` takes from y and the end state)/d(the state) of sequence b, by central differences."""
    columns = []
    for place, array in enumerate(state):
        for j in range(array.shape[-1]):
            ends = []
            for sign in (1, -1):
                changed = [s.copy() for s in state]
                changed[place][0, b, j] += sign * 1e-5
                y, end = layer(x, layer._pack_state(tuple(changed)))
                ends.append(
                    np.concatenate([part.ravel() for part in wanted(y[:, b], [s[0, b] for s in as_tuple(end)])])
                )
            columns.append((ends[0] - ends[1]) / 2e-5)
    return np.stack(columns, 1)


def test_flow_and_gamma_by_differences(gradient_flow, cell, rng):
    layer, x, dy, state = study(cell, rng)
    flow = gradient_flow(layer, x, dy, state)
    states = [as_tuple(state)]
    for x_t in x:
        states.append(as_tuple(layer.step(x_t, layer._pack_state(states[-1]))[1]))
    for b in range(BATCH):
        for k in (0, 3, STEPS - 1):
            to_end = jacobian(layer, x[k:], states[k], b, lambda y, end: [y[-1]])
            np.testing.assert_allclose(flow.flow[k, b], np.linalg.norm(to_end, 2), rtol=1e-7, atol=1e-9)
            one = jacobian(layer, x[k : k + 1], states[k], b, lambda y, end: end)
            np.testing.assert_allclose(flow.gamma[k, b], np.linalg.norm(one, 2), rtol=1e-7, atol=1e-9)


def test_norms_of_the_gradient(gradient_flow, close, cell, rng):
    """dJ/dh_t is dy_t and what `backward` brings to the initial state of the steps after t; for CEC dJ/dc_t."""
    layer, x, dy, state = study(cell, rng)
    flow = gradient_flow(layer, x, dy, state)
    for t in range(STEPS):
        after = layer.forward(x[: t + 1], state)[1]
        grads = layer.backward(layer.forward(x[t + 1 :], after)[2], dy[t + 1 :])
        own = dy[t] * (1 - np.tanh(after[0]) ** 2) if cell.cls == "CEC" else dy[t]
        want = np.linalg.norm(own + as_tuple(grads.state)[0][0], axis=-1)
        np.testing.assert_allclose(flow.grad_norm[t], want, rtol=close)


def test_each_sequence_alone(gradient_flow, close, cell, rng):
    layer, x, dy, state = study(cell, rng)
    flow = gradient_flow(layer, poison(x, LENGTHS), poison(dy, LENGTHS), state, lengths=LENGTHS, lag_matrices=True)
    total = np.zeros_like(flow.lag_matrices)
    for b, n in enumerate(LENGTHS):
        own = layer._pack_state(tuple(s[:, b] for s in as_tuple(state)))
        single = gradient_flow(layer, x[:n, b], dy[:n, b], own, lag_matrices=True)
        assert_form(single, n, 1)
        for name in ("gamma", "grad_norm", "gamma_f", "bound"):
            if getattr(flow, name) is not None:
                np.testing.assert_allclose(getattr(flow, name)[:n, b], getattr(single, name)[:, 0], rtol=close)
        np.testing.assert_allclose(flow.flow[: n + 1, b], single.flow[:, 0], rtol=close)
        assert flow.horizon[b] == single.horizon[0]
        total[:n] += single.lag_matrices
    np.testing.assert_allclose(flow.lag_matrices, total, atol=close * np.abs(total).max())


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_layouts(gradient_flow, close, cell, lengths, rng):
    """Batch-first and ragged batches, and lists: the results are time-major in any case."""
    layer, x, dy, state = study(cell, rng)
    want = gradient_flow(layer, x, dy, state, lengths=lengths, lag_matrices=True)
    other = make_like(layer, cell, batch_first=True)
    got = gradient_flow(other, x.swapaxes(0, 1), dy.swapaxes(0, 1), state, lengths=lengths, lag_matrices=True)
    assert_flows_agree(got, want, close)
    if lengths is not None:
        args = pack(x, lengths).tolist(), pack(dy, lengths).tolist(), state
        assert_flows_agree(gradient_flow(layer, *args, lengths=lengths.tolist(), lag_matrices=True), want, close)


def make_like(layer, row, backend=reference, **options):
    given = {"dtype": layer.dtype, "bidirectional": layer.bidirectional, **options}
    return twin(layer, row, backend, INPUTS, HIDDEN, layer.num_layers, **given)


@pytest.mark.parametrize(("level", "direction"), [(0, 1), (1, 0), (-1, 1)])
def test_one_level_and_direction_of_a_stack(gradient_flow, close, cell, level, direction, rng):
    """The same as a single layer's on what comes up to it and down to it, reversed for the reverse direction."""
    layer, x, dy, state = study(cell, rng, num_layers=3, bidirectional=True)
    k, O, args = level % 3, dy.shape[-1] // 2, {"lengths": LENGTHS, "lag_matrices": True}
    *_, tape = layer.forward(x, state, lengths=LENGTHS)
    flow = gradient_flow(layer, x, dy, state, level=level, direction=direction, **args)
    want = recurrent_gradient(layer, layer.backward(tape, dy), level, direction)
    np.testing.assert_allclose(flow.lag_matrices.sum(0), want, rtol=1e-11, atol=1e-12 * np.abs(want).max())

    def turned(a):
        return np.stack([np.concatenate([a[:n, b][::-1], a[n:, b]]) for b, n in enumerate(LENGTHS)], 1)

    up = x if k == 0 else tape.h[k - 1]
    down = dy
    if k < 2:  # dJ/dy of this level, through the levels above, made one stack
        above = make_above(layer, cell, k + 1)
        rest = layer._pack_state(tuple(s[2 * (k + 1) :] for s in as_tuple(state)))
        down = above.backward(above.forward(tape.h[k], rest, lengths=LENGTHS)[2], dy).x
    down = down[..., direction * O : (direction + 1) * O]
    if direction:
        up, down = turned(up), turned(down)
    own = layer._pack_state(tuple(s[2 * k + direction][None] for s in as_tuple(state)))
    single = gradient_flow(alone(layer, cell, level, direction), up, down, own, **args)
    assert_flows_agree(flow, single, close)


def make_above(layer, row, first):
    """The layers of a bidirectional stack from `first` on, as a stack of their own."""
    width = layer._output_width
    options = row.options_for(HIDDEN) | {"bidirectional": True, "dtype": np.float64}
    above = getattr(reference, row.cls)(width, HIDDEN, layer.num_layers - first, **options)
    for new in range(above.num_layers):
        for name in [name for name in above.params if f"_l{new}" in name]:
            above.params[name] = layer.params[name.replace(f"_l{new}", f"_l{new + first}")]
    return above


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["single", "stack"])
def test_layers_of_both_packages_at_some_length(gradient_flow, cell, options, rng):
    layer, x, dy, state = study(cell, rng, steps=60, backend=fastrnn, **options)
    lengths = [60, 17, 44]
    other = make_like(layer, cell)
    for direction in range(layer.num_directions):
        args = {"lengths": lengths, "direction": direction, "lag_matrices": True}
        got = gradient_flow(layer, x, dy, state, **args)
        assert_flows_agree(got, reference.gradient_flow(other, x, dy, state, **args))


def test_a_float32_layer_is_studied_in_float64(gradient_flow, close, cell, rng):
    """Of the parameters and inputs as it has them, rounded to float32."""
    layer, x, dy, state = study(cell, rng, dtype=np.float32)
    x, dy = normal(rng, x.shape), normal(rng, dy.shape)
    double = make_like(layer, cell, dtype=np.float64)
    got = gradient_flow(layer, x, dy, state)
    assert_form(got, STEPS, BATCH)
    want = gradient_flow(double, x.astype(np.float32), dy.astype(np.float32), state)
    assert_flows_agree(got, want, close)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_dropout_and_no_change(gradient_flow, close, cell, level, rng):
    layer, x, dy, state = study(cell, rng, num_layers=3, dropout=0.5)
    other = twin(layer, cell, reference, INPUTS, HIDDEN, 3, dtype=np.float64)
    generator, params = str(layer._dropout_rng.bit_generator.state), layer.state_dict()
    for array in (x, dy, *as_tuple(state)):
        array.flags.writeable = False
    got = gradient_flow(layer, x, dy, state, level=level)
    assert_flows_agree(got, gradient_flow(other, x, dy, state, level=level), close)
    assert str(layer._dropout_rng.bit_generator.state) == generator
    assert all((layer.params[name] == value).all() for name, value in params.items())


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0), (1, 1)])
def test_few_or_no_steps(gradient_flow, cell, steps, batch, rng):
    layer, *_ = study(cell, rng)
    dy = np.ones((steps, batch, layer._output_width))
    flow = gradient_flow(layer, np.ones((steps, batch, INPUTS)), dy, lag_matrices=True)
    assert_form(flow, steps, batch)
    assert (flow.lag_gradient.shape, len(flow.lag_matrices)) == ((steps,), steps)
    if cell.cls != "CEC":
        assert (flow.flow[-1] == 1).all()
    assert not mask_of(flow.lengths, steps).any() or flow.verdict


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": reference.TDNN(INPUTS, HIDDEN)}, ValueError, "layer: expected a recurrent one, got TDNN"),
        ({"layer": "RNN"}, TypeError, "layer: expected a layer of fastrnn, got str"),
        ({"max_lag": -1}, ValueError, f"max_lag: expected 0 to {STEPS - 1}, got -1"),
        ({"max_lag": STEPS}, ValueError, f"max_lag: expected 0 to {STEPS - 1}, got {STEPS}"),
        ({"max_lag": 2.5}, TypeError, "max_lag: expected an integer, got 2.5"),
        ({"dy": np.ones((STEPS - 1, BATCH, HIDDEN))}, ValueError, r"dy: expected shape \(9, 3, 6\), got \(8, 3, 6\)"),
        ({"dy": None}, TypeError, "dy: expected an array of real numbers"),
        ({"x": np.ones((STEPS, BATCH, 1))}, ValueError, "x: expected shape"),
        ({"state": np.ones((2, BATCH, HIDDEN))}, ValueError, "state: expected shape"),
        ({"lengths": [1, 2]}, ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
        ({"level": 1}, ValueError, "level: expected -1 to 0, got 1"),
        ({"level": -2}, ValueError, "level: expected -1 to 0, got -2"),
        ({"direction": 1}, ValueError, "direction: expected 0 to 0, got 1"),
        ({"lag_matrices": "yes"}, TypeError, "lag_matrices: expected True or False, got 'yes'"),
    ],
)
def test_bad_arguments(gradient_flow, arguments, error, message):
    given = {"x": np.ones((STEPS, BATCH, INPUTS)), "dy": np.ones((STEPS, BATCH, HIDDEN)), **arguments}
    with pytest.raises(error, match=message):
        gradient_flow(given.pop("layer", reference.RNN(INPUTS, HIDDEN)), given.pop("x"), given.pop("dy"), **given)


@pytest.mark.parametrize("cls", ["RNN", "LSTM", "GRU", "CEC"])
@pytest.mark.parametrize("lengths", [(23, 3), (0, 0), (24, 0), ()], ids=str)
def test_no_sequence_reaches_the_last_steps(cls, lengths, rng):
    x, dy = rng.standard_normal((40, len(lengths), 3)), rng.standard_normal((40, len(lengths), 4))
    layers = [getattr(package, cls)(3, 4, seed=0, dtype=np.float64) for package in (fastrnn, reference)]
    got, want = (
        package.gradient_flow(layer, x, dy, lengths=np.array(lengths, int))
        for package, layer in zip((fastrnn, reference), layers, strict=True)
    )
    np.testing.assert_allclose(got.flow, want.flow, rtol=1e-9)
    np.testing.assert_allclose(got.lag_gradient, want.lag_gradient, rtol=1e-9, atol=1e-12)


def test_max_lag_without_steps(gradient_flow):
    with pytest.raises(ValueError, match="max_lag: expected None without steps, got 0"):
        gradient_flow(reference.RNN(INPUTS, HIDDEN), np.ones((0, 1, INPUTS)), np.ones((0, 1, HIDDEN)), max_lag=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "dy", "h", "c", "weight_hh_l1"])
def test_arguments_that_are_not_finite(gradient_flow, name, bad, rng):
    layer = reference.LSTM(INPUTS, HIDDEN, 2, dtype=np.float64)
    x, dy = normal(rng, (STEPS, BATCH, INPUTS)), normal(rng, (STEPS, BATCH, HIDDEN))
    h, c = normal(rng, (2, 2, BATCH, HIDDEN))
    arrays = {"x": x, "dy": dy, "h": h, "c": c, **layer.params}
    arrays[name].reshape(-1, *arrays[name].shape[-2:])[-1, -1, -1] = bad
    where = {
        "x": f"x: expected finite values, got {bad} at step 8, sequence 2",
        "dy": f"dy: expected finite values, got {bad} at step 8, sequence 2",
        "h": f"state: expected finite values, got {bad} in h of level 1, sequence 2",
        "c": f"state: expected finite values, got {bad} in c of level 1, sequence 2",
        "weight_hh_l1": rf"weight_hh_l1: expected finite values, got {bad} at \[23, 5\]",
    }
    with pytest.raises(ValueError, match=where[name]):
        gradient_flow(layer, x, dy, (h, c))


def test_a_gate_that_is_not_a_number():
    """Where infinities of both signs meet, W x and R h, named before the states that it spoils. In the kernels, where
    the two are one chain of fused multiply-adds, they do not meet."""
    layer = reference.LSTM(2, 2, dtype=np.float64)
    layer.params["weight_ih_l0"][2:4] = -1e200
    layer.params["weight_hh_l0"][2:4] = 1e200
    x, h = np.ones((STEPS, BATCH, 2)), np.zeros((1, BATCH, 2))
    x[0, 1], h[0, 1] = 1e200, 1e200
    message = "layer: expected states that stay finite, got nan in gate f of level 0, first at step 0, sequence 1"
    with pytest.raises(ValueError, match=message):
        reference.gradient_flow(layer, x, np.ones((STEPS, BATCH, 2)), (h, np.zeros_like(h)))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gate_that_saturates_is_finite(gradient_flow, sign):
    layer = reference.LSTM(2, 2, dtype=np.float64)
    layer.params["weight_ih_l0"][2:4] = sign * 1e200
    flow = gradient_flow(layer, np.full((STEPS, BATCH, 2), 1e200), np.ones((STEPS, BATCH, 2)))
    assert (flow.gates["f"] == (sign > 0)).all()
    assert_form(flow, STEPS, BATCH)


@pytest.mark.parametrize(
    ("cls", "options", "place", "message"),
    [
        # 3e38 and 3e38 is more than float32 holds.
        ("CEC", {}, (4, 1), "got inf in c of level 0, first at step 5, sequence 1"),
        ("RNN", {"nonlinearity": "identity"}, (4, 1), "got inf in h of level 0, first at step 5, sequence 1"),
        ("CEC", {"bidirectional": True}, (6, 1), "got inf in c of level 0, direction 1, first at step 5, sequence 1"),
    ],
)
def test_states_that_overflow(gradient_flow, cls, options, place, message):
    """The first of them, in the order in which it is read."""
    options = {"nonlinearity": "identity", **options}
    layer = getattr(reference, cls)(1, 1, **options)
    for p in layer.params.values():
        p[...] = 0
    for name in layer.params:
        if name.startswith("weight"):
            layer.params[name][...] = 1
    x = np.zeros((STEPS, BATCH, 1), np.float32)
    x[place] = 3e38
    x[place[0] + (-1 if options.get("bidirectional") else 1), place[1]] = 3e38
    with pytest.raises(ValueError, match=f"layer: expected states that stay finite, {message}"):
        gradient_flow(layer, x, np.ones((STEPS, BATCH, layer._output_width)))


def test_states_that_overflow_higher_up(gradient_flow):
    """In the second layer of a stack, whichever is studied."""
    layer = reference.RNN(1, 1, 2, nonlinearity="identity", bias=False)
    for name, value in {"weight_ih_l0": 1, "weight_hh_l0": 0, "weight_ih_l1": 1e30, "weight_hh_l1": 0}.items():
        layer.params[name][...] = value
    x = np.ones((STEPS, BATCH, 1))
    x[4, 2] = 1e10
    message = "layer: expected states that stay finite, got inf in h of level 1, first at step 4, sequence 2"
    for level in (0, 1):
        with pytest.raises(ValueError, match=message):
            gradient_flow(layer, x, np.ones((STEPS, BATCH, 1)), level=level)


def test_gradients_that_overflow_on_the_way_down(gradient_flow):
    layer = reference.RNN(1, 1, 2, nonlinearity="identity", bias=False, dtype=np.float64)
    layer.params["weight_ih_l1"][...] = 1e200
    x, dy = np.zeros((STEPS, BATCH, 1)), np.zeros((STEPS, BATCH, 1))
    dy[6, 1] = 1e200
    message = "layer: expected finite gradients, got inf in dJ/dy of level 0, at step 6, sequence 1"
    layer.params["weight_hh_l1"][...] = 0
    with pytest.raises(ValueError, match=message):
        gradient_flow(layer, x, dy, level=0)
    assert np.isfinite(gradient_flow(layer, x, dy, level=1).grad_norm).all()
