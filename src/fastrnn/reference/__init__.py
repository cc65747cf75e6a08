"""The same classes and functions in plain NumPy, written to be read.

Exchange ``fastrnn`` for ``fastrnn.reference`` in a program and its speed changes, and nothing else.
"""

from ..bptt import BPTT, bptt
from ..flow.result import GradientFlow
from ..gradients import Gradients, clip_grad_norm
from .cec import CEC
from .flow import gradient_flow
from .gru import GRU
from .lstm import LSTM
from .rnn import RNN
from .tdnn import TDNN

__all__ = [
    "BPTT",
    "CEC",
    "GRU",
    "LSTM",
    "RNN",
    "TDNN",
    "GradientFlow",
    "Gradients",
    "bptt",
    "clip_grad_norm",
    "gradient_flow",
]
