"""What a call holds in memory: inference nothing of size T but the output, training the states and its input."""

import sys

import pytest
from helpers import row_of, run_script

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
        (1, "inference", 1, "rnn_tanh"),
        (3, "inference", 1, "rnn_tanh"),
        (1, "training", 3, "rnn_tanh"),
        (3, "training", 5, "rnn_tanh"),
        (1, "inference", 1, "lstm"),
        (2, "inference", 1, "lstm_peephole"),
        (1, "training", 3 + 5, "lstm"),
        (2, "training", 4 + 2 * 4, "lstm_original"),
        (1, "inference", 1, "gru"),
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
