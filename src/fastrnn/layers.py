"""Recurrent layers.

``Layer`` is what all of them share: parameters, stacking, directions, lengths, layouts, dropout, streaming. What
differs stands in a subclass (options, shapes of the parameters) and in its engines, one for each layer of the stack,
which run one layer over one batch: the C kernels here, plain NumPy in ``fastrnn.reference``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _core, checks, config
from .gradients import Gradients

State = Any  #: h, for the cells that have nothing else; as an argument any array-like, and None for zeros


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

    __slots__ = ("_batch", "_inputs", "_layer", "_masks", "_ndim", "_outputs", "_packed", "_states")

    def __init__(self, layer, batch, ndim, states):
        self._layer, self._batch, self._ndim, self._states = layer, batch, ndim, states
        self._inputs, self._outputs, self._masks, self._packed = [], [], [], []

    @property
    def h(self) -> np.ndarray | tuple[np.ndarray, ...]:
        """Every step's output h_t, in the layout of y: one array, or a tuple with one for each layer of a stack."""
        views = [output.view() for output in self._outputs]
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
        state : the initial state, ``(L*D, B, H)``; None for zeros
        lengths : ``(B,)`` integers in 0..T, in any order; None if all are T

        Returns
        -------
        y : like x, with ``D*H`` last; zero past a sequence's length
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
        y_t ``(B, H)`` and the state. ValueError if the layer is bidirectional."""
        layer = self._layer
        if layer.num_directions == 2:
            raise ValueError("step: expected a layer of one direction, got a bidirectional one")
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
            # A layer whose input is as wide as its output may write over it; the two halves of a bidirectional one
            # read all of it.
            if k == 0 or layer.num_directions == 2:
                x, y = (x if k == 0 else y), layer._empty(batch, x.shape, layer._output_width)
            else:
                x = y
            engine.run_forward(
                batch,
                self._prepared(k, threads),
                x,
                y,
                *layer._states_of_layer(k, states),
                *layer._states_of_layer(k, new_states),
                threads,
            )
        return y, new_states


class Layer(_Inference):
    """A stack of recurrent layers; see a subclass."""

    def __init__(self, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed):
        self.input_size = checks.positive_integer(input_size, "input_size")
        self.hidden_size = checks.positive_integer(hidden_size, "hidden_size")
        self.num_layers = checks.positive_integer(num_layers, "num_layers")
        self.bias = checks.flag(bias, "bias")
        self.batch_first = checks.flag(batch_first, "batch_first")
        self.dropout = checks.probability(dropout, "dropout")
        self.bidirectional = checks.flag(bidirectional, "bidirectional")
        self.num_directions = 2 if self.bidirectional else 1
        self.dtype = checks.real_dtype(dtype, "dtype")
        self._output_width = self.num_directions * self.hidden_size
        rng = np.random.default_rng(seed)
        bound = 1 / math.sqrt(self.hidden_size)
        self.params = Parameters(
            {
                name: rng.uniform(-bound, bound, checks.addressable(shape, name)).astype(self.dtype)
                for k in range(self.num_layers)
                for name, shape in self._parameter_shapes(k).items()
            }
        )
        self._dropout_rng = rng.spawn(1)[0]
        self._weights = [self._weights_of(k, self.params) for k in range(self.num_layers)]
        self._engines = self._make_engines()

    @property
    def _layer(self):
        return self

    # What a subclass says.

    def _suffixes(self, k):
        return (f"_l{k}", f"_l{k}_reverse")[: self.num_directions]

    def _input_size_of(self, k):
        return self.input_size if k == 0 else self._output_width

    def _gated_shapes(self, k, gates):
        """The parameters of gates on W x + b_ih + R h + b_hh."""
        rows, shapes = gates * self.hidden_size, {}
        for suffix in self._suffixes(k):
            shapes["weight_ih" + suffix] = (rows, self._input_size_of(k))
            shapes["weight_hh" + suffix] = (rows, self.hidden_size)
            if self.bias:
                shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
        return shapes

    def _weights_of(self, k, arrays):
        """(W, R, b_ih, b_hh) of each direction of layer k; None for a bias that is not there."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(tuple(arrays.get(name + suffix) for name in names) for suffix in self._suffixes(k))

    # States: internally a tuple of arrays (L*D, B, H).

    def _initial(self, state, B, ndim, name="state"):
        shape = (self.num_layers * self.num_directions, B, self.hidden_size)
        if state is None:
            return (np.zeros(shape, self.dtype),)
        state = checks.real_array(state, name, self.dtype)
        if state.shape != shape:
            # One unbatched sequence may leave out the axis of the batch.
            if ndim == 3 or state.shape != (shape[0], shape[2]) or B != 1:
                raise ValueError(f"{name}: expected shape {shape}, got {state.shape}")
            state = state.reshape(shape)
        return (state,)

    def _pack_state(self, states):
        return states[0] if len(states) == 1 else states

    def _states_of_layer(self, k, states):
        D = self.num_directions
        return states if self.num_layers == 1 else [s[k * D : (k + 1) * D] for s in states]

    def _empty(self, batch, x_shape, width):
        """An array in the layout of the batch; zero where no step will write."""
        return (np.zeros if batch.padded else np.empty)((*x_shape[:-1], width), self.dtype)

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
        x_copy = np.empty_like(x) if np.may_share_memory(x, given) else None
        new_states = tuple([np.empty_like(s) for s in states])
        tape = Tape(self, batch, x.ndim, states)
        threads = config.get_num_threads()
        for k, engine in enumerate(self._engines):
            if k > 0 and self.dropout > 0:
                mask = (rng or self._dropout_rng).random(x.shape, np.float32) >= self.dropout
                mask = np.multiply(mask, 1 / (1 - self.dropout), dtype=self.dtype)
                tape._masks.append(mask)
                x = x * mask
            y = self._empty(batch, x.shape, self._output_width)
            y_copy = self._empty(batch, x.shape, self._output_width) if k == self.num_layers - 1 else None
            engine.run_forward(
                batch,
                engine.pack(self._weights[k], threads),
                x,
                y,
                *self._states_of_layer(k, states),
                *self._states_of_layer(k, new_states),
                threads,
                x_copy if k == 0 else None,
                y_copy,
            )
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
        dstate : dJ/d(the state that forward returned), of its shape; None for zero

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
        dstates = (None,) if dstate is None else self._initial(dstate, batch.B, tape._ndim, "dstate")
        params = {name: np.empty_like(value) for name, value in self.params.items()}
        initial = tuple(np.empty_like(s) for s in tape._states)
        threads = config.get_num_threads()
        for k in reversed(range(self.num_layers)):
            x = tape._inputs[k]
            # Both directions add to dx.
            dx = (np.zeros if self.num_directions == 2 or batch.padded else np.empty)(x.shape, self.dtype)
            self._engines[k].run_backward(
                batch,
                tape._packed[k],
                x,
                tape._outputs[k],
                *self._states_of_layer(k, tape._states),
                dy,
                *(dstates if dstate is None else self._states_of_layer(k, dstates)),
                dx,
                *self._states_of_layer(k, initial),
                self._weights_of(k, params),
                threads,
            )
            dy = dx * tape._masks[k - 1] if k > 0 and tape._masks else dx
        return Gradients(dx, self._pack_state(initial), params)

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

    def __repr__(self):
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{', ' if options else ''}{options})"

    def _options(self):
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        options = {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        if self.dtype != np.float32:
            options["dtype"] = self.dtype.name
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


class RNN(Layer):
    """The simple recurrent network (Elman, "Finding structure in time", Cognitive Science 14, 1990)::

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    Parameters
    ----------
    input_size, hidden_size : I and H
    num_layers : L, each layer of the stack reading the outputs of the one below
    bias : whether there are b_ih and b_hh
    batch_first : whether x and y are ``(B, T, .)`` and not ``(T, B, .)``
    dropout : the probability with which ``forward`` drops what passes from layer to layer
    bidirectional : whether a second direction reads every sequence from its last step back; D = 2
    dtype : float32 or float64, of the parameters and all arrays
    seed : for the initial parameters, U(-1/sqrt(H), 1/sqrt(H)), and for dropout; None for an unpredictable one
    nonlinearity : f: "tanh", "relu", "logistic" or "identity"

    Raises
    ------
    ValueError, TypeError
        naming the argument that is wrong, what was expected and what came.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        nonlinearity: str = "tanh",
    ) -> None:
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", ("tanh", "relu", "logistic", "identity"))
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed)

    def _parameter_shapes(self, k):
        return self._gated_shapes(k, 1)

    def _make_engines(self):
        return [
            _core.Kernel(
                f"rnn_{self.nonlinearity}", self.dtype, self.num_directions, self._input_size_of(k), self.hidden_size
            )
            for k in range(self.num_layers)
        ]

    def _options(self):
        options = super()._options()
        if self.nonlinearity != "tanh":
            options["nonlinearity"] = self.nonlinearity
        return options
