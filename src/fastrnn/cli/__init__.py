"""The ``fastrnn`` command.

Each subcommand is a module with ``add_parser(subparsers)`` and ``run(args)``, which returns the exit status,
and a place in ``COMMANDS``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

import fastrnn

from . import bench, demo, flow, info, task
from .common import CliError

__all__ = ["main"]

COMMANDS = (demo, flow, task, info, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="fastrnn",
        description="Fast recurrent networks on the CPU. New here? Start with: fastrnn demo",
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {fastrnn.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers).set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except CliError as error:
        print(f"fastrnn {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastrnn {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads on, as after `| head`
        _give_up_output()
        return 141
    except OSError as error:
        _give_up_output()
        where = f" {error.filename}" if error.filename else ""
        print(f"fastrnn {args.command}: error:{where} {error.strerror or error}", file=sys.stderr)
        return 2


def _give_up_output():
    """Write what can still be written; the interpreter's own last flush must not raise again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(args):
    try:
        fastrnn.show_config("dicts")
    except ValueError as error:  # what the environment says
        raise CliError(str(error)) from None
    try:
        with contextlib.ExitStack() as stack:
            if sys.stdout is None:  # closed before the start
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            status = args.run(args)
            sys.stdout.flush()
        return status
    except MemoryError as error:
        raise CliError(f"not enough memory: {error}") from None
