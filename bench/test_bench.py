"""Timings of one layer under pytest-benchmark: `pytest bench`; with `--benchmark-disable` each runs once.

For figures there is `fastrnn bench`: it interleaves the candidates and measures the machine's limit beside
them.
"""

import pytest

from fastrnn.cli.bench import CANDIDATES, PASSES, Shape, layer_call
from fastrnn.cli.common import CELLS

SHAPES = (
    Shape(100, 1, 32, 64),
    Shape(100, 1, 256, 256),
    Shape(100, 32, 128, 128),
    Shape(100, 32, 256, 256),
    Shape(77, 5, 33, 65),
)


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_layer(benchmark, cell, shape, pass_name, candidate):
    benchmark.group = f"{cell} {shape} {pass_name}"
    benchmark(layer_call(CANDIDATES[candidate], cell, shape, PASSES[pass_name], "float32"))
