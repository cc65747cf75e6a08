"""The environment variables, and what takes precedence."""

import os

import pytest
from helpers import run_script

from fastrnn import _core

ISA = "from fastrnn import _core; print(_core.get_isa())"
THREADS = "import fastrnn; print(fastrnn.get_num_threads())"
UNSET = {"FASTRNN_NUM_THREADS": None, "OMP_NUM_THREADS": None, "FASTRNN_ISA": None}


@pytest.mark.parametrize("name", _core.isas())
def test_an_instruction_set_is_forced(name):
    assert run_script(ISA, **UNSET | {"FASTRNN_ISA": name}) == name


def test_an_instruction_set_that_there_is_not():
    script = """
import fastrnn
from fastrnn import _core
layer = fastrnn.RNN(2, 3)
for _ in range(2):
    try:
        layer([[[1, 2]]])
    except ValueError as error:
        print(error)
_core.set_isa("generic")
print(layer([[[1, 2]]])[0].shape)
"""
    *errors, shape = run_script(script, **UNSET | {"FASTRNN_ISA": "sse"}).splitlines()
    assert errors == [f"FASTRNN_ISA: expected one of {', '.join(_core.isas())} on this processor, got 'sse'"] * 2
    assert shape == "(1, 1, 3)"


def test_the_best_instruction_set_is_the_default():
    assert run_script(ISA, **UNSET) == _core.isas()[0]


def test_every_instruction_set_has_one_name():
    assert len(set(_core.isas())) == len(_core.isas())
    assert _core.isas()[-1] == "generic"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTRNN_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"FASTRNN_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"FASTRNN_NUM_THREADS": "1"}, 1),
    ],
    ids=str,
)
def test_number_of_threads(variables, expected):
    assert run_script(THREADS, **UNSET | variables) == str(expected)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "2,1"])
def test_a_number_of_threads_that_is_none(value):
    script = """
import fastrnn
try:
    fastrnn.get_num_threads()
except ValueError as error:
    print(error)
fastrnn.set_num_threads(2)
print(fastrnn.get_num_threads())
"""
    lines = run_script(script, **UNSET | {"FASTRNN_NUM_THREADS": value}).splitlines()
    assert lines == [f"FASTRNN_NUM_THREADS: expected an integer of at least 1, got {value!r}", "2"]


@pytest.mark.parametrize("value", ["", " ", "none"])
def test_what_another_library_says_may_mean_nothing_here(value):
    processors = run_script(THREADS, **UNSET)
    assert run_script(THREADS, **UNSET | {"FASTRNN_NUM_THREADS": "", "OMP_NUM_THREADS": value}) == processors


def test_a_call_goes_before_the_environment():
    script = f"import fastrnn; fastrnn.set_num_threads(4); {THREADS}"
    assert run_script(script, **UNSET | {"FASTRNN_NUM_THREADS": "3"}) == "4"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_no_more_threads_than_the_process_may_use():
    assert 1 <= int(run_script(THREADS, **UNSET)) <= len(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {THREADS}"
    assert run_script(script, **UNSET) == "1"


def test_threads_set_are_threads_got(threads):
    script = f"import fastrnn; fastrnn.set_num_threads({threads}); {THREADS}"
    assert run_script(script, **UNSET) == str(threads)
