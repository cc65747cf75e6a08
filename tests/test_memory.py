"""What a call holds in memory: inference nothing of size T but the output, training the states and its input."""

import sys

import pytest
from helpers import run_script

PROGRAM = """
import re, sys
import numpy as np, fastrnn

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

layers, training = int(sys.argv[1]), sys.argv[2] == "training"
layer = fastrnn.RNN(64, 64, num_layers=layers)
x = np.zeros((50_000, 1, 64), np.float32)
x += 1
layer(x[:100]), layer.backward(layer.forward(x[:100])[2])
before = peak()
result = layer.forward(x) if training else layer(x)
print((peak() - before) / x.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc elsewhere")
@pytest.mark.parametrize(
    ("layers", "mode", "arrays"),
    # Arrays as large as x (12.8 MB): the output; for training also a copy of x and the states of each layer.
    [(1, "inference", 1), (3, "inference", 1), (1, "training", 3), (3, "training", 5)],
)
def test_arrays_of_the_size_of_the_sequence(layers, mode, arrays):
    # A quarter of an array for everything else: packed weights, chunks, the allocator.
    assert arrays - 0.25 <= float(run_script(PROGRAM, str(layers), mode)) <= arrays + 0.25
