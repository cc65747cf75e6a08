"""Fixtures and options of the whole suite, and what it draws of all combinations."""

import numpy as np
import pytest

pytest.register_assert_rewrite("files", "flows", "helpers")

from flows import IMPLEMENTATIONS  # noqa: E402
from helpers import ROWS, drawn, using_isa, using_threads  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.reference  # noqa: E402
from fastrnn import _core  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="also run every combination, and the tests over all 2^32 float32 inputs (tens of minutes)",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "exhaustive: over every input there is; runs only with --exhaustive")
    config.addinivalue_line(
        "markers",
        "drawn(others, representatives=4): of the combinations of a test's parameters, run that many with each "
        "row of helpers.REPRESENTATIVES, and `others` with each other row, on each backend",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--exhaustive"):
        return
    skip = pytest.mark.skip(reason="needs --exhaustive")
    for item in items:
        if "exhaustive" in item.keywords:
            item.add_marker(skip)
    sampled = {item for item in items if item.get_closest_marker("drawn") and "row" in item.fixturenames}
    left_out = sampled - drawn(sampled)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


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


@pytest.fixture(params=ROWS, ids=[row.id for row in ROWS])
def row(request):
    return request.param


@pytest.fixture(params=[fastrnn, fastrnn.reference], ids=["kernels", "reference"])
def backend(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    """Of a file that is not there yet, in a folder of its own."""
    return tmp_path / "file.safetensors"


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture(params=IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def gradient_flow(implementation):
    return implementation.function


@pytest.fixture
def close(implementation):
    """The relative error that the implementation's singular values may have."""
    return implementation.close
