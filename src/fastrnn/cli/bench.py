"""``fastrnn bench``: layers timed against the NumPy reference and against the measured limit of the machine.

For each number of threads, shape and pass ("forward": inference, nothing recorded; "forward+backward":
training, with the gradients of the input and of every weight) the limit's rates and all candidates are
measured in turn, and that is repeated: what slows the machine for a while slows them alike. Figures are
medians over the repeats; a ratio and a fraction of the limit are medians of those inside each repeat. FLOPs
and limit follow the model in ``fastrnn.roofline``.

A row of ``CANDIDATES`` is one program to compare; a row of ``PASSES`` is one thing for it to do.
"""

from __future__ import annotations

import argparse
import json
import math
import timeit
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

import fastrnn

from .. import reference, roofline
from .common import (
    CELLS,
    CliError,
    add_cell_argument,
    machine,
    positive_int,
    positive_ints,
    settle,
    thread_count,
)

CANDIDATES: dict[str, ModuleType] = {"fastrnn": fastrnn, "numpy": reference}
PASSES = {"forward": False, "forward+backward": True}  # with backward?
SAMPLE_SECONDS = 5e-3  # a sample repeats its call for at least about this long


class Shape(NamedTuple):
    """The sizes of one benchmark, written TxBxIxH."""

    steps: int
    batch: int
    inputs: int
    hidden: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


DEFAULT_SHAPES = (
    Shape(100, 1, 32, 64),
    Shape(100, 1, 256, 256),
    Shape(100, 32, 256, 256),
    Shape(100, 64, 512, 512),
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="time the kernels against the NumPy reference and this machine's limit (about a minute)",
        description="Time the kernels against the NumPy reference, and against the limit of this machine "
        "(peak of its multiply-add units, bandwidth of the cache that holds the weights), measured in the "
        "same run.",
    )
    add_cell_argument(parser)
    parser.add_argument(
        "--shapes",
        type=_shapes,
        default=DEFAULT_SHAPES,
        metavar="TxBxIxH,...",
        help="steps x batch x inputs x hidden units (default: " + ",".join(map(str, DEFAULT_SHAPES)) + ")",
    )
    parser.add_argument(
        "--threads", type=positive_ints, metavar="N,...", help="numbers of threads (default: 1 and all)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="number type (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--repeat", type=positive_int, default=9, metavar="N", help="repeats (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print one row per result, and write the JSON file."""
    _check_writable(args.json)
    thread_counts = args.threads or sorted({1, fastrnn.get_num_threads()})
    report: dict[str, Any] = {
        "machine": machine(),
        "cell": args.cell,
        "dtype": args.dtype,
        "repeat": args.repeat,
        "call_overhead_seconds": None,
        "roofline": [],
        "results": [],
    }
    print(f"{report['machine']['processor']}, instruction set {report['machine']['isa']}")
    print(f"{CELLS[args.cell].title}, {args.dtype}; medians of {args.repeat}")
    with thread_count(1):
        report["call_overhead_seconds"] = _call_overhead(args.cell, args.dtype, args.repeat)
    print(f"one call with T = B = I = H = 1: {_time(report['call_overhead_seconds'])}")
    for threads in thread_counts:
        with thread_count(threads):
            settle()
            rates = roofline.measure(args.dtype, threads)
            report["roofline"].append(asdict(rates))
            print(f"\n{_rates(rates)}\n{_HEADER}", flush=True)
            for shape in args.shapes:
                for name in PASSES:
                    result = measure(args.cell, shape, name, threads, args.dtype, args.repeat)
                    report["results"].append(result)
                    print(_row(shape, result), flush=True)
    print(_LEGEND)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(cell: str, shape: Shape, pass_name: str, threads: int, dtype: str, repeat: int) -> dict[str, Any]:
    """Time all candidates on one shape, side by side with the rates that limit them."""
    kind = CELLS[cell]
    work = roofline.Work.layer(
        *shape,
        gates=kind.gates,
        recurrent=kind.recurrent,
        taps=kind.taps,
        dtype=dtype,
        backward=PASSES[pass_name],
    )
    level = work.level(threads)
    clocks = {
        name: Clock(layer_call(layers, cell, shape, PASSES[pass_name], dtype)) for name, layers in CANDIDATES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    peaks, bandwidths = [], []
    for _ in range(repeat):
        settle()
        peaks.append(roofline.fma_peak(dtype, threads))
        bandwidths.append(roofline.read_bandwidth(level, threads))
        for name, clock in clocks.items():
            settle()
            seconds[name].append(clock.sample())

    limits = [roofline.limit_seconds(work, *rates) for rates in zip(peaks, bandwidths, strict=True)]
    compute_bound = work.flops / np.median(peaks) >= work.bytes_read / np.median(bandwidths)
    times = {name: np.array(samples) for name, samples in seconds.items()}
    ours = times["fastrnn"]
    return {
        **shape._asdict(),
        "threads": threads,
        "pass": pass_name,
        "flops": work.flops,
        "weight_bytes_read": work.bytes_read,
        "level": level.name,
        "bound": "compute" if compute_bound else level.name,
        "seconds": {name: _spread(samples) for name, samples in times.items()},
        "peak": _spread(peaks),
        "bandwidth": _spread(bandwidths),
        "limit_seconds": _spread(limits),
        "ratio": {name: _spread(samples / ours) for name, samples in times.items() if name != "fastrnn"},
        "fraction_of_limit": _spread(limits / ours),
    }


def layer_call(layers: ModuleType, cell: str, shape: Shape, backward: bool, dtype: DTypeLike) -> Callable[[], object]:
    """A call without arguments that does one pass over random data with a layer of ``layers``."""
    rng = np.random.default_rng(0)
    layer = CELLS[cell].make(layers, shape.inputs, shape.hidden, dtype=dtype, seed=0)
    x = rng.standard_normal((shape.steps, shape.batch, shape.inputs)).astype(dtype)
    dy = rng.standard_normal((shape.steps, shape.batch, shape.hidden)).astype(dtype)

    def forward_and_backward() -> object:
        _, _, tape = layer.forward(x)
        return layer.backward(tape, dy)

    return forward_and_backward if backward else lambda: layer(x)


class Clock:
    """Times one call, repeated until it takes long enough to be timed."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._timer = timeit.Timer(call)
        self._timer.timeit(1)  # first-call costs
        self._calls = max(1, math.ceil(SAMPLE_SECONDS / self._timer.timeit(1)))

    def sample(self) -> float:
        """Seconds per call, after one call that is not timed and brings data and threads back."""
        self._timer.timeit(1)
        return self._timer.timeit(self._calls) / self._calls


def _call_overhead(cell: str, dtype: str, repeat: int) -> float:
    """Seconds of a call that has next to nothing to compute."""
    clock = Clock(layer_call(fastrnn, cell, Shape(1, 1, 1, 1), False, dtype))
    return float(np.median([clock.sample() for _ in range(repeat)]))


def _spread(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(samples, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


_HEADER = (
    f"{'T x B x I x H':<18} {'pass':<17} {'time':>9} {'+-':>5} {'GFLOP/s':>8} {'NumPy':>9} {'ratio':>7}"
    f" {'limit':>9} {'of limit':>8}  bound"
)
_LEGEND = """
time, NumPy: medians, +- half the distance between the quartiles; ratio: NumPy's time to ours; limit: the
least time at the peak and bandwidth measured beside it; bound: which of them decides (fastrnn.roofline)"""


def _row(shape: Shape, result: dict[str, Any]) -> str:
    ours, numpy = result["seconds"]["fastrnn"], result["seconds"]["numpy"]
    half_spread = (ours["high"] - ours["low"]) / 2 / ours["median"]
    return (
        f"{shape!s:<18} {result['pass']:<17} {_time(ours['median']):>9} {half_spread:>5.0%}"
        f" {result['flops'] / ours['median'] / 1e9:>8.1f} {_time(numpy['median']):>9}"
        f" {result['ratio']['numpy']['median']:>6.2f}x {_time(result['limit_seconds']['median']):>9}"
        f" {result['fraction_of_limit']['median']:>8.0%}  {result['bound']}"
    )


def _rates(rates: roofline.Roofline) -> str:
    bandwidth = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in rates.bandwidth.items())
    plural = "s" if rates.threads > 1 else ""
    return f"{rates.threads} thread{plural}: peak {rates.peak / 1e9:.0f} GFLOP/s; reads, GB/s: {bandwidth}"


def _time(seconds: float) -> str:
    """A time with four digits and its unit."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:#.4g} {unit}"
    return f"{seconds:#.4g} s"


def _shapes(text: str) -> list[Shape]:
    """An argument type: shapes with commas between them."""
    shapes = []
    for part in text.split(","):
        sizes = part.split("x")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise argparse.ArgumentTypeError(f"expected TxBxIxH, four integers >= 1, got {part!r}")
        shapes.append(Shape(*map(int, sizes)))
    return shapes


def _check_writable(path: Path | None) -> None:
    """Find out before the measurements, not after them, that the file cannot be written."""
    try:
        if path:
            path.open("a").close()
    except OSError as error:
        raise CliError(f"--json: cannot write {path}: {error.strerror}") from None
