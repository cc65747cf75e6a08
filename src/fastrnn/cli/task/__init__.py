"""``fastrnn task``: the classic tasks of recurrent networks, each trained with one cell after another.

``sequences`` draws the data, ``tasks`` holds the settings, ``training`` trains and measures, ``plot`` draws.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import fastrnn

from ..common import check_picture, machine, natural_int, positive_int, require, thread_count, write_json
from . import plot
from .tasks import RECIPES, TASKS, Problem, Sizes, Task
from .training import Run, fit, flow

FORMAT = "fastrnn task 1"
CHECKS = 40  # on what is held out, in the course of a training
SAMPLE = 300  # characters

say = functools.partial(print, flush=True)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add this command's parser, with a parser for each task."""
    text = "train cells on a classic task: adding, sum, copy, chars (minutes)"
    parser = subparsers.add_parser("task", help=text, description=text.capitalize() + ".")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", title="tasks", required=True)
    for name, task in TASKS.items():
        _add_task(tasks, name, task)
    return parser


def _add_task(tasks: Any, name: str, task: Task) -> None:
    parser = tasks.add_parser(
        name,
        help=task.help,
        description=f"{task.help.capitalize()}, with one cell after another: a table, and a plot of the "
        f"{task.measure.partition(',')[0]} and of how far back a gradient gets. A training ends early when success is "
        "firmly there. Ctrl-C ends the command with what there is by then.",
    )
    sizes = task.sizes
    parser.add_argument(
        "--cell",
        type=_cells,
        default=list(task.cells),
        metavar="NAME,...",
        help=f"some of {', '.join(RECIPES)} (default: {','.join(task.cells)})",
    )
    if task.reads_text:
        parser.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text file (default: the shipped text)")
    for option, value, least, what in (
        ("length", sizes.length, task.least_length, task.length),
        ("hidden", sizes.hidden, 1, "hidden units"),
        ("batch", sizes.batch, 1, "sequences in a batch"),
        ("steps", sizes.steps, 1, "training steps at most, over which the learning rate falls to 0"),
    ):
        kind = functools.partial(natural_int, minimum=least)
        parser.add_argument(f"--{option}", type=kind, default=value, metavar="N", help=f"{what} (default: {value})")
    parser.add_argument(
        "--seed", type=natural_int, default=1, metavar="N", help="of data and initial weights (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads (default: all)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(f"fastrnn-{name}.png"),
        metavar="FILE.png",
        help="the plot (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")


def run(args: argparse.Namespace) -> int:
    """Train the cells in turn; print a row for each, then draw the plot."""
    tqdm = require("tqdm").tqdm
    check_picture(args.out)
    task = TASKS[args.task]
    sizes = Sizes(args.length, args.hidden, args.batch, args.steps)
    problem = task.prepare(sizes, args.seed, *([args.text] if task.reads_text else []))
    figures: dict[str, Any] = {
        "format": FORMAT,
        "machine": machine(),
        "task": args.task,
        "about": problem.about,
        "measure": task.measure,
        **sizes._asdict(),
        "seed": args.seed,
        "levels": problem.levels,
        "success": problem.success,
        "results": [],
    }
    write_json(args.json, None)
    _print_setup(args.task, task, sizes, problem)
    interrupted = False
    # NumPy keeps to one thread: its idle threads would spin on the cores the kernels need.
    with thread_count(args.threads or fastrnn.get_num_threads(), blas_threads=1):
        for name in args.cell:
            result = _train(tqdm, name, sizes, problem, args.seed)
            figures["results"].append(result)
            write_json(args.json, figures)
            say(_row(result))
            interrupted = result["status"] == "interrupted"
            if interrupted:
                break
    for result in figures["results"]:
        if result["sample"] is not None:
            say(f"\n{result['title']} writes:\n\n{result['sample']}")
    plot.draw(figures, args.out)
    say(f"\nplot: {args.out}")
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _train(tqdm: Any, name: str, sizes: Sizes, problem: Problem, seed: int) -> dict[str, Any]:
    """Train one cell; what becomes of it."""
    recipe = RECIPES[name]
    trainer = problem.make(recipe)
    flows = {"initial": _finite(flow(trainer.layer, problem.probe))}
    with tqdm(total=sizes.steps, desc=recipe.cell.title, unit="step", leave=False, disable=None) as bar:

        def report(run: Run) -> None:
            bar.set_postfix_str(f"held out {run.held_out[-1]:.4f}", refresh=False)
            bar.update()

        outcome = fit(trainer, sizes.steps, math.ceil(sizes.steps / CHECKS), problem.success, report)
    sample = None
    if outcome.end != "not finite":
        flows["trained"] = _finite(flow(trainer.layer, problem.probe))
        if problem.text is not None:
            codes = trainer.sample(int(problem.text.held_out[0]), SAMPLE, seed)
            sample = "".join(problem.text.alphabet[code] for code in codes)
    return {
        "cell": name,
        "title": recipe.cell.title,
        "lr": trainer.optimizer.lr.lr,
        "parameters": sum(value.size for value in trainer.optimizer.params.values()),
        "status": outcome.status,
        "last_step": outcome.last_step,
        "solved_at": outcome.solved_at,
        "held_out": outcome.held_out[-1] if outcome.held_out else None,
        "seconds": outcome.seconds,
        "curve": {"step": outcome.steps, "training": outcome.training, "held_out": outcome.held_out},
        "flow": flows,  # by lag, 0 to T
        "sample": sample,
    }


def _finite(values: list[float]) -> list[float | None]:
    """JSON has no infinity."""
    return [value if math.isfinite(value) else None for value in values]


def _print_setup(name: str, task: Task, sizes: Sizes, problem: Problem) -> None:
    """Print what is going to be learnt, and the columns' heads."""
    levels = [f"{level}: {value:.4g}" for level, value in problem.levels.items()]
    if problem.success is not None:
        levels.append(f"success: below {problem.success:.4g}")
    say(f"{name:<9} {problem.about}")
    say(f"sizes     {sizes.hidden} hidden units; {sizes.length} {task.length}")
    say(f"training  at most {sizes.steps:,} steps of Adam, {sizes.batch} sequences at a time")
    say(f"measure   {task.measure}; {'; '.join(levels)}\n")
    say(f"{'cell':<16} {'parameters':>10} {'steps':>7} {'held-out ' + task.column:>18} {'seconds':>8}  outcome")


def _row(result: dict[str, Any]) -> str:
    held_out = "-" if result["held_out"] is None else f"{result['held_out']:.4f}"
    outcome = result["status"]
    if outcome == "solved":
        outcome = f"solved, at step {result['solved_at']:,}"
    elif outcome == "not finite":
        outcome = f"the loss is not finite at step {result['last_step']:,}: stopped"
    return (
        f"{result['title']:<16} {result['parameters']:>10,} {result['last_step']:>7,} {held_out:>18} "
        f"{result['seconds']:>8.1f}  {outcome}"
    )


def _cells(text: str) -> list[str]:
    """An argument type: names of cells with commas between them."""
    cells = text.split(",")
    for cell in cells:
        if cell not in RECIPES:
            raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(RECIPES)}, got {cell!r}")
    return list(dict.fromkeys(cells))
