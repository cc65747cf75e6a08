"""Parameters to convert: every kind of layer that each format has, and the formats."""

import itertools
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
from helpers import orthogonal

from fastrnn import convert
from fastrnn.storage import parameter_shapes

STEPS, BATCH, INPUTS, HIDDEN, PROJECTED = 7, 3, 5, 4, 2


class Case(NamedTuple):
    cell: str
    options: Mapping = MappingProxyType({})
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True

    def __str__(self):
        options = [name if value else f"not_{name}" for name, value in self.options.items()]
        return "-".join([self.cell, *options, f"L{self.num_layers}", f"D{self.directions}", "b" * self.bias])

    @property
    def directions(self):
        return 1 + self.bidirectional

    @property
    def arguments(self):
        """What a conversion must be told."""
        return {name: self.options[name] for name in ("reset_after", "coupled") if name in self.options}

    @property
    def output_size(self):
        return self.options.get("proj_size", HIDDEN)


def cases(*cells):
    """Of each (cell, options), every combination of layers, directions and biases."""
    every = [Case(*cell, *rest) for cell in cells for rest in itertools.product((1, 2), (False, True), (True, False))]
    return pytest.mark.parametrize("case", every, ids=str)


RNN, LSTM = ("RNN", {}), ("LSTM", {})
GRU, GRU_BEFORE = ("GRU", {"reset_after": True}), ("GRU", {"reset_after": False})
PEEPHOLE, COUPLED = ("LSTM", {"peephole": True}), ("LSTM", {"coupled": True})
COUPLED_PEEPHOLE = ("LSTM", {"coupled": True, "peephole": True})
LSTMP, LSTMP_PEEPHOLE = ("LSTM", {"proj_size": PROJECTED}), ("LSTM", {"proj_size": PROJECTED, "peephole": True})

KERAS = cases(RNN, LSTM, GRU, GRU_BEFORE)
ONNX = cases(RNN, LSTM, PEEPHOLE, COUPLED, COUPLED_PEEPHOLE, GRU, GRU_BEFORE)
FLAX = cases(RNN, LSTM, ("GRU", {}))
ONEDNN = cases(RNN, LSTM, PEEPHOLE, LSTMP, LSTMP_PEEPHOLE, GRU, GRU_BEFORE)


def drawn(case, rng, dtype=np.float64):
    """A state dict whose parameters all differ, and matter."""
    options = {"input_size": INPUTS, "hidden_size": HIDDEN, "num_layers": case.num_layers, "bias": case.bias}
    options |= {"bidirectional": case.bidirectional, **case.options}
    state_dict = {}
    for name, shape in parameter_shapes(case.cell, options):
        recurrent = name.startswith(("weight_hh", "weight_hr"))
        p = 1.2 * orthogonal(rng, *shape) if recurrent else 0.7 * rng.standard_normal(shape)
        state_dict[name] = p.astype(dtype)
    return state_dict


def onnx_arguments(case):
    return {name: value for name, value in case.arguments.items() if name == "coupled"}


FORMATS = {
    "keras": (convert.to_keras, convert.from_keras, KERAS),
    "onnx": (convert.to_onnx, convert.from_onnx, ONNX),
    "flax": (convert.to_flax, convert.from_flax, FLAX),
    "onednn": (convert.to_onednn, convert.from_onednn, ONEDNN),
}
EVERY = [
    pytest.param(name, case, id=f"{name}-{case}") for name, (_, _, mark) in FORMATS.items() for case in mark.args[1]
]


def pair(name, case):
    to, back, _ = FORMATS[name]
    arguments = onnx_arguments(case) if name == "onnx" else case.arguments
    return partial(to, cell=case.cell, **arguments), partial(back, cell=case.cell, **arguments)


def leaves(tree, path=""):
    """The arrays of nested lists, tuples and dicts, with where they stand."""
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not hasattr(tree, "items"):
        yield path, np.asarray(tree)
        return
    for name, part in tree.items():
        yield from leaves(part, f"{path}[{name!r}]")
