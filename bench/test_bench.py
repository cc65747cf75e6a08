"""Timings of one layer under pytest-benchmark: `pytest bench`; with `--benchmark-disable` each runs once.

For figures there is `fastrnn bench`: it interleaves the candidates and measures the machine's limit beside
them.
"""

import pytest

import fastrnn
from fastrnn.cli.common import CELLS
from fastrnn.cli.peers import OWN, candidates
from fastrnn.cli.points import PASSES, Point, Problem, Shape

SHAPES = (
    Shape(100, 1, 32, 64),
    Shape(100, 1, 256, 256),
    Shape(100, 32, 128, 128),
    Shape(100, 32, 256, 256),
    Shape(77, 5, 33, 65),
)


@pytest.mark.parametrize("candidate", OWN)
@pytest.mark.parametrize("pass_name", PASSES[:2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_layer(benchmark, cell, shape, pass_name, candidate):
    benchmark.group = f"{cell} {shape} {pass_name}"
    problem = Problem(Point(cell, shape, pass_name), "float32", fastrnn.get_num_threads())
    benchmark(candidates(problem, [candidate])[candidate].call)
