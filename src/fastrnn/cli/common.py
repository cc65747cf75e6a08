"""What the subcommands share: the table of cells, threads, the machine, argument types, optional packages."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.resources
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np

import fastrnn

from .. import roofline
from ..config import MOST_THREADS


class Cell(NamedTuple):
    """A kind of recurrent layer that the commands can run."""

    layer: str
    """Name of its class, in ``fastrnn`` and in ``fastrnn.reference``."""
    title: str
    gates: int
    """Rows of a weight matrix per hidden unit."""
    options: Mapping[str, Any] = MappingProxyType({})
    recurrent: bool = True
    """Whether it has recurrent weights."""
    taps: int = 1
    """How many steps of the input an output reads."""

    def make(self, layers: ModuleType, *sizes: int, **options: Any) -> Any:
        """The layer from ``layers``: fastrnn or fastrnn.reference."""
        return getattr(layers, self.layer)(*sizes, **self.options, **options)


CELLS = {
    "rnn": Cell("RNN", "Elman network", gates=1),
    "lstm": Cell("LSTM", "LSTM", gates=4),
    "lstm-peephole": Cell("LSTM", "LSTM with peepholes", gates=4, options={"peephole": True}),
    "lstm-coupled": Cell("LSTM", "LSTM with coupled gates", gates=3, options={"coupled": True}),
    "lstm-original": Cell("LSTM", "LSTM of 1997", gates=3, options={"forget_gate": False}),
    "gru": Cell("GRU", "GRU", gates=3),
    "gru-reset-before": Cell("GRU", "original GRU", gates=3, options={"reset_after": False}),
    "cec": Cell("CEC", "constant error carousel", gates=1, recurrent=False),
    "tdnn": Cell("TDNN", "time-delay network", gates=1, recurrent=False, taps=5),
}


SHIPPED_TEXT = importlib.resources.files("fastrnn") / "data" / "kjv.txt"


class CliError(Exception):
    """An error of the user's making: reported in one line, exit status 2."""


def require(package: str) -> ModuleType:
    """Import a package of the ``cli`` extra."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise CliError(f"this command needs {package}; install it with: pip install 'fastrnn[cli]'") from None


@contextlib.contextmanager
def thread_count(threads: int, blas_threads: int | None = None) -> Iterator[None]:
    """Give the kernels ``threads`` threads and NumPy's matrix products as many, or ``blas_threads``.

    Both counts are restored at the end.
    """
    before = fastrnn.get_num_threads()
    with require("threadpoolctl").threadpool_limits(blas_threads or threads, user_api="blas"):
        fastrnn.set_num_threads(threads)
        try:
            yield
        finally:
            fastrnn.set_num_threads(before)


def settle(patience: float = 1.0) -> None:
    """Wait until no thread of this process is busy, at most ``patience`` seconds.

    Idle threads of a library may spin for a while after a call (OpenBLAS's for 0.1 s) and slow down what is
    timed next. What threads on other processors have used is known only as of their last timer tick, up to 10 ms
    ago, so that a shorter look would miss them.
    """
    deadline = time.perf_counter() + patience
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(15e-3)
        if time.process_time() - before < 1e-3:
            return


PICTURES = (".png", ".pdf", ".svg")


def check_picture(path: Path) -> None:
    """Find out before the work that its picture cannot be drawn or written."""
    require("matplotlib")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = errno.EISDIR if path.is_dir() else errno.EACCES if path.parent.is_dir() else errno.ENOENT
        raise CliError(f"--out: cannot write {path}: {os.strerror(why)}")
    if path.suffix.lower() not in PICTURES:
        raise CliError(f"--out: expected a file that ends in {', '.join(PICTURES)}, got {path}")


def machine() -> dict[str, Any]:
    """What a measurement depends on: versions, build, instruction set, processor."""
    return {
        **fastrnn.show_config(mode="dicts"),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "caches": {level.name: level.size for level in roofline.levels()[:-1]},
    }


def write_json(path: Path | None, figures: dict[str, Any] | None) -> None:
    """Replace the file by one with these figures: whoever reads it finds the old ones or the new. None: only find out,
    before the work and not after it, that the file cannot be written."""
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise CliError(f"--json: cannot write {path}: not a regular file")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
        if figures is not None:
            temporary.replace(path)
    except OSError as error:
        raise CliError(f"--json: cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def add_cell_argument(parser: argparse.ArgumentParser, cells: Sequence[str]) -> None:
    """Add ``--cell`` with some of the names of ``CELLS``."""
    parser.add_argument(
        "--cell",
        choices=cells,
        default="rnn",
        help="kind of recurrent layer: %(choices)s (default: %(default)s)",
    )


def duration(seconds: float) -> str:
    """A time with four digits and its unit."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:#.4g} {unit}"
    return f"{seconds:#.4g} s"


def natural_int(text: str, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
    """An argument type: an integer from 0, of 31 bits."""
    if not text.isdecimal() or not minimum <= int(text) <= maximum:
        raise argparse.ArgumentTypeError(f"expected an integer from {minimum} to {maximum}, got {text!r}")
    return int(text)


def positive_int(text: str) -> int:
    """An argument type: an integer from 1."""
    return natural_int(text, minimum=1)


def thread_number(text: str) -> int:
    """An argument type: a number of threads."""
    return natural_int(text, minimum=1, maximum=MOST_THREADS)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
