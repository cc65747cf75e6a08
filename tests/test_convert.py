"""Parameters of other libraries: the same function there as here, by their documented equations and by themselves where
they are installed."""

import importlib.util
import os
from functools import partial

import numpy as np
import oracles
import pytest
from formats import (
    BATCH,
    FLAX,
    HIDDEN,
    INPUTS,
    KERAS,
    ONEDNN,
    ONNX,
    STEPS,
    drawn,
    leaves,
    onnx_arguments,
)
from helpers import assert_close, assert_meaningful, assert_same_bits

from fastrnn import convert


def inputs(case, rng, dtype=np.float64):
    """x (T, B, I) and the initial states (L*D, B, .)"""
    x = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(dtype)
    sizes = (case.output_size, HIDDEN)[: 2 if case.cell == "LSTM" else 1]
    rows = case.num_layers * case.directions
    return x, tuple(0.5 * rng.standard_normal((rows, BATCH, size)).astype(dtype) for size in sizes)


def ours(case, state_dict, x, state):
    options = {name: value for name, value in case.options.items() if name != "reset_after" or case.cell == "GRU"}
    wide = {name: p.astype(np.float64) for name, p in state_dict.items()}
    state = tuple(s.astype(np.float64) for s in state)
    results = oracles.run(case.cell, options, wide, x.astype(np.float64), state, [STEPS] * BATCH).results
    assert_meaningful(results)
    return results


def through(case, layers, x, state):
    """A stack, each of its layers a function of x and its states (D, B, .) that returns y and the new states."""
    D, ends = case.directions, []
    for k, layer in enumerate(layers):
        x, end = layer(x, tuple(s[k * D : (k + 1) * D] for s in state))
        ends.append(end)
    return {"y": x} | {f"state[{i}]": np.concatenate(s) for i, s in enumerate(zip(*ends, strict=True))}


def stepwise(directions):
    """A layer of directions, each a function step(x_t, *states) that returns the new states, the output first."""

    def layer(x, state):
        outputs, ends = [], []
        for d, step in enumerate(directions):
            now, y = tuple(s[d] for s in state), []
            for x_t in x[::-1] if d else x:
                now = step(x_t, *now)
                y.append(now[0])
            outputs.append(y[::-1] if d else y)
            ends.append(now)
        return np.concatenate(outputs, axis=-1), tuple(np.stack(s) for s in zip(*ends, strict=True))

    return layer


def sigma(a):
    return 1 / (1 + np.exp(-a))


# ---- Keras: https://keras.io/api/layers/recurrent_layers ----


def keras_step(cell, arrays, reset_after=True):
    kernel, recurrent, bias = arrays if len(arrays) == 3 else (*arrays, np.zeros((2, 1)) if reset_after else 0)

    def simple(x, h):
        return (np.tanh(x @ kernel + h @ recurrent + bias),)

    def lstm(x, h, c):
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigma(f) * c + sigma(i) * np.tanh(g)
        return sigma(o) * np.tanh(c), c

    def gru(x, h):
        if reset_after:
            x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, axis=1)
            h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
            z, r = sigma(x_z + h_z), sigma(x_r + h_r)
            candidate = np.tanh(x_h + r * h_h)
        else:
            x_z, x_r, x_h = np.split(x @ kernel + bias, 3, axis=1)
            U_z, U_r, U_h = np.split(recurrent, 3, axis=1)
            z, r = sigma(x_z + h @ U_z), sigma(x_r + h @ U_r)
            candidate = np.tanh(x_h + (r * h) @ U_h)
        return (z * h + (1 - z) * candidate,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[cell]


@KERAS
def test_keras_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    layers = []
    for arrays in convert.to_keras(state_dict, case.cell, **case.arguments):
        each, reset_after = len(arrays) // case.directions, case.options.get("reset_after", False)
        halves = [arrays[start : start + each] for start in range(0, len(arrays), each)]
        layers.append(stepwise([keras_step(case.cell, half, reset_after) for half in halves]))
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


@pytest.fixture(scope="session")
def keras():
    if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("jax"):
        os.environ["KERAS_BACKEND"] = "jax"
    return pytest.importorskip("keras", exc_type=ImportError)


def keras_layer(keras, case):
    kind = {"RNN": keras.layers.SimpleRNN, "LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU}[case.cell]
    options = {"use_bias": case.bias, **({"reset_after": case.options["reset_after"]} if case.cell == "GRU" else {})}
    layer = kind(HIDDEN, return_sequences=True, return_state=True, **options)
    return keras.layers.Bidirectional(layer, merge_mode="concat") if case.bidirectional else layer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's own
@KERAS
def test_keras(case, keras, rng):
    state_dict = drawn(case, rng, np.float32)
    x, state = inputs(case, rng, np.float32)

    def layer(arrays, x, state):
        theirs = keras_layer(keras, case)
        x = x.swapaxes(0, 1)
        theirs.build(x.shape)
        theirs.set_weights(arrays)
        initial = [np.asarray(s[d]) for d in range(case.directions) for s in state]
        y, *end = (np.asarray(a) for a in theirs(x, initial_state=initial))
        assert_same_bits(convert_keras(case, [theirs.get_weights()]), convert_keras(case, [arrays]))
        return y.swapaxes(0, 1), tuple(np.stack(end[i :: len(state)]) for i in range(len(state)))

    layers = [partial(layer, arrays) for arrays in convert.to_keras(state_dict, case.cell, **case.arguments)]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 2e-6, 0)


def convert_keras(case, weights):
    return convert.from_keras(weights, case.cell, **{"reset_after": True, **case.arguments})


# ---- ONNX: https://onnx.ai/onnx/operators ----


def onnx_step(case, node, d):
    W, R = node["W"][d], node["R"][d]
    W_b, R_b = np.split(node["B"][d], 2) if "B" in node else (np.zeros(len(W)), np.zeros(len(W)))
    p_i, p_o, p_f = np.split(node["P"][d], 3) if "P" in node else (0, 0, 0)

    def simple(x, h):
        return (np.tanh(x @ W.T + h @ R.T + W_b + R_b),)

    def lstm(x, h, c):
        i, o, f, g = np.split(x @ W.T + h @ R.T + W_b + R_b, 4, axis=1)
        i = sigma(i + p_i * c)
        f = 1 - i if case.options.get("coupled") else sigma(f + p_f * c)
        c = f * c + i * np.tanh(g)
        return sigma(o + p_o * c) * np.tanh(c), c

    def gru(x, h):
        x_z, x_r, x_h = np.split(x @ W.T + W_b, 3, axis=1)
        (R_z, R_r, R_h), (b_z, b_r, b_h) = np.split(R, 3), np.split(R_b, 3)
        z, r = sigma(x_z + h @ R_z.T + b_z), sigma(x_r + h @ R_r.T + b_r)
        recurrent = r * (h @ R_h.T + b_h) if case.options["reset_after"] else (r * h) @ R_h.T + b_h
        return ((1 - z) * np.tanh(x_h + recurrent) + z * h,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[case.cell]


@ONNX
def test_onnx_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    nodes = convert.to_onnx(state_dict, case.cell, **onnx_arguments(case))
    layers = [stepwise([onnx_step(case, node, d) for d in range(case.directions)]) for node in nodes]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


@ONNX
def test_onnxruntime(case, rng):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    state_dict = drawn(case, rng, np.float32)
    x, state = inputs(case, rng, np.float32)
    attributes = {"hidden_size": HIDDEN, "direction": "bidirectional" if case.bidirectional else "forward"}
    if case.cell == "GRU":
        attributes["linear_before_reset"] = int(case.options["reset_after"])
    if case.options.get("coupled"):
        attributes["input_forget"] = 1
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(state)]

    def layer(node, x, state):
        feeds = {"X": x, **node} | dict(zip(("initial_h", "initial_c"), state, strict=False))
        names = ("X", "W", "R", "B", "", "initial_h", "initial_c", "P")
        names = [name if name in feeds else "" for name in names]
        while not names[-1]:
            names.pop()
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(case.cell, names, outputs, **attributes)],
            "layer",
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, a.shape) for name, a in feeds.items()],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        y, *end = session.run(None, feeds)
        return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1), tuple(end)

    nodes = convert.to_onnx(state_dict, case.cell, **onnx_arguments(case))
    assert_close(through(case, [partial(layer, n) for n in nodes], x, state), ours(case, state_dict, x, state), 2e-6, 0)


# ---- Flax: the docstrings of flax.linen.SimpleCell, LSTMCell, GRUCell ----


def flax_step(cell, tree):
    def part(name, a):
        return a @ tree[name]["kernel"] + tree[name].get("bias", 0)

    def simple(x, h):
        return (np.tanh(part("i", x) + part("h", h)),)

    def lstm(x, h, c):
        i, f, o = (sigma(part("i" + gate, x) + part("h" + gate, h)) for gate in "ifo")
        c = f * c + i * np.tanh(part("ig", x) + part("hg", h))
        return o * np.tanh(c), c

    def gru(x, h):
        r, z = (sigma(part("i" + gate, x) + part("h" + gate, h)) for gate in "rz")
        n = np.tanh(part("in", x) + r * part("hn", h))
        return ((1 - z) * n + z * h,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[cell]


@FLAX
def test_flax_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    layers = [
        stepwise([flax_step(case.cell, tree) for tree in trees]) for trees in convert.to_flax(state_dict, case.cell)
    ]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)


@FLAX
def test_flax(case, rng):
    pytest.importorskip("jax")
    linen = pytest.importorskip("flax.linen")
    kinds = {"RNN": [linen.SimpleCell], "LSTM": [linen.LSTMCell, linen.OptimizedLSTMCell], "GRU": [linen.GRUCell]}
    state_dict = drawn(case, rng, np.float32)
    x, state = inputs(case, rng, np.float32)
    converted = convert.to_flax(state_dict, case.cell)

    def step(cell, tree, x, *state):
        carry, _ = cell.apply({"params": tree}, state[::-1] if case.cell == "LSTM" else state[0], x)
        return tuple(np.asarray(s) for s in (carry[::-1] if case.cell == "LSTM" else (carry,)))

    for kind in kinds[case.cell]:
        cell = kind(HIDDEN)
        layers = [stepwise([partial(step, cell, tree) for tree in trees]) for trees in converted]
        assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 2e-6, 0)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_initial_flax_parameters(cell):
    """What Flax itself makes is what `from_flax` takes."""
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    kind = {"RNN": linen.SimpleCell, "LSTM": linen.OptimizedLSTMCell, "GRU": linen.GRUCell}[cell](HIDDEN)
    x = np.zeros((BATCH, INPUTS), np.float32)
    tree = kind.init(jax.random.key(0), kind.initialize_carry(jax.random.key(1), x.shape), x)["params"]
    state_dict = convert.from_flax([[tree]], cell)
    back = convert.to_flax(state_dict, cell)[0][0]
    assert_same_bits(dict(leaves(back)), dict(leaves(tree)))


# ---- oneDNN: https://uxlfoundation.github.io/oneDNN/dev_guide_rnn.html ----


def onednn_step(case, layer, d):
    W, U = layer["weights_layer"][0, d], layer["weights_iter"][0, d]  # (I, G, H), (O, G, H)
    B = layer["bias"][0, d] if "bias" in layer else np.zeros((4, 1))
    P_i, P_f, P_o = layer["weights_peephole"][0, d] if "weights_peephole" in layer else (0, 0, 0)
    G = W.shape[1]

    def simple(x, h):
        return (np.tanh(x @ W[:, 0] + h @ U[:, 0] + B[0]),)

    def lstm(x, h, c):
        i, f, g, o = (x @ W[:, gate] + h @ U[:, gate] + B[gate] for gate in range(G))
        c = sigma(f + P_f * c) * c + sigma(i + P_i * c) * np.tanh(g)
        h = np.tanh(c) * sigma(o + P_o * c)
        return h @ layer["weights_projection"][0, d] if "weights_projection" in layer else h, c

    def gru(x, h):
        u, r = (sigma(x @ W[:, gate] + h @ U[:, gate] + B[gate]) for gate in range(2))
        if case.options["reset_after"]:
            o = np.tanh(x @ W[:, 2] + r * (h @ U[:, 2] + B[3]) + B[2])
        else:
            o = np.tanh(x @ W[:, 2] + (r * h) @ U[:, 2] + B[2])
        return (u * h + (1 - u) * o,)

    return {"RNN": simple, "LSTM": lstm, "GRU": gru}[case.cell]


@ONEDNN
def test_onednn_equations(case, rng):
    state_dict, (x, state) = drawn(case, rng), inputs(case, rng)
    converted = convert.to_onednn(state_dict, case.cell, **case.arguments)
    layers = [stepwise([onednn_step(case, layer, d) for d in range(case.directions)]) for layer in converted]
    assert_close(through(case, layers, x, state), ours(case, state_dict, x, state), 1e-13, 0)
