"""``fastrnn bench``: layers timed against the NumPy reference, against other libraries, and against the measured limit.

For each number of threads, and for each point ("forward": inference, nothing recorded; "forward+backward":
training, with the gradients of the input and of every weight; "step": one step of a stream), the limit's rates
and all candidates are measured in turn, and that is repeated: what slows the machine for a while slows them alike. A
slow candidate takes part in the first repeats only. Before a sample the call is made for a while, so that what is timed
is the middle of a long run and not its start; and so are the limit's rates. Figures are medians over the repeats; a
ratio and a fraction of the limit are medians of those inside each repeat. FLOPs and limit follow the model in
``fastrnn.roofline``.

A process of its own measures each number of threads, on as many processors: some libraries take all they find.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn

from .. import roofline
from . import report
from .common import (
    CELLS,
    CliError,
    duration,
    machine,
    positive_int,
    require,
    settle,
    thread_count,
    thread_number,
    write_json,
)
from .peers import LIBRARIES, OWN, candidates
from .points import DEFAULT_SHAPES, GRID_CELLS, GRID_SHAPES, Point, Problem, Shape, points, special_points

SAMPLE_SECONDS = 5e-3  # a sample repeats its call for at least about this long
WARM_CALLS = 3  # calls before a sample: so many bring data back that other candidates have driven from the caches
WARM_SECONDS = 10e-3  # and for so long: after a pause calls take up to 7 ms to come to their speed
CANDIDATE_SECONDS = 0.6  # what is timed of a candidate at a point takes about this long at most
FEWEST_SAMPLES = 3
RTOL, ATOL = 1e-3, 1e-4  # of float32, over thousands of steps in another order; a wrong set-up is far off


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="time the kernels against NumPy, other libraries and this machine's limit (about a minute)",
        description="Time the kernels against the NumPy reference, against other libraries, and against the limit of "
        "this machine (peak of its multiply-add units, bandwidth of the cache that holds the weights), measured in "
        "the same run. Or report on such a run.",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also time PyTorch, ONNX Runtime and JAX where they are installed; without --shapes on a whole grid "
        "(about 20 minutes on two cores)",
    )
    parser.add_argument(
        "--cell",
        type=_cells,
        metavar="NAME,...",
        help=f"kinds of recurrent layer: {', '.join(CELLS)} (default: rnn; with --peers {','.join(GRID_CELLS)})",
    )
    parser.add_argument(
        "--shapes",
        type=_shapes,
        metavar="TxBxIxH,...",
        help="steps x batch x inputs x hidden units (default: " + ",".join(map(str, DEFAULT_SHAPES)) + "; with --peers "
        f"{len(GRID_SHAPES)} shapes, and besides sentences, denormal numbers, a stack of layers, single steps)",
    )
    parser.add_argument(
        "--threads", type=_thread_numbers, metavar="N,...", help="numbers of threads (default: 1 and all)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="number type (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file, point by point")
    parser.add_argument(
        "--repeat",
        type=positive_int,
        default=9,
        metavar="N",
        help="repeats, fewer of slow calls (default: %(default)s)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="measure nothing: make a table and a plot of what --json wrote",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="STEM",
        help="of --report: write STEM.md and STEM.png, or into the folder STEM (default: FILE without its suffix)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print one row per result, and write the JSON file; or report on one."""
    if args.report:
        for name in ("peers", "cell", "shapes", "threads", "json"):
            if getattr(args, name):
                raise CliError(f"--{name}: measures, and --report does not")
        return report.run(args.report, args.output)
    if args.output:
        raise CliError("--output: expected --report as well")
    tqdm = require("tqdm").tqdm
    cells = args.cell or (GRID_CELLS if args.peers else ("rnn",))
    grid = points(cells, args.shapes or (GRID_SHAPES if args.peers else DEFAULT_SHAPES))
    if args.peers and not args.shapes:
        grid += special_points(cells)
    libraries = {name: LIBRARIES[name].version() for name in (LIBRARIES if args.peers else OWN)}
    installed = [name for name, version in libraries.items() if version]
    thread_counts = args.threads or sorted({1, fastrnn.get_num_threads()})
    figures: dict[str, Any] = {
        "format": report.FORMAT,
        "machine": machine(),
        "libraries": libraries,
        "cells": list(cells),
        "dtype": args.dtype,
        "repeat": args.repeat,
        "call_overhead_seconds": None,
        "roofline": [],
        "results": [],
    }
    write_json(args.json, None)
    print(f"{figures['machine']['processor']}, instruction set {figures['machine']['isa']}")
    print(", ".join(f"{LIBRARIES[name].title} {version or 'is not installed'}" for name, version in libraries.items()))
    print(f"{', '.join(CELLS[cell].title for cell in cells)}; {args.dtype}; medians of up to {args.repeat}")
    with tqdm(total=len(thread_counts) * len(grid), unit="point", disable=None) as bar:
        for threads in thread_counts:
            with worker(threads) as process:
                if not figures["results"]:
                    overhead = call(process, _call_overhead, 1, cells[0], args.dtype, args.repeat)
                    figures["call_overhead_seconds"] = overhead
                    bar.write(f"one call with T = B = I = H = 1: {duration(overhead)}")
                rates = call(process, _rates, threads, args.dtype)
                figures["roofline"].append(asdict(rates))
                bar.write(f"\n{_rates_line(rates)}\n{_HEADER}")
                for point in grid:
                    result = call(process, measure, threads, point, installed, args.dtype, args.repeat)
                    figures["results"].append(result)
                    write_json(args.json, figures)
                    bar.write(_row(point, result))
                    bar.update()
    print(_LEGEND)
    return 0


@contextlib.contextmanager
def worker(threads: int) -> Iterator[Executor]:
    """A process of its own for ``call``, on ``threads`` processors where the system can bind it to them."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        affinity = getattr(os, "sched_getaffinity", lambda _: set())(0)
        if affinity:
            os.sched_setaffinity(0, sorted(affinity)[:threads])  # which a new process inherits
        try:
            process.submit(os.getpid)
        finally:
            if affinity:
                os.sched_setaffinity(0, affinity)
        yield process


def call(process: Executor, function: Callable[..., Any], threads: int, *args: Any) -> Any:
    """What ``function(threads, *args)`` returns in that process, with so many threads for kernels and NumPy."""
    try:
        return process.submit(_with_threads, function, threads, *args).result()
    except BrokenProcessPool:
        what = ", ".join(map(str, args))
        raise CliError(f"the measuring process died in {function.__name__}({what})") from None


def _with_threads(function: Callable[..., Any], threads: int, *args: Any) -> Any:
    with thread_count(threads):
        return function(threads, *args)


def measure(threads: int, point: Point, libraries: Sequence[str], dtype: str, repeat: int) -> dict[str, Any]:
    """Time all candidates on one point, side by side with the rates that limit them."""
    work = point.work(dtype)
    level = work.level(threads)
    clocks = _clocks(Problem(point, dtype, threads), libraries)
    counts = {name: clock.samples(repeat) for name, clock in clocks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    peaks, bandwidths = [], []
    for i in range(max(counts.values())):
        settle()
        roofline.fma_peak(dtype, threads, WARM_SECONDS)
        peaks.append(roofline.fma_peak(dtype, threads))
        bandwidths.append(roofline.read_bandwidth(level, threads))
        for name, clock in clocks.items():
            if i < counts[name]:
                settle()
                seconds[name].append(clock.sample())

    limits = [roofline.limit_seconds(work, *rates) for rates in zip(peaks, bandwidths, strict=True)]
    compute_bound = work.flops / np.median(peaks) >= work.bytes_read / np.median(bandwidths)
    ours = seconds["fastrnn"]
    return {
        "cell": point.cell,
        **point.shape._asdict(),
        "variant": point.variant,
        "threads": threads,
        "pass": point.pass_name,
        "flops": work.flops,
        "weight_bytes_read": work.bytes_read,
        "level": level.name,
        "bound": "compute" if compute_bound else level.name,
        "samples": counts,
        "seconds": {name: _spread(samples) for name, samples in seconds.items()},
        "peak": _spread(peaks),
        "bandwidth": _spread(bandwidths),
        "limit_seconds": _spread(limits),
        "ratio": {name: _spread(_quotients(samples, ours)) for name, samples in seconds.items() if name != "fastrnn"},
        "fraction_of_limit": _spread(_quotients(limits, ours)),
    }


def _clocks(problem: Problem, libraries: Sequence[str]) -> dict[str, Clock]:
    """A clock for each candidate, whose results agree with ours: a wrong set-up would time something else."""
    clocks, ours = {}, None
    for name, candidate in candidates(problem, libraries).items():
        arrays = [np.asarray(a).reshape(*problem.mask.shape, -1) for a in candidate.arrays(candidate.call())]
        ours = ours or arrays
        for what, array, expected in zip(("y", "dx"), arrays, ours, strict=False):
            if not np.allclose(array[problem.mask], expected[problem.mask], RTOL, ATOL):
                raise CliError(f"{problem.point}: {what} of {name} differs from ours")
        clocks[name] = Clock(candidate.call, problem.threads)
    return clocks


class Clock:
    """Times one call on so many threads, repeated until it takes long enough to be timed. The call has been made
    before."""

    def __init__(self, call: Callable[[], object], threads: int) -> None:
        self._call = call
        self._threads = threads
        self._timer = timeit.Timer(call)
        self._seconds = self._timer.timeit(1)
        self._calls = max(1, math.ceil(SAMPLE_SECONDS / self._seconds))

    def samples(self, most: int) -> int:
        """How many samples to take, at most ``most``."""
        affordable = int(CANDIDATE_SECONDS / (self._calls * self._seconds))
        return min(most, max(affordable, FEWEST_SAMPLES))

    def sample(self) -> float:
        """Seconds per call, after some that are not timed; before a long one, which has data of its own to fetch
        anyway, the processors alone are woken."""
        if self._seconds < 10 * SAMPLE_SECONDS:
            until, calls = time.perf_counter() + WARM_SECONDS, 0
            while calls < WARM_CALLS or time.perf_counter() < until:
                self._call()
                calls += 1
        else:
            roofline.fma_peak(threads=self._threads, seconds=WARM_SECONDS)
        return self._timer.timeit(self._calls) / self._calls


def _call_overhead(threads: int, cell: str, dtype: str, repeat: int) -> float:
    """Seconds of a call that has next to nothing to compute."""
    problem = Problem(Point(cell, Shape(1, 1, 1, 1), "forward"), dtype, threads)
    clock = _clocks(problem, ["fastrnn"])["fastrnn"]
    return float(np.median([clock.sample() for _ in range(repeat)]))


def _rates(threads: int, dtype: str) -> roofline.Roofline:
    settle()
    return roofline.measure(dtype, threads)


def _quotients(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Of those that both have a sample for."""
    return [a / b for a, b in zip(one, other, strict=False)]


def _spread(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(samples, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


_HEADER = (
    f"{'cell':<16} {'T x B x I x H':<18} {'pass':<17} {'time':>9} {'+-':>5} {'GFLOP/s':>8} {'limit':>9}"
    f" {'of limit':>8}  {'bound':<8} ratio"
)
_LEGEND = """
time: median, +- half the distance between the quartiles; limit: the least time at the peak and bandwidth measured
beside it; bound: which of them decides (fastrnn.roofline); ratio: the others' times to ours"""


def _row(point: Point, result: dict[str, Any]) -> str:
    ours = result["seconds"]["fastrnn"]
    half_spread = (ours["high"] - ours["low"]) / 2 / ours["median"]
    ratios = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in result["ratio"].items())
    return (
        f"{point.cell:<16} {point.shape!s:<18} {point.pass_name:<17} {duration(ours['median']):>9} {half_spread:>5.0%}"
        f" {result['flops'] / ours['median'] / 1e9:>8.1f} {duration(result['limit_seconds']['median']):>9}"
        f" {result['fraction_of_limit']['median']:>8.0%}  {result['bound']:<8} {ratios}"
        + (f" ({point.variant})" if point.variant else "")
    )


def _rates_line(rates: roofline.Roofline) -> str:
    bandwidth = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in rates.bandwidth.items())
    plural = "s" if rates.threads > 1 else ""
    return f"{rates.threads} thread{plural}: peak {rates.peak / 1e9:.0f} GFLOP/s; reads, GB/s: {bandwidth}"


def _cells(text: str) -> list[str]:
    """An argument type: names of ``CELLS`` with commas between them."""
    cells = text.split(",")
    for cell in cells:
        if cell not in CELLS:
            raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(CELLS)}, got {cell!r}")
    return cells


def _shapes(text: str) -> list[Shape]:
    """An argument type: shapes with commas between them."""
    shapes = []
    for part in text.split(","):
        sizes = part.split("x")
        if len(sizes) != 4 or not all(map(str.isdecimal, sizes)):
            raise argparse.ArgumentTypeError(f"expected TxBxIxH, four integers >= 1, got {part!r}")
        shapes.append(Shape(*map(positive_int, sizes)))
    return shapes


def _thread_numbers(text: str) -> list[int]:
    """An argument type: numbers of threads with commas between them."""
    return [thread_number(part) for part in text.split(",")]
