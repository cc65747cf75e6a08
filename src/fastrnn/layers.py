"""What all layers share: parameters, stacking, directions, lengths, layouts, dropout, streaming, files.

What differs stands in a subclass (``cells.py``: options, shapes of the parameters) and in its engines, one for each
layer of the stack, which run one layer over one batch: the C kernels here, plain NumPy in ``fastrnn.reference``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from . import _core, checks, config, initial, storage
from .gradients import Gradients
from .weights import Weights

State = Any  #: h; (h, c) for LSTM, c for CEC, None for TDNN. As an argument any array-likes, and None for zeros


class Parameters(dict):
    """The parameters of a layer by name. The arrays are the layer's own: a change in place is seen by the next call,
    and to assign to a name copies the values into its array."""

    def __setitem__(self, name, value):
        if name not in self:
            raise KeyError(f"params: expected one of {', '.join(self)}, got {name!r}")
        self[name][...] = checks.shaped_array(value, name, self[name].shape, self[name].dtype)

    def update(self, *args, **kwargs):
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __ior__(self, other):
        self.update(other)
        return self

    def _fixed(self, *args, **kwargs):
        raise TypeError("params: the set of a layer's parameters is fixed")

    __delitem__ = pop = popitem = clear = setdefault = _fixed


class Tape:
    """What ``forward`` recorded for ``backward``. It may be used any number of times.

    It is complete in itself: what becomes of x, y and the parameters after ``forward`` does not change the gradients.
    """

    __slots__ = ("_batch", "_inputs", "_kept", "_layer", "_masks", "_ndim", "_outputs", "_packed", "_states")

    def __init__(self, layer, batch, ndim, states):
        self._layer, self._batch, self._ndim, self._states = layer, batch, ndim, states
        self._inputs, self._outputs, self._kept, self._masks, self._packed = [], [], [], [], []

    @property
    def h(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's output h_t, in the layout of y: one array, or a tuple with one for each layer of a stack."""
        return self._read_only([output.view() for output in self._outputs])

    @property
    def c(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's c_t (LSTM, CEC), in the layout of y with ``D*H`` last."""
        gates = len(self._layer._gates)
        return self._columns("c", "c" in self._layer._states, gates, gates + 1)

    @property
    def gates(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's gates (LSTM, GRU), after their nonlinearities, in the layout of y with ``D*G*H`` last: for each
        direction block by block, in the order of the rows of ``weight_ih``."""
        return self._columns("gates", self._layer._gates, 0, len(self._layer._gates))

    def _columns(self, name, present, first, last):
        """Columns of what was kept; a view unless two directions lie between."""
        if not present:
            raise AttributeError(f"tape.{name}: a layer of class {type(self._layer).__name__} has none")
        D, H = self._layer.num_directions, self._layer.hidden_size
        views = []
        for kept, engine in zip(self._kept, self._layer._engines, strict=True):
            rows = kept.shape[:-1]
            columns = kept.reshape(*rows, D, engine.kept, H)[..., first:last, :]
            views.append(columns.reshape(*rows, D * (last - first) * H))
        return self._read_only(views)

    def _read_only(self, views):
        for view in views:
            view.flags.writeable = False
        return views[0] if len(views) == 1 else tuple(views)


class _Inference:
    """Calls that record nothing, in terms of ``_infer``."""

    def __call__(
        self, x: ArrayLike, state: State = None, *, lengths: ArrayLike | None = None
    ) -> tuple[np.ndarray, State]:
        """Run the layer and record nothing.

        Parameters
        ----------
        x : array ``(T, B, I)``, ``(B, T, I)`` if ``batch_first``, ``(T, I)`` for one unbatched sequence, or
            ``(sum(lengths), I)``, a ragged batch
        state : the initial state: h ``(L*D, B, O)``; for LSTM the pair (h, c) with c ``(L*D, B, H)``, for CEC c, for
            TDNN there is none; None for zeros
        lengths : ``(B,)`` integers in 0..T, in any order; None if all are T

        Returns
        -------
        y : like x, with ``D*O`` last; zero past a sequence's length
        state : after each sequence's last step

        Raises
        ------
        ValueError, TypeError
            naming the argument that is wrong, what was expected and what came.
        """
        layer = self._layer
        x, batch = checks.sequences(x, lengths, layer.input_size, layer.batch_first, layer.dtype)
        y, states = self._infer(x, batch, layer._initial(state, batch.B, x.ndim))
        return y, layer._pack_state(states)

    def step(self, x_t: ArrayLike, state: State = None) -> tuple[np.ndarray, State]:
        """One time step of a stream: x_t ``(B, I)``, and the state that the last step returned (None: zeros). Returns
        y_t ``(B, O)`` and the state. ValueError if an output depends on other steps' inputs: of a bidirectional layer,
        and of a TDNN."""
        layer = self._layer
        layer._check_step()
        x_t = checks.real_array(x_t, "x_t", layer.dtype)
        if x_t.ndim != 2 or x_t.shape[1] != layer.input_size:
            raise ValueError(f"x_t: expected shape (B, {layer.input_size}), got {x_t.shape}")
        batch = _core.Batch(1, x_t.shape[0])
        y_t, states = self._infer(x_t, batch, layer._initial(state, batch.B, 3))
        return y_t, layer._pack_state(states)

    def _infer(self, x, batch, states):
        layer = self._layer
        threads = config.get_num_threads()
        new_states = tuple([np.empty_like(s) for s in states])
        y = None
        for k, engine in enumerate(layer._engines):
            # A layer whose input is as wide as its output may write over it, unless it reads other steps.
            if k == 0 or layer.num_directions == 2 or not layer._states:
                x, y = (x if k == 0 else y), layer._empty(k, batch, x.shape, layer._output_width)
            else:
                x = y
            engine.run_forward(
                batch,
                self._prepared(k, threads),
                x,
                y,
                layer._states_of_layer(k, states),
                layer._states_of_layer(k, new_states),
                threads,
            )
        return y, new_states


class Layer(_Inference):
    """A stack of recurrent layers; see a subclass."""

    # What a subclass says: its states, and the gates that a tape shows.
    _states: ClassVar[tuple[str, ...]] = ("h",)
    _gates: tuple[str, ...] = ()

    def __init__(
        self,
        input_size,
        hidden_size,
        num_layers,
        bias,
        batch_first,
        dropout,
        bidirectional,
        dtype,
        seed,
        init,
        output_size=None,
        coupled=False,
    ):
        self.input_size = checks.positive_integer(input_size, "input_size")
        self.hidden_size = checks.positive_integer(hidden_size, "hidden_size")
        self.num_layers = checks.positive_integer(num_layers, "num_layers")
        self.bias = checks.flag(bias, "bias")
        self.batch_first = checks.flag(batch_first, "batch_first")
        self.dropout = checks.probability(dropout, "dropout")
        self.bidirectional = checks.flag(bidirectional, "bidirectional")
        self.num_directions = 2 if self.bidirectional else 1
        self.dtype = checks.real_dtype(dtype, "dtype")
        self._state_widths = {"h": output_size or self.hidden_size, "c": self.hidden_size}
        self._output_width = self.num_directions * self._state_widths["h"]
        self._zero_states = None, ()  # those of the last batch size, which calls only read
        rng = np.random.default_rng(seed)
        self.params = Parameters(
            {
                name: np.empty(checks.addressable(shape, name), self.dtype)
                for k in range(self.num_layers)
                for name, shape in self._parameter_shapes(k).items()
            }
        )
        arrays = dict(self.params)
        initial.initialise(arrays, self._kind().__name__, self.hidden_size, init, rng, coupled)
        self._dropout_rng = rng.spawn(1)[0]
        self._weights = [self._weights_of(k, self.params) for k in range(self.num_layers)]
        self._engines = [self._make_engine(self._input_size_of(k)) for k in range(self.num_layers)]

    @property
    def _layer(self):
        return self

    @classmethod
    def _kind(cls):
        """The layer that this class is, or that it extends: RNN, LSTM, ..."""
        return next(base for base in cls.__mro__ if Layer in base.__bases__)

    # Parameters of layer k, and as its engine takes them.

    def _suffixes(self, k):
        return (f"_l{k}", f"_l{k}_reverse")[: self.num_directions]

    def _input_size_of(self, k):
        return self.input_size if k == 0 else self._output_width

    def _gated_shapes(self, k, gates):
        """The parameters of gates on W x + b_ih + R h + b_hh."""
        rows, shapes = gates * self.hidden_size, {}
        for suffix in self._suffixes(k):
            shapes["weight_ih" + suffix] = (rows, self._input_size_of(k))
            shapes["weight_hh" + suffix] = (rows, self._state_widths["h"])
            if self.bias:
                shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
        return shapes

    def _weights_of(self, k, arrays):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peep")
        return tuple(Weights(*(arrays.get(name + suffix) for name in names)) for suffix in self._suffixes(k))

    def _kernel(self, cell, input_size, context=None):
        H, O = self.hidden_size, self._state_widths["h"]
        return _core.Kernel(cell, self.dtype, self.num_directions, input_size, H, O, context)

    def _check_step(self):
        if self.num_directions == 2:
            raise ValueError("step: expected a layer of one direction, got a bidirectional one")

    # States: internally a tuple of arrays (L*D, B, width).

    def _initial(self, state, B, ndim, name="state"):
        size, zeros = self._zero_states  # read once: another thread may replace them
        if state is None and size == B:
            return zeros
        rows = self.num_layers * self.num_directions
        shapes = [(rows, B, self._state_widths[part]) for part in self._states]
        if state is None:
            zeros = tuple([np.zeros(shape, self.dtype) for shape in shapes])
            self._zero_states = B, zeros
            return zeros
        if len(shapes) == 1:
            return (self._initial_part(state, shapes[0], B, ndim, name),)
        if not isinstance(state, (tuple, list)) or len(state) != len(shapes):
            expected = f"a pair ({', '.join(self._states)})" if shapes else "None, for this layer has no state"
            came = (
                f"{type(state).__name__} of {len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
            )
            raise ValueError(f"{name}: expected {expected}, got {came}")
        return tuple(
            [
                self._initial_part(array, shape, B, ndim, f"{name}, {part}")
                for array, shape, part in zip(state, shapes, self._states, strict=True)
            ]
        )

    def _initial_part(self, array, shape, B, ndim, name):
        if array is None:
            return np.zeros(shape, self.dtype)
        array = checks.real_array(array, name, self.dtype)
        if array.shape != shape:
            # One unbatched sequence may leave out the axis of the batch.
            if ndim == 3 or array.shape != (shape[0], shape[2]) or B != 1:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
            array = array.reshape(shape)
        return array

    def _pack_state(self, states):
        return None if not states else states[0] if len(states) == 1 else states

    def _states_of_layer(self, k, states):
        D = self.num_directions
        return states if self.num_layers == 1 else tuple([s[k * D : (k + 1) * D] for s in states])

    def _empty(self, k, batch, x_shape, width, zero=False):
        """An array of layer k in the layout of the batch; zero where no step will write, or everywhere."""
        array = self._engines[k].empty((*x_shape[:-1], width), self.dtype)
        if zero or batch.padded:
            array.fill(0)
        return array

    # Inference, and training.

    def _prepared(self, k, threads):
        return self._engines[k].pack(self._weights[k], threads)

    def frozen(self) -> Frozen:
        """An object for inference alone: ``frozen(x, state, lengths=)`` and ``frozen.step(x_t, state)`` as the layer's
        own, with weights prepared once. Later changes of the parameters do not reach it."""
        return Frozen(self)

    def forward(
        self,
        x: ArrayLike,
        state: State = None,
        *,
        lengths: ArrayLike | None = None,
        checkpoint_every: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, State, Tape]:
        """Run the layer for training, and record what ``backward`` needs.

        Arguments and results as for a call of the layer, and in addition the tape for ``backward``. Dropout acts on
        what passes from one layer of the stack to the next; its masks are drawn from ``rng`` (a
        ``numpy.random.Generator``), or from a generator of the layer's own, seeded with ``seed``.

        Returns
        -------
        y, state, tape
        """
        if checkpoint_every is not None:
            raise ValueError(f"checkpoint_every: expected None, got {checkpoint_every!r}")
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: expected a numpy.random.Generator or None, got {rng!r}")
        given = x
        x, batch = checks.sequences(x, lengths, self.input_size, self.batch_first, self.dtype)
        # The tape outlives the call, and the caller's arrays may change before it is used.
        states = tuple([s.copy() for s in self._initial(state, batch.B, x.ndim)])
        x_copy = self._engines[0].empty(x.shape, x.dtype) if np.may_share_memory(x, given) else None
        new_states = tuple([np.empty_like(s) for s in states])
        tape = Tape(self, batch, x.ndim, states)
        threads = config.get_num_threads()
        for k, engine in enumerate(self._engines):
            if k > 0 and self.dropout > 0:
                mask = (rng or self._dropout_rng).random(x.shape, np.float32) >= self.dropout
                mask = np.multiply(mask, 1 / (1 - self.dropout), dtype=self.dtype)
                tape._masks.append(mask)
                x = x * mask
            y = self._empty(k, batch, x.shape, self._output_width)
            y_copy = self._empty(k, batch, x.shape, self._output_width) if k == self.num_layers - 1 else None
            width = self.num_directions * engine.kept * self.hidden_size
            kept = self._empty(k, batch, x.shape, width) if width else None
            engine.run_forward(
                batch,
                engine.pack(self._weights[k], threads),
                x,
                y,
                self._states_of_layer(k, states),
                self._states_of_layer(k, new_states),
                threads,
                kept,
                x_copy if k == 0 else None,
                y_copy,
            )
            tape._kept.append(kept)
            tape._inputs.append(x_copy if k == 0 and x_copy is not None else x)
            tape._outputs.append(y)
            tape._packed.append(engine.pack(self._weights[k], threads, backward=True))
            x = y
        return y_copy, self._pack_state(new_states), tape

    def backward(self, tape: Tape, dy: ArrayLike | None = None, dstate: State = None) -> Gradients:
        """Back-propagation through time (Werbos 1990) of a loss J = sum over t of J_t.

        Parameters
        ----------
        tape : from this layer's ``forward``
        dy : dJ/dy, of y's shape: the gradient with respect to every step's output; None for zero. Not read past a
            sequence's length
        dstate : dJ/d(the state that forward returned), of its shape; None, for the whole or a part of it, for zero

        Returns
        -------
        Gradients
            ``x`` (zero past a sequence's length), ``state`` and ``params``.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape._layer is not self:
            raise ValueError("tape: expected one of this layer's forward, got another layer's")
        batch, shape = tape._batch, tape._outputs[-1].shape
        if dy is not None:
            dy = checks.shaped_array(dy, "dy", shape, self.dtype)
        dstates = None if dstate is None else self._initial(dstate, batch.B, tape._ndim, "dstate")
        params = {name: np.empty_like(value) for name, value in self.params.items()}
        gradients_of_states = tuple(np.empty_like(s) for s in tape._states)
        threads = config.get_num_threads()
        for k in reversed(range(self.num_layers)):
            x = tape._inputs[k]
            # Both directions add to dx.
            dx = self._empty(k, batch, x.shape, x.shape[-1], zero=self.num_directions == 2)
            self._engines[k].run_backward(
                batch,
                tape._packed[k],
                x,
                tape._outputs[k],
                tape._kept[k],
                self._states_of_layer(k, tape._states),
                dy,
                None if dstates is None else self._states_of_layer(k, dstates),
                dx,
                self._states_of_layer(k, gradients_of_states),
                self._weights_of(k, params),
                threads,
            )
            dy = dx * tape._masks[k - 1] if k > 0 and tape._masks else dx
        return Gradients(dx, self._pack_state(gradients_of_states), params)

    # Parameters.

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name."""
        return {name: value.copy() for name, value in self.params.items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy values into the parameters. All names and shapes must match, or nothing is changed: ValueError for names
        and shapes, TypeError for values that are no real numbers."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a mapping of names to arrays, got {type(state_dict).__name__}")
        given = dict(state_dict)
        missing, unexpected = self.params.keys() - given.keys(), given.keys() - self.params.keys()
        if missing or unexpected:
            names = [", ".join(sorted(map(str, keys))) or "none" for keys in (self.params, missing, unexpected)]
            raise ValueError("state_dict: expected the keys {}; missing: {}; unexpected: {}".format(*names))
        arrays = {
            name: checks.shaped_array(value, f"state_dict[{name!r}]", self.params[name].shape, self.dtype)
            for name, value in given.items()
        }
        self.params.update(arrays)

    # The options, for people and for files.

    def save(self, path: str | os.PathLike) -> None:
        """Write the layer, its options and parameters, to a file in safetensors format, whole or not at all. OSError if
        it cannot be written, ImportError without the safetensors package."""
        sizes = {"input_size": self.input_size, "hidden_size": self.hidden_size}
        storage.save(path, self._kind().__name__, sizes | self._options(), dict(self.params))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Layer:
        """The layer that ``save`` wrote. ValueError if the file is damaged or holds another class, OSError if it
        cannot be read, ImportError without the safetensors package."""
        class_name, options, params = storage.load(path)
        expected = cls._kind().__name__
        if class_name != expected:
            raise ValueError(f"{os.fspath(path)}: expected a layer of class {expected}, got {class_name}")
        try:
            layer = cls(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: expected a layer that fastrnn saved: {error}") from None
        layer.load_state_dict(params)
        return layer

    def __repr__(self):
        options = "".join(f", {name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{options})"

    def _options(self):
        """Those that differ from their defaults and make up the layer."""
        options = {}
        for name, parameter in inspect.signature(self._kind()).parameters.items():
            if name not in ("input_size", "hidden_size", "seed", "init") and getattr(self, name) != parameter.default:
                value = getattr(self, name)
                options[name] = value.name if name == "dtype" else value
        return options


class Frozen(_Inference):
    """A layer's inference with prepared weights: what ``frozen()`` returns."""

    def __init__(self, layer):
        self._layer = layer
        threads = config.get_num_threads()
        self._packed = [
            engine.pack(weights, threads) for engine, weights in zip(layer._engines, layer._weights, strict=True)
        ]

    def _prepared(self, k, threads):
        return self._packed[k]

    def __repr__(self):
        return f"{self._layer!r}.frozen()"
