"""``fastrnn demo``: a character language model trained with the NumPy reference and with the kernels.

The model and its training are those of ``language``.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastrnn

from .. import _core, reference
from .common import CELLS, add_cell_argument, natural_int, require, settle, thread_count, thread_number
from .language import LEARNING_RATE, TEMPERATURE, Trainer
from .text import Text, load_text

SAME_LOSS = 1e-3  # float32 rounding, grown over the compared steps, stays far below this

say = functools.partial(print, flush=True)


class Sizes(NamedTuple):
    """How much the demo does."""

    hidden: int
    batch: int
    steps: int
    compared_steps: int
    seconds: float
    sample: int


FULL = Sizes(hidden=256, batch=32, steps=64, compared_steps=30, seconds=60.0, sample=600)
QUICK = Sizes(hidden=32, batch=8, steps=16, compared_steps=5, seconds=1.0, sample=120)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "demo",
        help="train a language model on a real text, NumPy reference against kernels (under 2 minutes)",
        description="Train a character-level language model: first the same steps with the NumPy reference "
        "and with the kernels, from the same weights, to compare losses and speed; then on with the kernels; "
        "then let it write. The text is Genesis and Exodus (King James Version) unless you bring one. Ctrl-C "
        "ends the training early.",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="train on this UTF-8 text file")
    add_cell_argument(parser, ("rnn", "lstm", "gru"))
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help=f"time of the training with the kernels (default: {FULL.seconds:g})",
    )
    parser.add_argument(
        "--seed",
        type=natural_int,
        default=1,
        metavar="N",
        help="initial weights and sample (default: %(default)s)",
    )
    parser.add_argument("--threads", type=thread_number, metavar="N", help="threads, for both (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few seconds with a tiny model, to see that it works")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demo; the exit status is 1 if reference and kernels disagree."""
    tqdm = require("tqdm").tqdm
    sizes = QUICK if args.quick else FULL
    if args.seconds is not None:
        sizes = sizes._replace(seconds=args.seconds)
    text = load_text(args.text, at_least=2 * sizes.batch * sizes.steps)
    threads = args.threads or fastrnn.get_num_threads()
    numpy_trainer, trainer = (_trainer(layers, args.cell, text, sizes, args.seed) for layers in (reference, fastrnn))
    trainer.layer.load_state_dict(numpy_trainer.layer.state_dict())
    _print_setup(args, sizes, text, trainer, threads)

    say(f"\n1. The same {sizes.compared_steps} training steps from the same weights")
    with thread_count(threads):
        numpy_losses = _compared_losses(tqdm, "NumPy reference", numpy_trainer, sizes.compared_steps)
        settle()
    # With the kernels NumPy keeps to one thread: its idle threads would spin on the cores the kernels need.
    with thread_count(threads, blas_threads=1):
        losses = _compared_losses(tqdm, "fastrnn kernels", trainer, sizes.compared_steps)
        difference = _print_losses({"NumPy reference": numpy_losses, "fastrnn kernels": losses})
        _print_speeds(numpy_trainer, trainer)

        say(f"\n2. Training goes on with the kernels for {sizes.seconds:g} s (Ctrl-C ends it early)")
        characters_before = trainer.characters
        _train(tqdm, trainer, sizes.seconds)
        say(
            f"   {trainer.characters - characters_before:,} characters read; on the held-out text "
            f"{trainer.evaluate(text.held_out) / math.log(2):.2f} bits per character "
            f"(a uniform guess: {math.log2(len(text.alphabet)):.2f})"
        )

        say(f"\n3. It writes (temperature {TEMPERATURE})\n")
        written = trainer.sample(int(text.held_out[0]), sizes.sample, args.seed)
        say("".join(text.alphabet[code] for code in written))

    if not difference <= SAME_LOSS:  # nan is a disagreement too
        say(f"\nThe loss curves differ by more than {SAME_LOSS:g}: the kernels and the reference disagree.")
        return 1
    return 0


def _trainer(layers: Any, cell: str, text: Text, sizes: Sizes, seed: int) -> Trainer:
    """A model with a layer of ``layers``: fastrnn or fastrnn.reference."""
    layer = CELLS[cell].make(layers, len(text.alphabet), sizes.hidden, seed=seed)
    return Trainer(layer, text, sizes.batch, sizes.steps, seed)


def _print_setup(args: argparse.Namespace, sizes: Sizes, text: Text, trainer: Trainer, threads: int) -> None:
    """Print what is going to be trained, and how."""
    size = sum(value.size for value in trainer.optimizer.params.values())
    say(f"text      {args.text or 'Genesis and Exodus, King James Version'}")
    say(f"          {text.training.size:,} characters to train on, {text.held_out.size:,} held out")
    say(f"model     {CELLS[args.cell].title}, {sizes.hidden} hidden units, {size:,} parameters, float32")
    say(f"          one-hot input and softmax output over {len(text.alphabet)} different characters")
    say(f"training  {sizes.batch} streams x {sizes.steps} steps at a time, Adam")
    say(f"kernels   {_core.get_isa()}")
    say(f"threads   {threads}, for the kernels and for the NumPy reference")


def _compared_losses(tqdm: Any, name: str, trainer: Trainer, steps: int) -> NDArray:
    """The losses of the first steps."""
    losses = np.empty(steps)
    with tqdm(range(steps), desc=f"   {name}", unit="step") as bar:
        for step in bar:
            losses[step] = trainer.step()
            bar.set_postfix_str(f"loss {losses[step]:.4f}", refresh=False)
    return losses


def _train(tqdm: Any, trainer: Trainer, seconds: float) -> None:
    """Train for ``seconds``, the learning rate falling linearly to zero; Ctrl-C ends it."""
    bar_format = "   {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    start, smooth_loss = time.perf_counter(), None
    with tqdm(total=seconds, bar_format=bar_format, mininterval=0.25) as bar:
        try:
            while (elapsed := time.perf_counter() - start) < seconds:
                trainer.optimizer.lr = LEARNING_RATE * (1 - elapsed / seconds)
                loss = trainer.step()
                smooth_loss = loss if smooth_loss is None else 0.98 * smooth_loss + 0.02 * loss
                bar.set_postfix_str(f"{smooth_loss / math.log(2):.2f} bits per character", refresh=False)
                bar.update(min(time.perf_counter() - start, seconds) - bar.n)
        except KeyboardInterrupt:
            bar.set_postfix_str("interrupted")


def _print_losses(losses: dict[str, NDArray]) -> float:
    """Print the two loss curves at a few steps, and return their largest difference."""
    one, other = losses.values()
    shown = sorted({round(place) for place in np.linspace(0, one.size - 1, 5)})
    say("   " + " ".join([f"{'step':<24}", *(f"{step + 1:>9}" for step in shown)]))
    for name, curve in losses.items():
        say("   " + " ".join([f"{name + ', loss':<24}", *(f"{curve[step]:>9.5f}" for step in shown)]))
    difference = float(np.abs(one - other).max())
    say(f"   largest difference of the two loss curves: {difference:.1e}")
    return difference


def _print_speeds(numpy_trainer: Trainer, trainer: Trainer) -> None:
    """Print the characters per second of both in the median step, and what is in the time."""
    say(f"\n   {'characters per second':<24} {'NumPy':>12} {'fastrnn':>12} {'ratio':>8}")
    for name, field in (("recurrent layer", "layer_seconds"), ("whole training step", "seconds")):
        slow, fast = (
            one.characters / len(one.seconds) / np.median(getattr(one, field)) for one in (numpy_trainer, trainer)
        )
        say(f"   {name:<24} {slow:>12,.0f} {fast:>12,.0f} {fast / slow:>7.2f}x")
    say("   (recurrent layer: its forward and backward calls; the whole step adds one-hot codes, head, loss,")
    say("   gradient clipping and Adam: the same NumPy code in both, on one thread beside the kernels; medians")
    say("   over the steps; a busy machine slows NumPy's threads most, and fastrnn bench measures with more care)")


def _seconds(text: str) -> float:
    """An argument type: a finite time from 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a time >= 0, got {text!r}")
    return value
