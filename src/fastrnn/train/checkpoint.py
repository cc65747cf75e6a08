"""Checkpoints of a training run: models, optimiser, step, random generators, in a safetensors file (``storage.py``).

Arrays are tensors, named ``models/NAME/PARAMETER``, ``optimizer/MOMENT/PARAMETER`` and ``arrays/NAME``; all else is in
the header, as JSON. Nothing is pickled.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks, storage
from ..layers import Layer
from .head import Linear
from .optimizers import _Optimizer

_FIELDS = ("models", "optimizer", "step", "generators")

# Dtypes in the format's names: of a model's parameters, by its own dtype; of moments; of all that NumPy has, too.
_PARAMETERS = {"float32": "F32", "float64": "F64"}
_MOMENTS = ("F16", "F32", "F64")
_ARRAYS = (*_MOMENTS, "BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")


class Checkpoint(NamedTuple):
    """What ``load_checkpoint`` returns."""

    step: int  #: the number that was saved
    arrays: dict[str, NDArray]  #: the arrays that were saved beside the models
    models: dict[str, dict[str, NDArray]]  #: the parameters of every model, by name


def save_checkpoint(
    path: str | os.PathLike,
    models: Mapping[str, Layer | Linear],
    optimizer: _Optimizer | None = None,
    *,
    step: int = 0,
    generators: Mapping[str, np.random.Generator] | None = None,
    arrays: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Write a training run to a file in safetensors format, whole or not at all: it can go on with the same bits.

    Parameters
    ----------
    path : str or os.PathLike
    models : layers and linear heads by name, for example ``{"layer": lstm, "head": head}``
        Their options and parameters are saved, and of layers the generator that draws dropout's masks.
    optimizer : SGD, Adam or AdamW, or None
    step : int, at least 0
        How far the run is.
    generators : numpy.random.Generator by name, or None
        Their bit generators' states; how often one was asked to ``spawn`` is not part of them.
    arrays : real arrays of any shapes and integers by name, or None
        What else the run needs, such as the state that is carried from chunk to chunk.

    Raises
    ------
    TypeError, ValueError
        naming the argument that is wrong, what was expected and what came. A name may not hold a slash.
    OSError, ImportError
        The file cannot be written; the package safetensors is missing.
    """
    _check_models(models)
    _check_generators({} if generators is None else generators)
    tensors = {f"models/{name}/{key}": value for name, model in models.items() for key, value in model.params.items()}
    about = {
        "models": {name: _about(model) for name, model in models.items()},
        "optimizer": None,
        "step": checks.integer_at_least(step, "step", 0),
        "generators": {name: _state_of(generator) for name, generator in (generators or {}).items()},
    }
    if optimizer is not None:
        about["optimizer"] = _check_optimizer(optimizer)._about()
        for name in optimizer.params:
            if not isinstance(name, str):
                raise TypeError(f"optimizer: expected parameters named by strings, got {name!r}")
        for moment, values in optimizer._moments.items():
            tensors |= {f"optimizer/{moment}/{name}": value for name, value in values.items()}
    for name, value in checks.mapping({} if arrays is None else arrays, "arrays", "names to arrays").items():
        value = checks.array(value, f"arrays[{name!r}]")
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise TypeError(f"arrays[{name!r}]: expected an array of real numbers, got dtype {value.dtype}")
        tensors[f"arrays/{_check_name(name, 'arrays')}"] = value
    storage.write(path, about, tensors, _names_in)


def load_checkpoint(
    path: str | os.PathLike,
    models: Mapping[str, Layer | Linear] | None = None,
    optimizer: _Optimizer | None = None,
    *,
    generators: Mapping[str, np.random.Generator] | None = None,
) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote, and put fresh objects into the state that it had saved.

    ``models``, ``optimizer`` and ``generators`` are as for ``save_checkpoint``; what is None is left alone. The layers
    of ``fastrnn`` and of ``fastrnn.reference`` take each other's.

    Returns
    -------
    Checkpoint
        ``step``, ``arrays`` and the parameters in ``models``.

    Raises
    ------
    ValueError
        The file is damaged or no checkpoint, or what was saved differs from what is given: names, classes, options,
        sizes, the optimiser's settings or schedule, the kind of a generator. Then nothing is changed.
    TypeError, OSError, ImportError
        An argument of the wrong type; the file cannot be read; the package safetensors is missing.
    """
    _check_models({} if models is None else models)
    _check_generators({} if generators is None else generators)
    (saved_models, saved_optimizer, step, saved_generators), tensors = storage.read(
        path, "a checkpoint", _FIELDS, _names_in
    )
    groups = {"models": {}, "optimizer": {}, "arrays": {}}
    for name, value in tensors.items():
        group, name = name.split("/", 1)
        groups[group][name] = value
    parameters = {name: {} for name in saved_models}
    moments = {}
    for name, value in groups["models"].items():
        model, key = name.split("/", 1)
        parameters[model][key] = value
    for name, value in groups["optimizer"].items():
        moment, key = name.split("/", 1)
        moments.setdefault(moment, {})[key] = value

    where = os.fspath(path)
    changes = []  # all checked before the first is made
    if models is not None:
        _same_names("models", models, saved_models, where)
        for name, model in models.items():
            changes += _model_changes(name, model, saved_models[name], parameters[name], where)
    if optimizer is not None:
        _check_optimizer(optimizer)
        if saved_optimizer is None:
            raise ValueError(f"optimizer: expected None, for {where} holds none, got {type(optimizer).__name__}")
        try:
            checked = optimizer._checked(saved_optimizer | {"moments": moments})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        changes.append(partial(optimizer._apply, checked))
    if generators is not None:
        _same_names("generators", generators, saved_generators, where)
        for name, generator in generators.items():
            changes.append(_generator_change(f"generators[{name!r}]", generator, saved_generators[name], where))
    for change in changes:
        change()
    return Checkpoint(step, groups["arrays"], parameters)


# Models.


def _about(model):
    """What a model is, and its generator, as JSON can hold it."""
    if isinstance(model, Linear):
        output_size, input_size = model.params["weight"].shape
        options = {"input_size": input_size, "output_size": output_size, "dtype": model.dtype.name}
        return {"class": "Linear", "options": options, "generator": None}
    options = {"input_size": model.input_size, "hidden_size": model.hidden_size} | model._options()
    generator = _state_of(model._dropout_rng)
    return {"class": model._kind().__name__, "options": json.loads(json.dumps(options)), "generator": generator}


def _model_changes(name, model, saved, parameters, where):
    about, argument = _about(model), f"models[{name!r}]"
    if about["class"] != saved["class"]:
        raise ValueError(f"{argument}: expected class {saved['class']} as in {where}, got {about['class']}")
    options, expected = about["options"], saved["options"]
    for key in sorted(options.keys() | expected.keys()):
        if options.get(key) != expected.get(key):
            values = [repr(have[key]) if key in have else "its default" for have in (expected, options)]
            raise ValueError(f"{argument}: expected {key} {values[0]} as in {where}, got {values[1]}")
    _same_names(f"parameters of {argument}", model.params, parameters, where)
    for key, value in model.params.items():
        given = checks.shaped_array(parameters[key], f"{where}, {name}, {key}", value.shape, value.dtype)
        yield partial(np.copyto, value, given)
    if (saved["generator"] is None) != (about["generator"] is None):
        raise ValueError(f"{argument}: expected a generator in {where} for a layer alone, got {saved['generator']}")
    if saved["generator"] is not None:
        yield _generator_change(argument, model._dropout_rng, saved["generator"], where)


# Generators: the state of a bit generator holds integers of any size and, of some kinds, arrays of integers, for which
# it also takes lists.


def _state_of(generator):
    return json.loads(json.dumps(generator.bit_generator.state, default=lambda array: array.tolist()))


def _generator_change(argument, generator, saved, where):
    bits = generator.bit_generator
    kinds = [state.get("bit_generator") for state in (saved, bits.state)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{argument}: expected a bit generator {kinds[0]} as in {where}, got {kinds[1]}")
    try:
        copy.deepcopy(bits).state = saved
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"{argument}: the state in {where} is damaged: {error}") from None
    return partial(setattr, bits, "state", saved)


# Checks of arguments, and of what a file says.


def _check_models(models):
    for name, model in checks.mapping(models, "models", "names to layers").items():
        if not isinstance(model, (Layer, Linear)):
            raise TypeError(f"models[{name!r}]: expected a layer or a Linear, got {type(model).__name__}")
        _check_name(name, "models")


def _check_generators(generators):
    for name, generator in checks.mapping(generators, "generators", "names to generators").items():
        if not isinstance(generator, np.random.Generator):
            kind = type(generator).__name__
            raise TypeError(f"generators[{name!r}]: expected a numpy.random.Generator, got {kind}")
        _check_name(name, "generators")


def _check_optimizer(optimizer):
    if not isinstance(optimizer, _Optimizer):
        raise TypeError(f"optimizer: expected SGD, Adam or AdamW, got {type(optimizer).__name__}")
    return optimizer


def _check_name(name, argument):
    if not isinstance(name, str) or "/" in name:
        raise ValueError(f"{argument}: expected names without a slash, got {name!r}")
    return name


def _same_names(argument, given, saved, where):
    if given.keys() != saved.keys():
        raise ValueError(f"{argument}: expected {sorted(saved)} as in {where}, got {sorted(map(str, given))}")


def _names_in(file, models, optimizer, step, generators):
    """The names of all arrays, if they, their dtypes and what the file is about have the form of a checkpoint."""

    def require(condition, what):
        if not condition:
            raise ValueError(f"its metadata are damaged: {what}")

    def is_state(value):
        return isinstance(value, dict)

    require(isinstance(models, dict), "models")
    for model in models.values():
        require(isinstance(model, dict) and model.keys() == {"class", "options", "generator"}, "a model")
        require(isinstance(model["options"], dict), "options")
        require(_dtype_of(model) in tuple(_PARAMETERS), "a model's dtype")
        require(model["generator"] is None or is_state(model["generator"]), "a model's generator")
    require(optimizer is None or isinstance(optimizer, dict), "optimizer")
    require(isinstance(step, int) and step >= 0, "step")
    require(isinstance(generators, dict) and all(map(is_state, generators.values())), "generators")
    names = list(file.keys())
    for name in names:
        group, *rest = name.split("/", 2)
        require(
            (group == "arrays" and rest)
            or (group == "models" and len(rest) == 2 and rest[0] in models)
            or (group == "optimizer" and len(rest) == 2),
            f"an array {name!r}",
        )
        expected = {"arrays": _ARRAYS, "optimizer": _MOMENTS}.get(group)
        if expected is None:
            expected = (_PARAMETERS[_dtype_of(models[rest[0]])],)
        held = file.get_slice(name).get_dtype()
        if held not in expected:
            raise ValueError(f"{name}: expected dtype {' or '.join(expected)}, got {held}")
    return names


def _dtype_of(model):
    """What a file says of a model's dtype: a layer's stands there unless it is the default."""
    return model["options"].get("dtype", "float32")
