"""What a call holds in memory: inference nothing of size T but the output, training the states and its input; and what
becomes of it afterwards."""

import mmap
import sys

import numpy as np
import pytest
from helpers import row_of, run_script

import fastrnn
from fastrnn import _core

PROGRAM = """
import re, sys
import numpy as np, fastrnn

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

layers, training = int(sys.argv[1]), sys.argv[2] == "training"
layer = getattr(fastrnn, sys.argv[3])(64, 64, num_layers=layers, **eval(sys.argv[4]))
x = np.zeros((50_000, 1, 64), np.float32)
x += 1
layer(x[:100]), layer.backward(layer.forward(x[:100])[2])
before = peak()
result = layer.forward(x) if training else layer(x)
print((peak() - before) / x.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc elsewhere")
@pytest.mark.parametrize(
    ("layers", "mode", "arrays", "row"),
    # Arrays as large as x (12.8 MB): the output; for training also a copy of x and, for each layer, its outputs and
    # what its cell keeps: an LSTM its gates, c and, with a projection, the output before it; a GRU its gates and what
    # the reset gate acts on; the error carousel c.
    [
        (3, "inference", 1, "rnn_tanh"),
        (1, "training", 3, "rnn_tanh"),
        (3, "training", 5, "rnn_tanh"),
        (2, "inference", 1, "lstm_peephole"),
        (1, "training", 3 + 5, "lstm"),
        (2, "training", 4 + 2 * 4, "lstm_original"),
        (1, "inference", 1, "gru_reset_before"),
        (1, "training", 3 + 4, "gru"),
        (1, "training", 3 + 4, "gru_reset_before"),
        (1, "inference", 1, "cec_tanh_tanh"),
        (1, "training", 3 + 1, "cec_tanh_tanh"),
        (1, "inference", 1, "tdnn_tanh"),
        (1, "training", 3, "tdnn_tanh"),
    ],
)
def test_arrays_of_the_size_of_the_sequence(layers, mode, arrays, row):
    row = row_of(row)
    held = float(run_script(PROGRAM, str(layers), mode, row.cls, repr(row.options)))
    # A quarter of an array for everything else: packed weights, chunks, the allocator.
    assert arrays - 0.25 <= held <= arrays + 0.25


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture
def lstm_and_inputs():
    """A layer and three inputs whose outputs are large enough for their memory to be used again."""
    rng = np.random.default_rng(0)
    return fastrnn.LSTM(8, 64, num_layers=2, seed=0), [rng.standard_normal((50, 4, 8)).astype("f") for _ in range(3)]


def test_memory_is_used_again(lstm_and_inputs):
    layer, inputs = lstm_and_inputs
    assert len({address(layer(x)[0]) for _ in range(20) for x in inputs}) < 10


def test_memory_of_gradients_is_used_again(lstm_and_inputs):
    layer, inputs = lstm_and_inputs
    weights = [name for name in layer.params if name.startswith("weight_hh")]
    for name in weights:
        addresses = set()
        for x in inputs * 7:
            addresses.add(address(layer.backward(layer.forward(x)[2]).params[name]))
        assert len(addresses) < 10
        assert all(place % 64 == 0 for place in addresses)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cls", [fastrnn.RNN, fastrnn.LSTM, fastrnn.TDNN])
def test_large_parameters_begin_at_cache_lines(cls, dtype):
    layers = [cls(100, hidden, dtype=dtype) for hidden in range(100, 116)]
    large = [array for layer in layers for array in layer.params.values() if array.nbytes >= 32768]
    assert len(large) >= len(layers)
    assert all(address(array) % 64 == 0 for array in large)


def test_what_anything_refers_to_is_not_used_again(lstm_and_inputs):
    layer, inputs = lstm_and_inputs
    held = []
    for x in inputs:
        y, _, tape = layer.forward(x)
        grads = layer.backward(tape, y)
        # The arrays, and parts of arrays whose owners are gone.
        held += [y, tape.h[0][7:9], tape.c[1][::5, 1], tape.gates[0][..., 3:70], grads.x[-1], layer(x)[0][2:]]
        held.append(grads.params["weight_hh_l1"][7:70])
    before = [array.copy() for array in held]
    del y, tape, grads
    for x in inputs * 5:
        layer.backward(layer.forward(-x)[2], np.ones((50, 4, 64), "f"))
        layer(2 * x)
    for array, value in zip(held, before, strict=True):
        assert np.array_equal(array, value)


def test_a_tape_keeps_its_memory(lstm_and_inputs):
    layer, inputs = lstm_and_inputs
    y, _, tape = layer.forward(inputs[0])
    before = layer.backward(tape, y)
    for x in inputs[1:] * 5:
        layer.backward(layer.forward(x)[2])
    after = layer.backward(tape, y)
    assert np.array_equal(before.x, after.x)
    for name, gradient in before.params.items():
        assert np.array_equal(gradient, after.params[name])


FLOAT = np.dtype(np.float32)
UNITS = 128


@pytest.fixture
def kernel():
    return _core.Kernel("rnn_tanh", FLOAT, 1, UNITS, UNITS, UNITS)


# A block on the shelf is alive, so nothing else has its address: who has it took it from there.


@pytest.mark.parametrize(("times", "taken"), [(1.0, True), (1.2, True), (1.3, False), (1.9, False)])
def test_an_array_takes_a_block_of_at_most_1_25_times_its_size(times, taken, kernel):
    before = address(kernel.empty((int(times * 50_000),), FLOAT))
    assert (address(kernel.empty((50_000,), FLOAT)) == before) == taken


def test_an_array_takes_a_block_of_its_own_use(kernel):
    before = address(kernel.empty((50_000,), FLOAT, "copy"))
    assert address(kernel.empty((50_000,), FLOAT)) != before
    assert address(kernel.empty((50_000,), FLOAT, "another")) != before
    assert address(kernel.empty((50_000,), FLOAT, "copy")) == before


@pytest.mark.parametrize(("times", "taken"), [(1.0, True), (1.9, True), (2.1, False)])
def test_packed_weights_take_a_block_of_at_most_twice_their_size(times, taken, kernel):
    (size, _), _ = kernel.sizes(_core.Batch(1, 1), 1)
    count = int(times * size) // FLOAT.itemsize
    square, bias = np.zeros((UNITS, UNITS), np.float32), np.zeros(UNITS, np.float32)
    before = address(kernel.empty((count,), FLOAT))
    packed = kernel.pack(((square, square, bias, bias, None, None),), 1)
    assert (address(kernel.empty((count,), FLOAT)) != before) == taken
    del packed  # until here it held its memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc elsewhere")
@pytest.mark.parametrize(
    ("sizes", "kept"),
    # MiB that are given back one after another, and what the shelf keeps: of the newest, 32 and no more than 1024 MiB.
    [
        ([30] * 40, [30] * 32),
        ([300, 300], [300, 300]),
        ([300, 300, 300, 300], [300, 300, 300]),
        ([200, 600, 600, 100], [600, 100]),
        ([1024], [1024]),
        ([300, 1100, 300], [300, 300]),
    ],
)
def test_what_a_shelf_keeps_at_the_most(sizes, kept, kernel):
    def reserved():
        """MiB of this process's address space; the arrays are never written and so take no memory."""
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE / 2**20

    def assert_held(blocks):
        # Each may lose 2 MiB to its alignment; the interpreter's own part hardly changes.
        assert -20 <= reserved() - before - sum(blocks) <= 2 * len(blocks) + 20

    before = reserved()
    arrays = [kernel.empty((size * 2**20 // 4,), FLOAT) for size in sizes]
    assert_held(sizes)
    while arrays:
        del arrays[0]
    assert_held(kept)
