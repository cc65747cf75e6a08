"""Layers in files: the parameters as tensors in the safetensors format (https://github.com/huggingface/safetensors),
and the class and its options as JSON in the header's metadata, under the key "fastrnn". Checkpoints of a training run
(``train.save_checkpoint``) are files of the same kind about more.

A file is data from elsewhere. Before ``load`` allocates anything, it compares the length of the header with the file,
and the names, shapes and dtypes in the header with those that the class and the options imply, so that a damaged or
hostile file cannot ask for more memory than it has bytes.
"""

from __future__ import annotations

import inspect
import json
import os
import secrets
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np

from . import checks
from .weights import suffixes

_KEY = "fastrnn"
_VERSION = 1
_LONGEST_HEADER = 2**20
_DTYPES = {"F32": "float32", "F64": "float64"}


def save(path: str | os.PathLike, class_name: str, options: dict, params: dict[str, np.ndarray]) -> None:
    """Write a layer to ``path``, whole or not at all: a failure leaves a file that was there as it was.

    ``options`` are those of the constructor, ``input_size`` and ``hidden_size`` among them, as JSON can hold them; one
    that is left out has its default. Raises ValueError if options and parameters contradict each other, OSError if the
    file cannot be written, ImportError if safetensors is not installed.
    """
    write(path, {"class": class_name, "options": options}, params, parameter_names)


def load(path: str | os.PathLike) -> tuple[str, dict, dict[str, np.ndarray]]:
    """The class name, the options and the parameters that ``save`` wrote to ``path``.

    The parameters are exactly those that a layer of this class and with these options has. Raises ValueError naming
    the file if it is damaged or was not written by ``save``, OSError if it cannot be read, ImportError if safetensors
    is not installed.
    """
    (class_name, options), params = read(path, "a layer", ("class", "options"), parameter_names)
    return class_name, options, params


# Files of any kind: what they are about, by name, as JSON, and arrays. `names_in(file, *about)` gives the names of the
# arrays in an open file, or raises ValueError if what the header says of them does not fit what the file is about.


def write(path, about: dict, arrays: dict[str, np.ndarray], names_in: Callable[..., list[str]]) -> None:
    """Write ``about`` and the arrays to ``path``, whole or not at all, and only what could be read again."""
    safetensors = _safetensors()
    path = os.path.realpath(checks.path(path, "path"))
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe is not to be replaced by a file
        raise OSError(f"{path}: not a regular file")
    header = json.dumps({"version": _VERSION, **about})
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(16)}.tmp")
    try:
        # The permissions of the file that is replaced, or of any new one.
        try:
            with open(temporary, "xb"):
                mode = os.stat(path if os.path.exists(path) else temporary).st_mode & 0o777
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        try:
            safetensors.numpy.save_file(arrays, temporary, {_KEY: header})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: {error}") from None
        try:
            _open(safetensors, temporary, tuple(about), names_in)  # what could not be loaded must not replace a file
        except ValueError as error:
            raise ValueError(f"{path}: not saved: {error}") from None
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def read(path, kind: str, fields: tuple[str, ...], names_in: Callable[..., list[str]]) -> tuple[list, dict]:
    """What ``write`` wrote: the values of those fields, and the arrays. ValueError naming the file otherwise."""
    safetensors = _safetensors()
    path = checks.path(path, "path")
    try:
        file, about, names = _open(safetensors, path, fields, names_in)
        with file:
            return about, {name: file.get_tensor(name) for name in names}
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: expected {kind} that fastrnn saved: {error}") from None


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("save and load need safetensors: pip install 'fastrnn[safetensors]'") from None
    return safetensors


def _open(safetensors, path, fields, names_in):
    """The open file, what it is about and the names of its arrays. Only the header has been read, and it agrees with
    itself and with the size of the file."""
    with open(path, "rb") as file:  # the first 8 bytes are the length of the header
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"its {size} bytes are too few for its header")
    if length > _LONGEST_HEADER:
        raise ValueError(f"expected a header of at most {_LONGEST_HEADER} bytes, got {length}")
    try:
        file = safetensors.safe_open(path, framework="np")  # checks that the tensors fill the rest of the file
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None
    about = _about(file, fields)
    return file, about, names_in(file, *about)


def _about(file, fields):
    """Those fields of the metadata in the header of an open file."""
    try:
        about = json.loads((file.metadata() or {})[_KEY])
        version, *values = (about[field] for field in ("version", *fields))
    except KeyError as error:
        raise ValueError(f"its metadata have no {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its metadata are damaged: {error}") from None
    if version != _VERSION:
        raise ValueError(f"expected version {_VERSION} of the format, got {version!r}")
    return values


def parameter_names(file, class_name, options) -> list[str]:
    """The names of a layer's parameters in an open file, which must be those that the class and the options imply."""
    names, held = [], set(file.keys())
    for name, shape in parameter_shapes(class_name, options):
        if name not in held:
            raise ValueError(f"{name}: its options imply one, but there is none")
        tensor = file.get_slice(name)
        held_shape, held_dtype = tuple(tensor.get_shape()), _DTYPES.get(tensor.get_dtype(), tensor.get_dtype())
        if (held_shape, held_dtype) != (shape, options.get("dtype", "float32")):
            implied = f"{options.get('dtype', 'float32')} {shape}"
            raise ValueError(f"{name}: its options imply {implied}, got {held_dtype} {held_shape}")
        held.remove(name)
        names.append(name)
    if held:
        raise ValueError(f"{min(held)}: its options imply none, but there is one")
    return names


def parameter_shapes(class_name: str, options: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of a layer, one by one, so that absurd options cost nothing.

    Raises ValueError naming the option that is wrong.
    """
    from . import cells  # whose layers are stored here

    kinds = {name: kind for name, kind in vars(cells).items() if cells.Layer in getattr(kind, "__bases__", ())}
    if not isinstance(class_name, str) or class_name not in kinds:
        raise ValueError(f"class: expected one of {', '.join(kinds)}, got {class_name!r}")
    if not isinstance(options, dict):
        raise ValueError(f"options: expected an object, got {type(options).__name__}")
    kind = kinds[class_name]
    try:
        given = SimpleNamespace(**dict(_checked_options(kind, options)))
    except TypeError as error:
        raise ValueError(str(error)) from None
    I = given.input_size
    for k in range(given.num_layers):
        names = suffixes(k, given.bidirectional)
        for suffix in names:
            for stem, shape in kind._direction_shapes(given, I).items():
                yield stem + suffix, shape
        I = len(names) * kind._output_size(given)


def _checked_options(kind, options):
    """The options of a layer of that kind, those that are not given by default: sizes and flags are what they should
    be, so that they can be reckoned with."""
    for name, parameter in inspect.signature(kind).parameters.items():
        default = parameter.default
        value = options.get(name, None if default is parameter.empty else default)
        if name in ("input_size", "hidden_size", "num_layers"):
            value = checks.positive_integer(value, name)
        elif name == "proj_size":
            value = checks.integer_at_least(value, name, 0)
        elif isinstance(default, bool):
            value = checks.flag(value, name)
        elif isinstance(default, tuple) and not isinstance(value, (list, tuple)):
            raise ValueError(f"{name}: expected a list, got {value!r}")
        yield name, value
