"""The same classes and functions in plain NumPy, written to be read.

Exchange ``fastrnn`` for ``fastrnn.reference`` in a program and its speed changes, and nothing else but rounding.
(Denormal numbers, which are zero to the kernels, are numbers here.) Threads are those of NumPy: ``set_num_threads``
acts on the kernels alone.
"""

import sys

from .. import convert, initial, train
from .._core import version as __version__
from ..bptt import BPTT, bptt
from ..config import get_num_threads, set_num_threads, show_config
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
    "__version__",
    "bptt",
    "clip_grad_norm",
    "convert",
    "get_num_threads",
    "gradient_flow",
    "initial",
    "set_num_threads",
    "show_config",
    "train",
]

for _name in list(sys.modules):  # to be imported by their names here as well
    if any(f"{_name}.".startswith(f"{module.__name__}.") for module in (convert, initial, train)):
        sys.modules[_name.replace(__package__.rpartition(".")[0], __package__, 1)] = sys.modules[_name]
