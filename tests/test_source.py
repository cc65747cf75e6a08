"""Rules of the C source that a compiler does not know."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from fastrnn import _core

CSRC = Path(__file__).parents[1] / "csrc"


@pytest.mark.parametrize("folder", ["body", "cells"])
def test_shared_code_names_no_instruction_set(folder):
    names = [path.stem for path in (CSRC / "isa").glob("*.c")]
    assert set(_core.isas()) <= set(names)
    word = re.compile(rf"({'|'.join(names)}|\bsse|fma3|_mm\d*_|immintrin|__x86_64__|__aarch64__)", re.IGNORECASE)
    files = list((CSRC / folder).iterdir())
    assert files
    for path in files:
        assert not word.search(path.read_text()), path


def test_no_line_is_longer_than_120_columns():
    root = CSRC.parent
    folders = [CSRC, root / "src", root / "tests", root / "bench"]
    suffixes = {".c", ".h", ".def", ".py", ".pyi", ".pyx", ".pxi"}
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    assert paths
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 120, f"{path}:{number}"


def test_the_stub_of_the_binding_names_what_it_has():
    tree = ast.parse((CSRC.parent / "src/fastrnn/_core.pyi").read_text())
    for cls in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        annotated = {node.target.id for node in cls.body if isinstance(node, ast.AnnAssign)}
        defined = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
        public = {name for name in dir(getattr(_core, cls.name)) if not name.startswith("_")}
        assert public == {name for name in annotated | defined if not name.startswith("_")}, cls.name
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions == {name for name in dir(_core) if inspect.isroutine(getattr(_core, name)) and name[0] != "_"}


def test_the_c_library_knows_nothing_of_python():
    for path in CSRC.rglob("*.[ch]"):
        assert "Python.h" not in path.read_text(), path


def test_cells_include_nothing():
    for path in (CSRC / "cells").glob("*.h"):
        assert "#include" not in path.read_text(), path
