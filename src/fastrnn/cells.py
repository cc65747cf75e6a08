"""The layers: what each adds to ``layers.Layer``."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from . import checks
from .initial import Init
from .layers import Layer
from .weights import Weights, gated_shapes

NONLINEARITIES = ("tanh", "relu", "logistic", "identity")

_PARAMETERS = """
    Parameters
    ----------
    input_size, hidden_size : I and H
    num_layers : L, each layer of the stack reading the outputs of the one below
    bias : whether there are biases
    batch_first : whether x and y are ``(B, T, .)`` and not ``(T, B, .)``
    dropout : the probability with which ``forward`` drops what passes from layer to layer
    bidirectional : whether a second direction reads every sequence from its last step back; D = 2
    dtype : float32 or float64, of the parameters and all arrays
    seed : for the initial parameters and for dropout; None for an unpredictable one
    init : None for U(-1/sqrt(H), 1/sqrt(H)), or what to change of that: see ``fastrnn.initial.initialise``"""

_RAISES = """
    Raises
    ------
    ValueError, TypeError
        naming the argument that is wrong, what was expected and what came.
    """


class RNN(Layer):
    __doc__ = f"""The simple recurrent network (Elman, "Finding structure in time", Cognitive Science 14, 1990)::

        h_t = f(W_ih x_t + b_ih + W_hh h_{{t-1}} + b_hh)
{_PARAMETERS}: "identity" (with relu the IRNN),
        "orthogonal"
    nonlinearity : f: "tanh", "relu", "logistic" or "identity"
{_RAISES}"""

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
        init: Init = None,
        nonlinearity: str = "tanh",
    ) -> None:
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", NONLINEARITIES)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, init
        )

    @staticmethod
    def _direction_shapes(options, I):
        return gated_shapes(options, I, 1)

    def _make_engine(self, input_size):
        return self._kernel(f"rnn_{self.nonlinearity}", input_size)


class LSTM(Layer):
    __doc__ = f"""Long short-term memory (Hochreiter & Schmidhuber, Neural Computation 9, 1997; with the forget gate of
    Gers, Schmidhuber & Cummins, Neural Computation 12, 2000)::

        i, f, o = logistic(W_ih x_t + b_ih + W_hh h_{{t-1}} + b_hh)        g = tanh(the same)
        c_t = f*c_{{t-1}} + i*g        h_t = o*tanh(c_t)

    The rows of the parameters are those of i, f, g, o; without a forget gate of its own, i, g, o.
{_PARAMETERS}: "orthogonal", "forget_bias",
        "chrono"
    proj_size : 0, or the size O < H to which outputs are projected, h_t = W_hr (o*tanh(c_t)) (Sak, Senior & Beaufays,
        Interspeech 2014)
    peephole : whether i and f look at c_{{t-1}} and o at c_t, with the weights ``weight_peep`` (Gers &
        Schmidhuber, IJCNN 2000)
    forget_gate : False for the original of 1997, f = 1
    coupled : True for f = 1 - i (Greff et al., IEEE Trans. Neural Networks and Learning Systems 28, 2017)
{_RAISES}"""

    _states = ("h", "c")

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
        init: Init = None,
        proj_size: int = 0,
        peephole: bool = False,
        forget_gate: bool = True,
        coupled: bool = False,
    ) -> None:
        hidden_size = checks.positive_integer(hidden_size, "hidden_size")
        self.proj_size = checks.integer_at_least(proj_size, "proj_size", 0)
        if self.proj_size >= hidden_size:
            raise ValueError(f"proj_size: expected less than hidden_size, {hidden_size}, got {self.proj_size}")
        self.peephole = checks.flag(peephole, "peephole")
        self.forget_gate = checks.flag(forget_gate, "forget_gate")
        self.coupled = checks.flag(coupled, "coupled")
        if self.coupled and not self.forget_gate:
            raise ValueError("coupled: expected False with forget_gate=False, for f is 1 - i or 1, got True")
        self._gates = ("i", "f", "g", "o") if self.forget_gate and not self.coupled else ("i", "g", "o")
        super().__init__(
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
            coupled=self.coupled,
        )

    @staticmethod
    def _output_size(options):
        return options.proj_size or options.hidden_size

    @staticmethod
    def _direction_shapes(options, I):
        gates = 4 if options.forget_gate and not options.coupled else 3
        shapes = gated_shapes(options, I, gates, options.proj_size)
        if options.proj_size:
            shapes["weight_hr"] = (options.proj_size, options.hidden_size)
        if options.peephole:
            shapes["weight_peep"] = (3 * options.hidden_size,)
        return shapes

    def _make_engine(self, input_size):
        form = "_coupled" if self.coupled else "" if self.forget_gate else "_original"
        return self._kernel(f"lstm{form}{'_peephole' if self.peephole else ''}", input_size)


class GRU(Layer):
    __doc__ = f"""The gated recurrent unit (Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation", EMNLP 2014)::

        r, z = logistic(W_ih x_t + b_ih + W_hh h_{{t-1}} + b_hh)
        n = tanh(W_in x_t + b_in + r*(W_hn h_{{t-1}} + b_hn))        h_t = (1 - z)*n + z*h_{{t-1}}

    The rows of the parameters are those of r, z, n.
{_PARAMETERS}: "orthogonal", "chrono"
    reset_after : False for the original, n = tanh(W_in x_t + b_in + W_hn (r*h_{{t-1}}) + b_hn)
{_RAISES}"""

    _gates = ("r", "z", "n")

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
        init: Init = None,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = checks.flag(reset_after, "reset_after")
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, init
        )

    @staticmethod
    def _direction_shapes(options, I):
        return gated_shapes(options, I, 3)

    def _make_engine(self, input_size):
        return self._kernel("gru" if self.reset_after else "gru_reset_before", input_size)


class CEC(Layer):
    __doc__ = f"""The constant error carousel, the self-loop of weight 1 from which the LSTM was made (Hochreiter &
    Schmidhuber, Neural Computation 9, 1997)::

        c_t = c_{{t-1}} + W_ih g(x_t) + b_ih        y_t = readout(c_t)

    Its state is c. There is no ``weight_hh`` and no ``bias_hh``.
{_PARAMETERS}
    nonlinearity : g: "tanh", "relu", "logistic" or "identity"
    readout : "identity" or "tanh"
{_RAISES}"""

    _states = ("c",)

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
        init: Init = None,
        nonlinearity: str = "tanh",
        readout: str = "identity",
    ) -> None:
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", NONLINEARITIES)
        self.readout = checks.choice(readout, "readout", ("identity", "tanh"))
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, init
        )

    @staticmethod
    def _direction_shapes(options, I):
        return {stem: shape for stem, shape in gated_shapes(options, I, 1).items() if "_hh" not in stem}

    def _make_engine(self, input_size):
        return self._kernel(f"cec_{self.nonlinearity}_{self.readout}", input_size)


class TDNN(Layer):
    __doc__ = f"""The time-delay neural network, the feed-forward alternative (Waibel, Hanazawa, Hinton, Shikano & Lang,
    "Phoneme recognition using time-delay neural networks", IEEE Trans. ASSP 37, 1989)::

        y_t = f(sum over k of W_k x_{{t + context[k]}} + b)        zeros outside the sequence

    It has no state: calls return None for it. Its parameters are ``weight_l{{k}}`` ``(H, len(context), I_k)`` and
    ``bias_l{{k}}`` ``(H,)``. The second direction of a bidirectional layer looks the other way.
{_PARAMETERS}
    context : the steps that an output reads, relative to its own: distinct integers; with gaps, a dilation
    nonlinearity : f: "tanh", "relu", "logistic" or "identity"
{_RAISES}"""

    _states = ()

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
        init: Init = None,
        context: tuple[int, ...] = (-2, -1, 0, 1, 2),
        nonlinearity: str = "relu",
    ) -> None:
        self.context = checks.offsets(context, "context")
        self.nonlinearity = checks.choice(nonlinearity, "nonlinearity", NONLINEARITIES)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, init
        )

    @staticmethod
    def _direction_shapes(options, I):
        shapes = {"weight": (options.hidden_size, len(options.context), I)}
        return shapes | ({"bias": (options.hidden_size,)} if options.bias else {})

    def _weights_of(self, k, arrays):
        return tuple(
            Weights(arrays["weight" + suffix], b_ih=arrays.get("bias" + suffix)) for suffix in self._suffixes(k)
        )

    def _make_engine(self, input_size):
        return self._kernel(f"tdnn_{self.nonlinearity}", input_size, np.array(self.context, np.int64))

    def _check_step(self):
        super()._check_step()
        if any(self.context):
            raise ValueError(f"step: expected a layer that reads one step at a time, got context {self.context}")
