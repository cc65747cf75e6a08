"""fastrnn: recurrent networks on the CPU, forward and reverse, near the speed of the processor.

RNN, LSTM, GRU, CEC, TDNN
    the layers: ``layer(x)``, ``layer.forward`` and ``layer.backward``, ``layer.step``, ``layer.frozen()``
bptt, gradient_flow, clip_grad_norm
    long sequences chunk by chunk; how far back gradients reach; their norm
train, initial, convert
    losses, optimisers, batches, checkpoints; initial values; parameters of other libraries
reference
    the same in plain NumPy
set_num_threads, get_num_threads, show_config
    what it runs on
"""

from . import convert, initial, reference, train
from ._core import version as __version__
from .bptt import BPTT, bptt
from .cells import CEC, GRU, LSTM, RNN, TDNN
from .config import get_num_threads, set_num_threads, show_config
from .flow.products import gradient_flow
from .flow.result import GradientFlow
from .gradients import Gradients, clip_grad_norm

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
    "reference",
    "set_num_threads",
    "show_config",
    "train",
]
