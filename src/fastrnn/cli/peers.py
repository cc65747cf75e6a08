"""The candidates of ``fastrnn bench``: each library as its own users would use it at its best.

A row of ``LIBRARIES`` is one library. Its function takes a problem and yields a candidate for each way in which the
library can solve it, with a word for the way if there are several; none if it cannot. What can be prepared once is
prepared outside the call: arrays in the library's own type, packed sequences, sessions, compiled functions.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import fastrnn

from .. import convert, reference
from .common import CELLS
from .points import GRID_CELLS, Problem


class Candidate(NamedTuple):
    """One way to solve a problem."""

    call: Callable[[], Any]
    """Does one pass: this is what is timed."""
    arrays: Callable[[Any], Sequence[Any]]
    """From what the call returned, y, and of training dx, in padded layout but for axes of size 1; past the lengths
    they may be anything."""


Candidates = Iterator[tuple[str, Candidate]]


def layer_calls(layers: ModuleType, problem: Problem) -> Candidates:
    """A layer of ``layers``, which is fastrnn or fastrnn.reference."""
    layer = problem.layer(layers)
    layer.load_state_dict(problem.params)
    x, dy, lengths = problem.x, problem.dy, problem.lengths

    def calls(x, dy, read):
        def train():
            y, _, tape = layer.forward(x, lengths=lengths)
            return y, layer.backward(tape, dy)

        if problem.point.backward:
            return Candidate(train, lambda result: (read(result[0]), read(result[1].x)))
        return Candidate(lambda: layer(x, lengths=lengths), lambda result: (read(result[0]),))

    if problem.point.step:
        frozen, x_t, state = layer.frozen(), x[0], problem.state
        yield "", Candidate(lambda: frozen.step(x_t, state), lambda result: (result[0],))
    elif lengths is None:
        yield "", calls(x, dy, lambda array: array)
        if layers is fastrnn and not problem.point.backward:  # as the peers that prepare their weights beforehand
            frozen = layer.frozen()
            yield "frozen", Candidate(lambda: frozen(x), lambda result: (result[0],))
    else:
        yield "", calls(problem.ragged(x), problem.ragged(dy), problem.padded)
        yield "padded", calls(x, dy, lambda array: array)


def pytorch_calls(problem: Problem) -> Candidates:
    """``torch.nn``: packed and padded sequences, the module and the cell, autograd."""
    import torch

    point = problem.point
    if point.cell not in GRID_CELLS:
        return
    kind = CELLS[point.cell].layer
    I, H = point.shape.inputs, point.shape.hidden
    dtype = getattr(torch, problem.dtype.name)
    torch.set_num_threads(problem.threads)
    module = getattr(torch.nn, kind)(I, H, point.layers, bidirectional=point.directions == 2, dtype=dtype)
    params = {key: torch.from_numpy(value) for key, value in problem.params.items()}
    module.load_state_dict(params)
    module.train(point.backward)
    x, dy = torch.from_numpy(problem.x), torch.from_numpy(problem.dy)
    states = tuple(map(torch.from_numpy, problem.states))

    def calls(given, dy, tensor, read):
        """``tensor`` takes the data out of what goes in and comes out, ``read`` makes it an array."""
        wanted = [tensor(given), *module.parameters()]

        def train():
            y = tensor(module(given)[0])
            return y, torch.autograd.grad(y, wanted, dy)

        if point.backward:
            wanted[0].requires_grad_()
            return Candidate(train, lambda result: (read(result[0].detach()), read(result[1][0])))
        return Candidate(torch.inference_mode()(lambda: tensor(module(given)[0])), lambda result: (read(result),))

    if point.step:
        cell = getattr(torch.nn, f"{kind}Cell")(I, H, dtype=dtype)
        cell.load_state_dict({key.removesuffix("_l0"): value for key, value in params.items()})
        pair = len(states) == 2
        state, state_t = (states, tuple(s[0] for s in states)) if pair else (states[0], states[0][0])
        x_t, infer = x[0], torch.inference_mode()
        yield "", Candidate(infer(lambda: module(x, state)), lambda result: (result[0],))
        yield "cell", Candidate(infer(lambda: cell(x_t, state_t)), lambda result: (result[0] if pair else result,))
        return
    if problem.lengths is not None:
        rnn = torch.nn.utils.rnn
        packed, packed_dy = (
            rnn.pack_padded_sequence(a, torch.from_numpy(problem.lengths), enforce_sorted=False) for a in (x, dy)
        )
        yield (
            "packed",
            calls(
                packed,
                packed_dy.data,
                lambda sequence: sequence.data,
                lambda data: rnn.pad_packed_sequence(rnn.PackedSequence(data, *packed[1:]))[0],
            ),
        )
    yield "" if problem.lengths is None else "padded", calls(x, dy, lambda tensor: tensor, lambda tensor: tensor)


def onnxruntime_calls(problem: Problem) -> Candidates:
    """A model of one RNN, LSTM or GRU node for each layer; inference alone, float32 alone."""
    import onnx.helper
    import onnxruntime

    point, cell = problem.point, CELLS[problem.point.cell]
    if point.backward or problem.dtype != np.float32 or point.cell not in GRID_CELLS:
        return
    helper, given = onnx.helper, {"X": problem.x}
    if problem.lengths is not None:
        given["lengths"] = problem.lengths.astype(np.int32)
    attributes = {"hidden_size": point.shape.hidden, "direction": ("forward", "bidirectional")[point.directions - 1]}
    if cell.layer == "GRU":
        attributes["linear_before_reset"] = 1
    parts = "hc" if cell.layer == "LSTM" else "h"
    ends = [f"end_{part}" for part in parts] if point.step else []
    given |= {f"initial_{part}": state for part, state in zip(parts, problem.states, strict=False)}
    nodes, weights, source = [], [], "X"
    for k, arrays in enumerate(convert.to_onnx(problem.params, cell.layer)):
        weights += [onnx.numpy_helper.from_array(value, f"{key}{k}") for key, value in arrays.items()]
        inputs = [source, *(f"{key}{k}" for key in "WRB")]
        inputs += [key if key in given else "" for key in ("lengths", *(f"initial_{part}" for part in parts))]
        source = f"Y{k}"
        nodes.append(helper.make_node(cell.layer, inputs, [source, *ends], **attributes))
        if point.directions == 2:  # (T, D, B, H) to (T, B, D * H)
            nodes.append(helper.make_node("Transpose", [source], [f"{source}t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{source}t", "joined"], [f"{source}j"]))
            source = f"{source}j"
    if point.directions == 2:
        weights.append(onnx.numpy_helper.from_array(np.array([0, 0, -1]), "joined"))
    types = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        nodes,
        point.cell,
        [helper.make_tensor_value_info(key, types(a.dtype), a.shape) for key, a in given.items()],
        [helper.make_tensor_value_info(key, types(problem.dtype), None) for key in [source, *ends]],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = problem.threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = ends or [source]
    yield "", Candidate(lambda: session.run(wanted, given), lambda result: (result[0],))


def jax_calls(problem: Problem) -> Candidates:
    """``jax.lax.scan`` under ``jit``, the input product before it, on weights (I, G*H) and (H, G*H) as in Flax.

    Its threads are the processors of the process.
    """
    import jax
    import jax.numpy as jnp

    def rnn(a, u, _, states):
        return (jnp.tanh(a + u),)

    def lstm(a, u, _, states):
        i, f, g, o = jnp.split(a + u, 4, axis=-1)
        c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(a, u, b_n, states):
        a_r, a_z, a_n = jnp.split(a, 3, axis=-1)
        u_r, u_z, u_n = jnp.split(u, 3, axis=-1)
        r, z = jax.nn.sigmoid(a_r + u_r), jax.nn.sigmoid(a_z + u_z)
        return ((1 - z) * jnp.tanh(a_n + r * (u_n + b_n)) + z * states[0],)

    point = problem.point
    equations = {"rnn": rnn, "lstm": lstm, "gru": gru}.get(point.cell)
    if equations is None or problem.lengths is not None:
        return
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", problem.dtype == np.float64)
    H = point.shape.hidden
    hoisted = slice(0, 2 * H if point.cell == "gru" else None)  # of b_hh: all that is added outside the loop

    def direction(params, suffix, x, states, reverse):
        R, b_hh = params["weight_hh" + suffix], params["bias_hh" + suffix]
        a = x @ params["weight_ih" + suffix] + params["bias_ih" + suffix].at[hoisted].add(b_hh[hoisted])

        def step(states, a_t):
            states = equations(a_t, states[0] @ R, b_hh[2 * H :], states)
            return states, states[0]

        return jax.lax.scan(step, states, a, reverse=reverse)

    def forward(params, x, states):
        y, ends = x, None
        for k in range(point.layers):
            suffixes = (f"_l{k}", f"_l{k}_reverse")[: point.directions]
            ends, ys = zip(
                *(direction(params, suffix, y, states, d == 1) for d, suffix in enumerate(suffixes)), strict=True
            )
            y = jnp.concatenate(ys, axis=-1)
        return y, ends

    def train(params, x, states, dy):
        y, pull_back = jax.vjp(lambda params, x: forward(params, x, states)[0], params, x)
        return y, pull_back(dy)

    params = {key: jnp.asarray(value.T) for key, value in problem.params.items()}
    x, dy = jnp.asarray(problem.x), jnp.asarray(problem.dy)
    zeros = [jnp.zeros((point.shape.batch, H), problem.dtype)] * (2 if point.cell == "lstm" else 1)
    states = tuple(jnp.asarray(s[0]) for s in problem.states) or tuple(zeros)
    if point.backward:
        function, given, read = jax.jit(train), (params, x, states, dy), lambda result: (result[0], result[1][1])
    else:
        function, given, read = jax.jit(forward), (params, x, states), lambda result: (result[0],)
    yield "", Candidate(lambda: jax.block_until_ready(function(*given)), read)


class Library(NamedTuple):
    """What a problem can be given to."""

    title: str
    calls: Callable[[Problem], Candidates]
    packages: tuple[str, ...]
    """What it needs, the one that gives it its version first."""

    def version(self) -> str | None:
        """The version that is installed, None if a package is missing."""
        try:
            version, *_ = [importlib.metadata.version(package) for package in self.packages]
        except importlib.metadata.PackageNotFoundError:
            return None
        return version


LIBRARIES = {
    "fastrnn": Library("fastrnn", functools.partial(layer_calls, fastrnn), ("fastrnn",)),
    "numpy": Library("NumPy", functools.partial(layer_calls, reference), ("numpy",)),
    "pytorch": Library("PyTorch", pytorch_calls, ("torch",)),
    "onnxruntime": Library("ONNX Runtime", onnxruntime_calls, ("onnxruntime", "onnx")),
    "jax": Library("JAX", jax_calls, ("jax",)),
}
OWN = ("fastrnn", "numpy")


def candidates(problem: Problem, libraries: Iterable[str]) -> dict[str, Candidate]:
    """Every way in which these libraries solve the problem, named after the library: "numpy", "pytorch packed"."""
    return {
        f"{name} {way}".rstrip(): candidate for name in libraries for way, candidate in LIBRARIES[name].calls(problem)
    }
