"""fastrnn: recurrent networks on the CPU, forward and reverse, at the speed of the processor."""

from . import reference, train
from ._core import version as __version__
from .config import get_num_threads, set_num_threads, show_config
from .gradients import Gradients, clip_grad_norm
from .layers import RNN

__all__ = [
    "RNN",
    "Gradients",
    "__version__",
    "clip_grad_norm",
    "get_num_threads",
    "reference",
    "set_num_threads",
    "show_config",
    "train",
]
