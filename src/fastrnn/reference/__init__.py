"""The same classes and functions in plain NumPy, written to be read.

Exchange ``fastrnn`` for ``fastrnn.reference`` in a program and its speed changes, and nothing else.
"""

from ..gradients import Gradients, clip_grad_norm
from .rnn import RNN

__all__ = ["RNN", "Gradients", "clip_grad_norm"]
