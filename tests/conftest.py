"""Fixtures and options of the whole suite."""

import numpy as np
import pytest

pytest.register_assert_rewrite("helpers")

from helpers import ROWS, using_isa, using_threads  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.reference  # noqa: E402
from fastrnn import _core  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="also run the tests over all 2^32 float32 inputs (tens of minutes)",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "exhaustive: over every input there is; runs only with --exhaustive")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--exhaustive"):
        return
    skip = pytest.mark.skip(reason="needs --exhaustive")
    for item in items:
        if "exhaustive" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=_core.isas())
def isa(request):
    """Every instruction set that this machine runs, in force during the test."""
    with using_isa(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    with using_threads(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=ROWS, ids=[row.cell for row in ROWS])
def row(request):
    return request.param


@pytest.fixture(params=[fastrnn, fastrnn.reference], ids=["kernels", "reference"])
def backend(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)
