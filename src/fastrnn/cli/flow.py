"""``fastrnn flow``: how far back gradients reach, as a table, a picture and JSON.

Without a model it compares cells side by side, untrained, as a language model would start: each reads the same
characters and predicts the next one (a softmax over a linear head with weights drawn at random). With ``--model`` it
studies one saved layer in the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastrnn

from .. import storage
from ..flow import plot
from ..flow.products import gradient_flow
from ..flow.result import GradientFlow
from ..train import Linear, softmax_cross_entropy
from .common import CliError, check_picture, natural_int, positive_int, write_json
from .text import Text, load_text

DEFAULT_PICTURE = Path("flow.png")


class Contender(NamedTuple):
    """One of the layers that are compared."""

    layer: str
    options: Mapping[str, Any] = {}
    chrono: bool = False  #: with initial biases for memories as long as the sequences


CONTENDERS = {
    "Elman": Contender("RNN"),
    "Elman, gain 2": Contender("RNN", {"init": {"orthogonal": 2.0}}),
    "IRNN": Contender("RNN", {"nonlinearity": "relu", "init": "identity"}),
    "CEC": Contender("CEC"),
    "LSTM": Contender("LSTM"),
    "LSTM, chrono": Contender("LSTM", chrono=True),
    "GRU": Contender("GRU"),
    "GRU, chrono": Contender("GRU", chrono=True),
}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add this command's parser."""
    parser = subparsers.add_parser(
        "flow",
        help="show vanishing and exploding gradients: Elman, IRNN, CEC, LSTM, GRU side by side, or your own model",
        description="How much of a gradient arrives from how many steps back. Without --model: an untrained Elman "
        "network (as it is, and with recurrent weights of gain 2), IRNN, CEC, LSTM and GRU (as they are, and with "
        "chrono initialisation) read the same text. The loss is that of predicting the next character "
        "with a linear head drawn at random.",
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="a layer that layer.save() wrote (safetensors)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text (default: Genesis and Exodus)")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_PICTURE, metavar="FILE", help="the picture: png, pdf or svg (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values as JSON as well")
    parser.add_argument("--steps", type=positive_int, default=200, metavar="T", help="(default: %(default)s)")
    parser.add_argument(
        "--batch", type=positive_int, default=4, metavar="B", help="sequences, whose median is shown (%(default)s)"
    )
    parser.add_argument(
        "--hidden", type=positive_int, metavar="H", help="units of the layers that are compared (default: 32)"
    )
    parser.add_argument("--level", type=int, metavar="K", help="layer of the model's stack (default: the top)")
    parser.add_argument(
        "--direction", type=int, choices=(0, 1), help="1: the reverse one, steps in its order (default: 0)"
    )
    parser.add_argument("--seed", type=natural_int, default=1, metavar="N", help="of weights (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit status is 0."""
    check_picture(args.out)
    if args.model is None and (args.level is not None or args.direction is not None):
        raise CliError("--level, --direction: expected --model as well")
    if args.json is not None and args.json.resolve() == args.out.resolve():
        raise CliError(f"--json: expected a file of its own, got that of --out, {args.json}")
    write_json(args.json, None)
    text = load_text(args.text, at_least=args.steps * args.batch + 1)
    if args.model is None:
        flows = _compare(args, text)
    else:
        flows = {args.model.name: _study(_load(args.model, text), text, args)}
    _print_table(flows, args.steps)
    try:
        if args.model is None:
            subtitle = (
                f"{args.hidden or 32} units, untrained; {args.steps} characters, median of {args.batch} sequences"
            )
            plot.save_several(flows, args.out, subtitle)
        else:
            flows[args.model.name].plot(args.out)
    except OSError as error:
        raise CliError(f"--out: cannot write {error.filename}: {error.strerror}") from None
    write_json(args.json, {name: flow.to_dict() for name, flow in flows.items()})
    print(f"\nwritten: {', '.join(map(str, filter(None, (args.out, args.json))))}")
    return 0


def _compare(args: argparse.Namespace, text: Text) -> dict[str, GradientFlow]:
    """The flow of every contender."""
    flows = {}
    for name, contender in CONTENDERS.items():
        options = dict(contender.options, seed=args.seed)
        if contender.chrono:
            options["init"] = {"chrono": max(args.steps, 2)}
        layer = getattr(fastrnn, contender.layer)(len(text.alphabet), args.hidden or 32, **options)
        flows[name] = _study(layer, text, args)
    return flows


def _load(path: Path, text: Text) -> Any:
    """The layer in a file, if it can read the text."""
    try:
        kind = getattr(fastrnn, storage.load(path)[0])
        layer = kind.load(path)
    except ImportError as error:
        raise CliError(str(error)) from None
    except (OSError, ValueError) as error:
        raise CliError(f"--model: {error}") from None
    if layer.input_size != len(text.alphabet):
        raise CliError(
            f"--model: expected an input size of {len(text.alphabet)}, a one-hot code of the text's different "
            f"characters, but {path} has {layer.input_size}"
        )
    return layer


def _study(layer: Any, text: Text, args: argparse.Namespace) -> GradientFlow:
    """The gradient flow of the mean loss in predicting the next character."""
    ids = np.concatenate([text.training, text.held_out])[: args.steps * args.batch + 1]
    inputs, targets = (part.reshape(args.batch, args.steps).T for part in (ids[:-1], ids[1:]))
    x = np.eye(len(text.alphabet), dtype=layer.dtype)[inputs]
    if layer.batch_first:
        x, targets = x.swapaxes(0, 1), targets.T
    y, _ = layer(x)
    dy = np.zeros_like(y)
    if np.isfinite(y).all():  # else it is of the states that there is something to say
        dy = _output_gradient(y, targets, len(text.alphabet), args.seed)
    try:
        return gradient_flow(
            layer, x, dy, level=-1 if args.level is None else args.level, direction=args.direction or 0
        )
    except ValueError as error:  # names the argument
        name = str(error).partition(":")[0]
        what = f"--{error}" if name in ("level", "direction") else f"--model: {str(error).removeprefix('layer: ')}"
        raise CliError(what) from None


def _output_gradient(y: NDArray, targets: NDArray, classes: int, seed: int) -> NDArray:
    """dJ/dy through a linear head and the softmax."""
    head = Linear(y.shape[-1], classes, dtype=y.dtype, seed=seed)
    logits, tape = head.forward(y)
    _, dlogits = softmax_cross_entropy(logits, targets)
    return head.backward(tape, dlogits / targets.size).x


def _print_table(flows: dict[str, GradientFlow], steps: int) -> None:
    """A line for each flow: medians over the sequences."""
    lags = sorted({lag for lag in (10, 100, steps) if lag <= steps})
    head = [f"{'':<{width(flows)}}", f"{'gamma':>8}", *(f"{f'flow at {lag}':>12}" for lag in lags), f"{'horizon':>8}"]
    print(" ".join(head) + "  verdict")
    for name, flow in flows.items():
        by_lag = np.nanmedian(plot.by_lag(flow), axis=1)
        line = [f"{name:<{width(flows)}}", f"{np.nanmedian(flow.gamma):>8.3f}"]
        line += [f"{by_lag[lag]:>12.2e}" for lag in lags] + [f"{np.median(flow.horizon):>8g}"]
        print(" ".join(line) + f"  {flow.verdict}")
    print(_LEGEND)


_LEGEND = """
gamma: the greatest stretch of a change by one step; flow at k: how much of a change k steps back reaches the last
output; horizon: how many steps back a thousandth is left; medians over the sequences"""


def width(names: Any) -> int:
    return max(map(len, names))
