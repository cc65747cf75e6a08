"""``fastrnn info``: version, build, instruction set, threads and machine."""

from __future__ import annotations

import argparse
from typing import Any

from .common import machine


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add this command's parser."""
    text = "print version, build, instruction set, threads and machine"
    return subparsers.add_parser("info", help=text, description=text.capitalize() + ".")


def run(args: argparse.Namespace) -> int:
    """Print what a bug report or a measurement needs."""
    entries = machine()
    entries["caches"] = [f"{name} {size >> 10:,} KiB" for name, size in entries["caches"].items()]
    for name, value in entries.items():
        print(f"{name:<11} {', '.join(value) if isinstance(value, list) else value}")
    return 0
