"""What ``gradient_flow`` is given: checked, and brought down to one direction of one layer of the stack.

All is computed in float64, from the parameters and inputs as the layer's own dtype holds them, and without dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..layers import Layer, Tape
from ..reference.engine import Steps, part
from .result import GradientFlow


class Level(NamedTuple):
    """The layer under study, alone, over a padded batch in the order in which its direction reads it."""

    layer: Layer  #: of one layer and one direction, float64, time-major, without dropout; parameters ``..._l0``
    x: np.ndarray  #: (T, B, I), what comes up to it; zero past a sequence's length
    dy: np.ndarray  #: (T, B, O), what ``backward`` brings down to its outputs; zero past a sequence's length
    state: tuple[np.ndarray, ...]  #: the initial ones, (1, B, .) each
    lengths: np.ndarray  #: (B,)
    max_lag: int  #: T - 1 unless less was asked for, so -1 without steps
    tape: Tape  #: of its forward run

    @property
    def active(self) -> np.ndarray:
        """(T, B), true where a sequence has a step."""
        return checks.real_steps(self.lengths, len(self.x), False)

    @property
    def states(self) -> tuple[np.ndarray, ...]:
        """Every step's states with the initial ones first, (T+1, B, .) each; zero past a sequence's length."""
        return tuple(
            np.concatenate([first, getattr(self.tape, name)])
            for name, first in zip(self.layer._states, self.state, strict=True)
        )

    @property
    def gates(self) -> dict[str, np.ndarray]:
        """``GradientFlow.gates``."""
        names = self.layer._gates
        if not names:
            return {}
        blocks = np.split(self.tape.gates, len(names), axis=-1)
        return {name: self.masked(block.mean(-1)) for name, block in zip(names, blocks, strict=True)}

    def masked(self, values: np.ndarray) -> np.ndarray:
        """(T, B) values, NaN where a sequence has no step."""
        return np.where(self.active, values, np.nan)


def prepare(
    classes: Mapping[str, type[Layer]],
    layer: Layer,
    x: Any,
    dy: Any,
    state: Any,
    lengths: Any,
    max_lag: int | None,
    level: int,
    direction: int,
) -> Level:
    """Check the arguments of ``gradient_flow`` and run the stack, made of ``classes`` (those of ``fastrnn`` or of
    ``fastrnn.reference``, by name), up to the layer under study and back down to it."""
    if not isinstance(layer, Layer):
        raise TypeError(f"layer: expected a layer of fastrnn, got {type(layer).__name__}")
    if not layer._states:
        raise ValueError(f"layer: expected a recurrent one, got {type(layer).__name__}, which has no state")
    L, D = layer.num_layers, layer.num_directions
    level = _index(level, "level", -L, L - 1) % L
    direction = _index(direction, "direction", 0, D - 1)
    x, batch = checks.sequences(x, lengths, layer.input_size, layer.batch_first, layer.dtype)
    dy = checks.shaped_array(dy, "dy", (*x.shape[:-1], layer._output_width), layer.dtype)
    states = tuple(s.astype(np.float64) for s in layer._initial(state, batch.B, x.ndim))
    max_lag = batch.T - 1 if max_lag is None else _index(max_lag, "max_lag", 0, batch.T - 1)
    steps = Steps(batch)
    x, dy = (steps.unpack(array).astype(np.float64) for array in (x, dy))
    _check_arguments(layer, {"x": x, "dy": dy}, states)

    # What overflows is looked for in the results.
    with np.errstate(over="ignore", invalid="ignore"):
        tape = _run(_stack(classes, layer, range(L)), x, states, steps.lengths)
        for k in range(L):
            _check_states(layer, tape, k, steps)
        inputs = (x, *_levels(tape, "h"))
        if level < L - 1:
            above = slice((level + 1) * D, None)
            upper = _stack(classes, layer, range(level + 1, L))
            tape = _run(upper, inputs[level + 1], tuple(s[above] for s in states), steps.lengths)
            dy = upper.backward(tape, dy).x
        _check_gradient(layer, dy, level)

        k = level * D + direction
        x, dy = steps.turn(inputs[level], direction), steps.turn(part(dy, direction, D), direction)
        states = tuple(s[k : k + 1] for s in states)
        one = _stack(classes, layer, [level], direction)
        return Level(one, x, dy, states, steps.lengths, max_lag, _run(one, x, states, steps.lengths))


def in_dtype(level: Level, dtype: np.dtype) -> Level:
    """The same in another dtype."""
    layer = level.layer
    one = type(layer)(layer.input_size, layer.hidden_size, **(layer._options() | {"dtype": dtype, "seed": 0}))
    one.params.update(layer.params)
    x, dy, *state = (array.astype(dtype) for array in (level.x, level.dy, *level.state))
    return level._replace(layer=one, x=x, dy=dy, state=tuple(state), tape=_run(one, x, state, level.lengths))


def flow_of(level: Level, **fields: Any) -> GradientFlow:
    """The ``GradientFlow`` of computed fields, with those that ``level`` knows."""
    kind = level.layer._kind().__name__
    return GradientFlow(cell=kind, lengths=level.lengths, gates=level.gates, **fields)


def _index(value, name, least, most):
    number = checks.integer(value, name)
    if not least <= number <= most:
        expected = f"{least} to {most}" if least <= most else "None without steps"
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return number


def _stack(classes, layer, levels, direction=None):
    """Some layers of a stack as a stack of their own: float64, time-major, without dropout; one direction or all."""
    kind, options = classes[layer._kind().__name__], layer._options()
    options |= {"num_layers": len(levels), "batch_first": False, "dropout": 0.0, "dtype": np.float64, "seed": 0}
    if direction is not None:
        options["bidirectional"] = False
    stack = kind(layer._input_size_of(levels[0]), layer.hidden_size, **options)
    for new, k in enumerate(levels):
        suffixes = layer._suffixes(k) if direction is None else layer._suffixes(k)[direction:]
        for old_suffix, suffix in zip(suffixes, stack._suffixes(new), strict=False):
            for name in stack.params:
                if name.endswith(suffix):
                    stack.params[name] = layer.params[name.removesuffix(suffix) + old_suffix]
    return stack


def _run(stack, x, states, lengths):
    return stack.forward(x, stack._pack_state(states), lengths=lengths)[2]


def _levels(tape, name):
    """A tape's arrays by that name, one for each layer."""
    arrays = getattr(tape, name)
    return arrays if isinstance(arrays, tuple) else (arrays,)


# ---- Where values stop being finite. ----


def _check_arguments(layer, arrays, states):
    """Finite parameters, inputs (T, B, .) and initial states (L*D, B, .)."""
    for name, array in layer.params.items():
        for place in _places(array):
            raise ValueError(f"{name}: expected finite values, got {array[place]} at {list(map(int, place))}")
    for name, array in arrays.items():
        for t, b, j in _places(array):
            raise ValueError(f"{name}: expected finite values, got {array[t, b, j]} at step {t}, sequence {b}")
    for name, array in zip(layer._states, states, strict=True):
        for k, b, j in _places(array):
            where = _where(layer, k // layer.num_directions, k % layer.num_directions)
            raise ValueError(f"state: expected finite values, got {array[k, b, j]} in {name} of {where}, sequence {b}")


def _check_states(layer, tape, k, steps):
    """Finite states and gates of the k-th layer: of what is not, the first in the order in which it came to be."""
    found = []
    for d in range(layer.num_directions):
        for order, (name, columns) in enumerate(_columns(layer, tape, k, d)):
            # What is beyond the range of the layer's own dtype would be infinite in it.
            read = steps.turn(columns.astype(layer.dtype), d)
            for t, b, j in _places(read):
                at = int(steps.backwards[t, b, 0]) if d else t
                found.append((t, b, order, d, f"got {read[t, b, j]} in {name} of {_where(layer, k, d)}", at))
    if found:
        _, b, _, _, what, at = min(found)
        raise ValueError(f"layer: expected states that stay finite, {what}, first at step {at}, sequence {b}")


def _columns(layer, tape, k, d):
    """Names and values (T, B, .) of what a step of direction d computes, in its order: gates, then c, then h."""
    D, gates = layer.num_directions, layer._gates
    if gates:
        blocks = np.split(part(_levels(tape, "gates")[k], d, D), len(gates), axis=-1)
        yield from ((f"gate {gate}", block) for gate, block in zip(gates, blocks, strict=True))
    for name in ("c", "h"):
        if name in layer._states:
            yield name, part(_levels(tape, name)[k], d, D)


def _check_gradient(layer, dy, level):
    for t, b, j in _places(dy):
        raise ValueError(
            f"layer: expected finite gradients, got {dy[t, b, j]} in dJ/dy of level {level}, at step {t}, sequence {b}"
        )


def _places(array):
    """The first place where an array is not finite, or none."""
    finite = np.isfinite(array)
    return [] if finite.all() else [tuple(int(i) for i in np.argwhere(~finite)[0])]


def _where(layer, level, direction):
    return f"level {level}" + (f", direction {direction}" if layer.bidirectional else "")
