"""What all layers share: parameters, stacking, directions, lengths, layouts, dropout, streaming, files.

What differs stands in a subclass (``cells.py``: options, shapes of the parameters) and in its engines, one for each
layer of the stack, which run one layer over one batch: the C kernels here, plain NumPy in ``fastrnn.reference``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from . import _core, checks, config, initial, storage
from .gradients import Gradients
from .inference import Frozen, Inference, State
from .tape import Level, Tape, checkpoint_interval, training_bytes, window_begins
from .weights import STEMS, Parameters, Weights, suffixes

_MOST_LAYERS = 2**16  # far beyond any use; each has objects of its own, however few its parameters


class Layer(Inference):
    """A stack of recurrent layers; see a subclass."""

    # What a subclass says: its states, and the gates that a tape shows.
    _states: ClassVar[tuple[str, ...]] = ("h",)
    _gates: tuple[str, ...] = ()

    _built = ("_weight_names", "_weights", "_engines", "_engine_of", "_zero_states")  # from the rest: anew in copies

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
        coupled=False,
    ):
        self.input_size = checks.positive_integer(input_size, "input_size")
        self.hidden_size = checks.positive_integer(hidden_size, "hidden_size")
        self.num_layers = checks.positive_integer(num_layers, "num_layers")
        if self.num_layers > _MOST_LAYERS:
            raise ValueError(f"num_layers: expected at most {_MOST_LAYERS}, got {num_layers}")
        self.bias = checks.flag(bias, "bias")
        self.batch_first = checks.flag(batch_first, "batch_first")
        self.dropout = dropout
        self.bidirectional = checks.flag(bidirectional, "bidirectional")
        self.num_directions = 2 if self.bidirectional else 1
        self.dtype = checks.real_dtype(dtype, "dtype")
        self._state_widths = {"h": self._output_size(self), "c": self.hidden_size}
        self._output_width = self.num_directions * self._state_widths["h"]
        rng = checks.random_generator(seed, "seed")
        self._params = Parameters(
            {
                name: _core.empty(checks.addressable(shape, name), self.dtype)
                for k in range(self.num_layers)
                for name, shape in self._parameter_shapes(k).items()
            }
        )
        initial.initialise(dict(self.params), self._kind().__name__, self.hidden_size, init, rng, coupled)
        try:
            self._dropout_rng = rng.spawn(1)[0]
        except TypeError:
            raise TypeError(f"seed: expected a generator of which others can be spawned, got {seed!r}") from None
        self._build()

    def _build(self):
        """What calls use beside the options and the parameters."""
        levels = range(self.num_layers)
        self._weight_names = [[[stem + suffix for stem in STEMS] for suffix in self._suffixes(k)] for k in levels]
        self._weights = [self._weights_of(k, self.params) for k in range(self.num_layers)]
        self._engines = [self._make_engine(self._input_size_of(k)) for k in range(self.num_layers)]
        self._engine_of = {name: engine for k, engine in enumerate(self._engines) for name in self._parameter_shapes(k)}
        self._zero_states = None, ()  # those of the last batch size, which calls only read

    @classmethod
    @functools.cache
    def _fixed(cls):
        return {*inspect.signature(cls._kind()).parameters, "num_directions"} - {
            "dropout",
            "batch_first",
            "seed",
            "init",
        }

    def __setattr__(self, name, value):
        if name in self._fixed() and "_engines" in vars(self):
            raise AttributeError(f"{name}: an option of a layer that is made stays as it is, got {value!r}")
        super().__setattr__(name, value)

    @property
    def dropout(self) -> float:
        """The probability with which ``forward`` sets an input of a layer after the first to zero; may be changed."""
        return self._dropout

    @dropout.setter
    def dropout(self, probability):
        self._dropout = checks.probability(probability, "dropout")

    @property
    def params(self) -> Parameters:
        """The parameters by name, each the layer's own array: to be changed in place."""
        return self._params

    @params.setter
    def params(self, value):
        if value is not self._params:  # as it is after params |= values
            raise AttributeError("params: the arrays are the layer's own; copy values into them, or load_state_dict")

    @property
    def _layer(self):
        return self

    @classmethod
    def _kind(cls):
        """The layer that this class is, or that it extends: RNN, LSTM, ..."""
        return next(base for base in cls.__mro__ if Layer in base.__bases__)

    # What the parameters are, from the options alone: those of a layer, or an object that has them by name. A subclass
    # says by `_direction_shapes(options, I)` what those of one direction of a level that reads I inputs are, by stem.

    @staticmethod
    def _output_size(options):
        """The outputs of one direction."""
        return options.hidden_size

    # Parameters of layer k, and as its engine takes them.

    def _suffixes(self, k):
        return suffixes(k, self.bidirectional)

    def _parameter_shapes(self, k):
        shapes = self._direction_shapes(self, self._input_size_of(k))
        return {stem + suffix: shape for suffix in self._suffixes(k) for stem, shape in shapes.items()}

    def _input_size_of(self, k):
        return self.input_size if k == 0 else self._output_width

    def _weights_of(self, k, arrays):
        return tuple([Weights(*map(arrays.get, names)) for names in self._weight_names[k]])

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
            came = type(state).__name__ + (f" of {len(state)}" if isinstance(state, (tuple, list)) else "")
            raise ValueError(f"{name}: expected {expected}, got {came}")
        return tuple(
            [
                array  # as a stream's states come back, step by step
                if _core.ready(array, self.dtype) and array.shape == shape
                else self._initial_part(array, shape, B, ndim, f"{name}, {part}")
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
        checkpoint_every: int | str | None = None,
        memory_budget: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, State, Tape]:
        """Run the layer for training, and record what ``backward`` needs.

        Arguments and results as for a call of the layer, and in addition the tape for ``backward``. Dropout acts on
        what passes from one layer of the stack to the next; its masks are drawn from ``rng`` (a
        ``numpy.random.Generator``), or from a generator of the layer's own, seeded with ``seed``.

        ``checkpoint_every=k`` records only the state of every k-th step (and what each layer of the stack reads);
        ``backward`` computes the rest again, k steps at a time (Chen, Xu, Zhang & Guestrin 2016). Gradients have the
        same bits and memory grows with T/k + k, at the price of a second forward run. The k steps are whole chunks, at
        least one, in which ``backward`` sums: 256 rows (steps times sequences), or 4096 if it takes many in two shards.
        ``"auto"`` records everything if that takes no more than ``memory_budget`` bytes (None: half of what the system
        has available), else the states at the k that takes least memory. ``training_memory`` predicts what is needed.
        A TDNN, which keeps nothing but y, disregards both.

        Returns
        -------
        y, state, tape
        """
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: expected a numpy.random.Generator or None, got {rng!r}")
        given = x
        x, batch = checks.sequences(x, lengths, self.input_size, self.batch_first, self.dtype)
        every = checkpoint_interval(self, batch, checkpoint_every, memory_budget)
        states = self._initial(state, batch.B, x.ndim)
        if state is not None:  # the tape outlives the call, and the caller's arrays may change before it is used
            states = tuple([s.copy() for s in states])
        shared = x is given or (not isinstance(given, (list, tuple)) and np.may_share_memory(x, given))
        x_copy = self._engines[0].empty(x.shape, x.dtype, "copy of x") if shared else None
        new_states = _core.uninitialised(states)
        threads = config.get_num_threads()
        tape = Tape(self, batch, x.ndim, (*x.shape[:-1], self._output_width), states, threads)
        for k, engine in enumerate(self._engines):
            mask = None
            if k > 0 and self.dropout > 0:
                mask = self._mask(x.shape, rng or self._dropout_rng)
                x = np.multiply(x, mask, out=None if every is None else x)  # with checkpoints nothing else reads it
            own = self._states_of_layer(k, states), self._states_of_layer(k, new_states)
            widths = self._output_width, self._kept_width(engine)
            level = Level(engine, engine.pack(self._weights[k], threads), x, mask, own[0], *widths)
            y = self._record(level, batch, own[1], threads, every, x_copy if k == 0 else None, k == self.num_layers - 1)
            level.packed_back = engine.pack(self._weights[k], threads, backward=True)
            tape._levels.append(level)
            x = y
        return y, self._pack_state(new_states), tape

    def _mask(self, shape, rng):
        """What dropout multiplies by: 0, or 1/(1 - probability), drawn in few numbers at a time."""
        flat = np.empty(shape, self.dtype).reshape(-1)
        for begin in range(0, flat.size, 2**16):
            part = flat[begin : begin + 2**16]
            part[...] = rng.random(part.size, np.float32) >= self.dropout
        flat *= 1 / (1 - self.dropout)
        return flat.reshape(shape)

    def _record(self, level, batch, new_states, threads, every, x_copy, last):
        """Run one layer of the stack, and keep its record or its checkpoints. Returns y: of the last layer one of the
        caller's own."""
        engine, rows = level.engine, functools.partial(level.rows, level.x.shape[:-1], padded=batch.padded)
        y = rows(self._output_width)
        if every is None:
            level.y, level.kept = y, rows(level.kept_width)
            y_copy = rows(self._output_width, use="copy of y") if last else None
            engine.run_forward(
                batch, level.packed, level.x, y, level.states, new_states, threads, level.kept, x_copy, y_copy
            )
            y = y_copy if last else y
        else:
            level.checkpoints = []
            begins = window_begins(engine, batch, every)
            states = level.states
            for begin, end in zip(begins, [*begins[1:], batch.T], strict=True):
                after = new_states if end == batch.T else _core.uninitialised(states)
                window = batch.window(begin, end)
                engine.run_forward(window, level.packed, level.x, y, states, after, threads, None, x_copy)
                level.checkpoints.append((begin, states))
                states = after
        if x_copy is not None:
            level.x = x_copy
        return y

    def _kept_width(self, engine):
        return self.num_directions * engine.kept * (self.hidden_size + engine.kept_padding) + engine.row_padding

    def training_memory(self, T: int, B: int, *, checkpoint_every: int | None = None) -> int:
        """Bytes that ``forward`` and ``backward`` of B sequences of T steps take at most, beside x and dy: the outputs,
        the tape, the gradients, packed weights and workspaces, with the present number of threads. (Where the system
        has large pages, what an array leaves of its last one is lost.)"""
        T, B = checks.integer_at_least(T, "T", 0), checks.integer_at_least(B, "B", 0)
        checks.addressable((T, B), "T, B")
        every = checkpoint_interval(self, _core.Batch(T, B), checkpoint_every)
        return training_bytes(self, T, B, every)

    def backward(
        self, tape: Tape, dy: ArrayLike | None = None, dstate: State = None, *, clip_step: float | None = None
    ) -> Gradients:
        """Back-propagation through time (Werbos 1990) of a loss J = sum over t of J_t.

        Parameters
        ----------
        tape : from this layer's ``forward``
        dy : dJ/dy, of y's shape: the gradient with respect to every step's output; None for zero. Not read past a
            sequence's length
        dstate : dJ/d(the state that forward returned), of its shape; None, for the whole or a part of it, for zero
        clip_step : a number > 0: the recurrent gradient, what a step passes back to the state before it (dh, and dc
            where there is one), is clipped element by element to [-clip_step, clip_step] before the gradient of that
            state's own output joins it (after Graves, "Generating sequences with recurrent neural networks", 2013).
            None for the gradient as it is

        Returns
        -------
        Gradients
            ``x`` (zero past a sequence's length), ``state`` and ``params``.
        """
        batch = self._batch_of(tape)
        if dy is not None:
            dy = checks.shaped_array(dy, "dy", tape._shape, self.dtype)
        clip = 0.0
        if clip_step is not None:  # the dtype may hold less
            normal = np.finfo(self.dtype)  # denormal numbers are zero to the kernels
            clip = min(max(checks.greater_than_zero(clip_step, "clip_step"), float(normal.tiny)), float(normal.max))
        params = {name: self._engine_of[name].empty(value.shape, self.dtype) for name, value in self.params.items()}
        gradients_of_states = _core.uninitialised(tape._states)
        dstates = None if dstate is None else self._initial(dstate, batch.B, tape._ndim, "dstate")
        threads = config.get_num_threads()
        for k, level in reversed(list(enumerate(tape._levels))):
            # Both directions add to dx.
            dx = self._empty(k, batch, level.x.shape, level.x.shape[-1], zero=self.num_directions == 2)
            before = None if dstates is None else self._states_of_layer(k, dstates)
            passed, add = self._states_of_layer(k, gradients_of_states), False
            for part, record in level.windows(batch, threads, back=True):
                weights = self._weights_of(k, params)
                level.engine.run_backward(
                    part, level.packed_back, record, dy, before, dx, passed, weights, threads, add, clip
                )
                before, add = passed, True
            dy = dx if level.mask is None else np.multiply(dx, level.mask, out=dx)
        return Gradients(dx, self._pack_state(gradients_of_states), params)

    def jvp(self, tape: Tape, dx: ArrayLike | None = None, dstate: State = None) -> tuple[np.ndarray, State]:
        """The directional derivative of ``forward``, a Jacobian-vector product (forward-mode differentiation; for
        recurrent networks in Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994).

        Parameters
        ----------
        tape : from this layer's ``forward``; the derivative is taken there, with the masks of its dropout
        dx : the direction in x, of its shape; None for zero. Not read past a sequence's length
        dstate : the direction in the initial state, of its shape; None, for the whole or a part of it, for zero

        Returns
        -------
        dy : d y/d(x, state) times the direction, of y's shape; zero past a sequence's length
        dstate : the same for the state that ``forward`` returned
        """
        batch = self._batch_of(tape)
        if dx is not None:
            dx = checks.shaped_array(dx, "dx", (*tape._shape[:-1], self.input_size), self.dtype)
        tangents = None if dstate is None else self._initial(dstate, batch.B, tape._ndim, "dstate")
        new_tangents = _core.uninitialised(tape._states)
        threads = config.get_num_threads()
        for k, level in enumerate(tape._levels):
            dy = self._empty(k, batch, tape._shape, self._output_width)
            before = None if tangents is None else self._states_of_layer(k, tangents)
            passed = self._states_of_layer(k, new_tangents)
            if dx is not None and level.mask is not None:
                dx = dx * level.mask
            for part, record in level.windows(batch, threads, back=False):
                level.engine.run_jvp(part, level.packed, record, dx, before, dy, passed, threads)
                before = passed
            dx = dy
        return dy, self._pack_state(new_tangents)

    def _batch_of(self, tape):
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape._layer is not self:
            raise ValueError("tape: expected one of this layer's forward, got another layer's")
        return tape._batch

    # Parameters.

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name."""
        return {name: value.copy() for name, value in self.params.items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy values into the parameters. All names and shapes must match, or nothing is changed: ValueError for names
        and shapes, TypeError for values that are no real numbers."""
        given = dict(checks.mapping(state_dict, "state_dict", "names to arrays"))
        missing, unexpected = self.params.keys() - given.keys(), given.keys() - self.params.keys()
        if missing or unexpected:
            names = [", ".join(sorted(map(str, keys))) or "none" for keys in (self.params, missing, unexpected)]
            raise ValueError("state_dict: expected the keys {}; missing: {}; unexpected: {}".format(*names))
        arrays = {
            name: checks.shaped_array(value, f"state_dict[{name!r}]", self.params[name].shape, self.dtype)
            for name, value in given.items()
        }
        self.params.update(arrays)

    # Copies, which pickle makes as well: with parameters of their own, and random masks to come from the same place.

    def __getstate__(self):
        state = {name: value for name, value in vars(self).items() if name not in self._built}
        return state | {"_params": dict(self.params)}

    def __setstate__(self, state):
        params = {name: np.require(value, requirements="CAW") for name, value in state["_params"].items()}  # as lent
        vars(self).update(state, _params=Parameters(params))
        self._build()

    def __copy__(self):
        other, rng = object.__new__(type(self)), copy.deepcopy(self._dropout_rng)
        other.__setstate__(self.__getstate__() | {"_params": self.state_dict(), "_dropout_rng": rng})
        return other

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
