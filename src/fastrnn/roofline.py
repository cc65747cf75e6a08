"""The measured limit of this machine: FMA peak, read bandwidth, and the least time a layer needs.

The model is a roofline (Williams, Waterman & Patterson 2009). A layer does FLOPs, and it reads its weights;
whichever takes longer at the measured rate is the limit:

    limit = max(FLOPs / peak, bytes / bandwidth)

- FLOPs: one forward pass does ``2 * T * B * G * H * (I + H)``, the two matrix products; without recurrent weights,
  ``2 * T * B * G * H * I`` times the steps that an output reads. The cell's pointwise functions are not counted.
  Back-propagation does twice as much again: one product for the gradient of the inputs and states, one for the gradient
  of the weights. Of sequences of different lengths ``T * B`` is the sum of the lengths. Layers and directions add up.
- Bytes: step t needs the result of step t - 1, so the recurrent weights, ``G * H * H`` numbers, are read at
  least once per step whatever the batch: T times forward, and T times in the reverse loop. The input weights,
  ``G * H * I`` numbers, can be reused over time: once forward and once in reverse is enough. Inputs, outputs
  and states are not counted.
- Bandwidth: with n threads a core holds 1/n of the recurrent weights of one direction of one layer; of a single step,
  T = 1, which the next call repeats, 1/n of all weights. The bandwidth is the one measured, with n threads reading at
  once, from the first level of the memory hierarchy in which such a share fits.
- Peak: what n threads reach at once in a loop of fused multiply-adds that touches no memory, in the chosen
  instruction set.

The limit is strict: it leaves out pointwise functions, dependency chains and the traffic of activations, so
not every shape can reach it. To pass it, part of the weights must stay in registers or in a nearer cache from
step to step. The rates of a shared machine change from second to second, so measure them next to whatever
they are compared with.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from . import _core, checks

__all__ = ["Level", "Roofline", "Work", "fma_peak", "levels", "limit_seconds", "measure", "read_bandwidth"]

SYSFS_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Where the system does not tell: name, bytes, CPUs that share one (0: all).
DEFAULT_CACHES = (("L1", 32 << 10, 1), ("L2", 1 << 20, 1), ("L3", 16 << 20, 0))


@dataclass(frozen=True)
class Level:
    """One level of the memory hierarchy."""

    name: str
    """"L1", "L2", "L3" or "memory"."""
    size: int
    """Bytes of one cache of this level."""
    instances: int
    """How many such caches the machine has."""

    def capacity(self, threads: int) -> int:
        """Bytes that each of ``threads`` threads, spread evenly over the machine, can call its own."""
        return self.size * self.instances // max(threads, self.instances)


@dataclass(frozen=True)
class Work:
    """What a computation cannot avoid: see the model at the top of this module."""

    flops: float
    """Floating-point operations."""
    bytes_read: float
    """Bytes of weights read."""
    resident_bytes: float
    """Bytes of weights that are read again at every step, and so are worth keeping in a cache."""

    @classmethod
    def layer(
        cls,
        steps: int,
        batch: int,
        inputs: int,
        hidden: int,
        *,
        gates: int,
        recurrent: bool = True,
        taps: int = 1,
        dtype: DTypeLike = np.float32,
        backward: bool = False,
        layers: int = 1,
        directions: int = 1,
        rows: int | None = None,
    ) -> Work:
        """The work of one layer, or of a stack of them: a forward pass, and with ``backward`` a reverse pass too.

        ``recurrent`` tells whether it has recurrent weights, ``taps`` how many steps of its input an output reads,
        ``rows`` the sum of the sequences' lengths if they are not all ``steps``.
        """
        row_bytes = gates * hidden * np.dtype(dtype).itemsize
        columns = directions * taps * (inputs + (layers - 1) * directions * hidden)
        states = directions * layers * hidden if recurrent else 0
        forward_flops = 2 * (steps * batch if rows is None else rows) * gates * hidden * (columns + states)
        again = hidden if recurrent else taps * inputs
        return cls(
            flops=forward_flops * (3 if backward else 1),
            bytes_read=(steps * states + columns) * row_bytes * (2 if backward else 1),
            resident_bytes=(columns + states if steps == 1 else again) * row_bytes,
        )

    def level(self, threads: int) -> Level:
        """The first level that holds one core's share of the resident weights."""
        share = self.resident_bytes / threads
        return next(level for level in levels() if level.capacity(threads) >= share)


@dataclass(frozen=True)
class Roofline:
    """The measured rates of this machine for one dtype and one number of threads."""

    dtype: str
    threads: int
    peak: float
    """FLOP/s."""
    bandwidth: dict[str, float]
    """Bytes per second read from each level, by its name."""

    def limit_seconds(self, work: Work) -> float:
        """The time ``work`` takes at least."""
        return limit_seconds(work, self.peak, self.bandwidth[work.level(self.threads).name])


def limit_seconds(work: Work, peak: float, bandwidth: float) -> float:
    """The time ``work`` takes at least at ``peak`` FLOP/s and ``bandwidth`` bytes/s."""
    return max(work.flops / peak, work.bytes_read / bandwidth)


@functools.cache
def levels(sysfs: Path = SYSFS_CACHES) -> tuple[Level, ...]:
    """The data caches of this machine from the nearest to the farthest, then memory.

    Sizes come from Linux's sysfs; elsewhere, or where it tells nothing, they are common values.
    """
    cpus = os.cpu_count() or 1
    caches = []
    for index in sysfs.glob("index*"):
        size = _bytes(_text(index / "size"))
        if size and _text(index / "type") in ("Data", "Unified"):
            caches.append((f"L{_text(index / 'level')}", size, _cpus(_text(index / "shared_cpu_list"))))
    caches = sorted(caches) or [(name, size, sharing or cpus) for name, size, sharing in DEFAULT_CACHES]
    return (
        *(Level(name, size, max(1, cpus // sharing)) for name, size, sharing in caches),
        Level("memory", sys.maxsize, 1),
    )


def fma_peak(dtype: DTypeLike = np.float32, threads: int = 1, seconds: float = 0.01) -> float:
    """FLOP/s of ``threads`` cores that run fused multiply-adds in registers; measures for ``seconds``."""
    checks.positive_integer(threads, "threads")
    return _rate(lambda rounds: _core.fma_loop(dtype, rounds, threads), seconds)


def read_bandwidth(level: Level, threads: int = 1, seconds: float = 0.01) -> float:
    """Bytes per second that ``threads`` cores read at once from ``level``, measured for ``seconds``.

    Each core streams over an array of its own, of a size halfway between its share of this level and of the
    one before: too large for the nearer caches, small enough for this one. For memory it is four times its
    share of the last cache.
    """
    checks.positive_integer(threads, "threads")
    hierarchy = levels()
    place = hierarchy.index(level)
    below = hierarchy[place - 1].capacity(threads) if place else 0
    size = 4 * below if level.name == "memory" else (below + level.capacity(threads)) // 2
    size = threads * max(size, 4096)
    spare = np.ones(size + 64, np.uint8)
    array = spare[-spare.ctypes.data % 64 :][:size]  # vectors that straddle two cache lines would halve the rate
    return _rate(lambda rounds: _core.read_loop(array, rounds, threads), seconds)


def measure(dtype: DTypeLike = np.float32, threads: int = 1, seconds: float = 0.02) -> Roofline:
    """Measure every rate, for ``seconds`` each."""
    return Roofline(
        dtype=np.dtype(dtype).name,
        threads=threads,
        peak=fma_peak(dtype, threads, seconds),
        bandwidth={level.name: read_bandwidth(level, threads, seconds) for level in levels()},
    )


def _rate(loop: Callable[[int], int], seconds: float) -> float:
    """Amount per second of ``loop``, which takes a number of rounds and returns the amount that it did. The number
    grows until the run lasts ``seconds``."""
    rounds = 1
    while True:
        start = time.perf_counter()
        amount = loop(rounds)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return amount / elapsed
        rounds *= min(64, max(2, int(1.2 * seconds / elapsed)))


def _text(path: Path) -> str:
    """The contents of a small file, or nothing where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _bytes(size: str) -> int:
    """The kernel's notation for sizes: "32K", "1M"; nothing is 0."""
    return int(size.rstrip("KMG") or 0) << {"K": 10, "M": 20, "G": 30}.get(size[-1:], 0)


def _cpus(cpu_list: str) -> int:
    """How many there are in the kernel's notation for sets of CPUs: "0-3,8" has five; nothing is 1."""
    spans = [span.split("-") for span in (cpu_list or "0").split(",")]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)
