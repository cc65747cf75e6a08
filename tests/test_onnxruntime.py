"""Against ONNX Runtime: lengths, directions, initial states, peepholes, coupled gates, both forms of the GRU."""

import itertools

import numpy as np
import pytest
from helpers import as_tuple, assert_meaningful, infer, make, mask_of, meaningful_part, normal, poison, row_of

import fastrnn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ATOL = 2e-6
STEPS, BATCH, INPUTS, HIDDEN = 11, 5, 6, 9
LENGTHS = np.array([4, 11, 1, 7, 11], np.int32)
FLAGS = [False, True]

# The blocks of gates in ONNX's order.
GATES = {"RNN": "h", "LSTM": "iofg", "GRU": "zrn"}
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "logistic": "Sigmoid"}
ROWS = tuple(
    row_of(name)
    for name in ("rnn_tanh", "rnn_relu", "rnn_logistic", "lstm", "lstm_peephole", "lstm_original", "lstm_coupled")
) + tuple(row_of(name) for name in ("lstm_original_peephole", "lstm_coupled_peephole", "gru", "gru_reset_before"))


def gates_of(row):
    """In the order of our parameters."""
    return {1: "h", 4: "ifgo"}.get(row.gates) or ("rzn" if row.cls == "GRU" else "igo")


def blocks(row, p, missing=0.0):
    """The gates of a parameter in ONNX's order; `missing` where a variant has no forget gate."""
    ours = dict(zip(gates_of(row), np.split(p, row.gates), strict=True))
    absent = np.full_like(next(iter(ours.values())), missing)
    return np.concatenate([ours.get(gate, absent) for gate in GATES[row.cls]])


def tensors(row, params, directions):
    """W, R, B and P, with the direction first."""
    parts = {"W": [], "R": [], "B": [], "P": []}
    for suffix in ("_l0", "_l0_reverse")[:directions]:
        parts["W"].append(blocks(row, params["weight_ih" + suffix]))
        parts["R"].append(blocks(row, params["weight_hh" + suffix]))
        # The form of 1997 is a forget gate that is always open: in float32, logistic(100) is 1.
        if "bias_ih" + suffix in params or row.options.get("forget_gate") is False:
            none = np.zeros(row.gates * HIDDEN, np.float32)
            both = (blocks(row, params.get(name + suffix, none), 50.0) for name in ("bias_ih", "bias_hh"))
            parts["B"].append(np.concatenate(list(both)))
        if "weight_peep" + suffix in params:
            i, f, o = np.split(params["weight_peep" + suffix], 3)
            parts["P"].append(np.concatenate([i, o, f if "f" in gates_of(row) else 0 * f]))
    return {name: np.stack(arrays) for name, arrays in parts.items() if arrays}


def onnx_run(row, layer, x, state, lengths):
    """The same computation by ONNX Runtime, named as `helpers.infer` names it."""
    directions = 1 + layer.bidirectional
    given = {"X": x} | tensors(row, layer.params, directions)
    given |= {"sequence_lens": lengths} if lengths is not None else {}
    given |= dict(zip(("initial_h", "initial_c"), as_tuple(state), strict=False))
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"][: 8 if row.cls == "LSTM" else 6]
    attributes = {"hidden_size": HIDDEN, "direction": ("forward", "bidirectional")[layer.bidirectional]}
    if row.cls == "RNN":
        attributes["activations"] = [ACTIVATIONS[row.options["nonlinearity"]]] * directions
    if row.cls == "GRU":
        attributes["linear_before_reset"] = int(row.options["reset_after"])
    if row.options.get("coupled"):
        attributes["input_forget"] = 1
    outputs = ["Y", "Y_h", "Y_c"][: 3 if row.cls == "LSTM" else 2]
    node = onnx.helper.make_node(row.cls, [n if n in given else "" for n in order], outputs, **attributes)
    types = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int32): onnx.TensorProto.INT32}
    graph = onnx.helper.make_graph(
        [node],
        "cell",
        [onnx.helper.make_tensor_value_info(name, types[a.dtype], a.shape) for name, a in given.items()],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options, ["CPUExecutionProvider"])
    y, *end = session.run(outputs, given)
    y = np.moveaxis(y, 1, 2).reshape(*x.shape[:2], directions * HIDDEN)  # from (T, D, B, H)
    return {"y": y} | {f"state[{i}]": s for i, s in enumerate(end)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
@pytest.mark.parametrize(("bidirectional", "bias", "padded", "with_state"), list(itertools.product(*[FLAGS] * 4)))
def test_every_combination(isa, row, bidirectional, bias, padded, with_state, rng):
    layer = make(row, fastrnn, INPUTS, HIDDEN, bidirectional=bidirectional, bias=bias, seed=1)
    x = normal(rng, (STEPS, BATCH, INPUTS), np.float32)
    shapes = row.state_shapes(1 + bidirectional, BATCH, HIDDEN)
    states = tuple(normal(rng, dims, np.float32) for dims in shapes) if with_state else ()
    lengths = LENGTHS if padded else None
    want = onnx_run(row, layer, x, states, lengths)
    mask = mask_of(LENGTHS if padded else [STEPS] * BATCH, STEPS)
    assert_meaningful(meaningful_part(want, mask))
    state = (states if len(states) == 2 else states[0]) if states else None
    got = infer(layer, poison(x, LENGTHS) if padded else x, state, lengths)
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape
        error = np.abs(got[name] - expected).max()
        assert error <= ATOL, f"{name}: off by {error:.3g}"
