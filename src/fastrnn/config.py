"""What fastrnn runs on: threads, instruction set, build."""

from __future__ import annotations

import os
import sys

from . import _core, checks

MOST_THREADS = 256

_chosen: int | None = None


def set_num_threads(n: int) -> None:
    """Use ``n`` threads (at least 1; beyond 256, 256) from the next call on, for all layers of the process.

    Raises TypeError if ``n`` is no integer, ValueError if it is less than 1.
    """
    global _chosen
    _chosen = min(checks.positive_integer(n, "n"), MOST_THREADS)


def get_num_threads() -> int:
    """The number of threads that calls use: what ``set_num_threads`` said, else the environment variable
    ``FASTRNN_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the processors that this process may use (its affinity, and
    the quota of its control group), as they are when this or a layer is first called.

    Raises ValueError if ``FASTRNN_NUM_THREADS`` is anything but an integer of at least 1.
    """
    if _chosen is None:
        set_num_threads(_default_threads())
    return _chosen


def _default_threads() -> int:
    own = os.environ.get("FASTRNN_NUM_THREADS", "").strip()
    if own:
        if not own.isdecimal() or int(own) < 1:
            raise ValueError(f"FASTRNN_NUM_THREADS: expected an integer of at least 1, got {own!r}")
        return int(own)
    # OMP_NUM_THREADS may be a list, one number for each level of nesting: the first one counts.
    shared = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if shared.isdecimal() and int(shared) > 0:
        return int(shared)
    return _core.processors()


def show_config(mode: str = "stdout") -> dict | None:
    """Print the version, the build, the instruction set and the number of threads; or, with ``mode="dicts"``, return
    them as a dict."""
    checks.choice(mode, "mode", ("stdout", "dicts"))
    config = {
        "version": _core.version,
        "compiler": _core.compiler,
        "python": sys.version.split()[0],
        "isa": _core.get_isa(),
        "isas": list(_core.isas()),
        "threads": get_num_threads(),
        "processors": _core.processors(),
        "cells": list(_core.cells()),
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        print(f"{key:10} {', '.join(value) if isinstance(value, list) else value}")
    return None
