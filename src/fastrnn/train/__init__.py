"""What a recurrent layer needs around it to be trained, in plain NumPy.

``text_batches`` cuts a text into chunks, ``ragged_batches`` groups sequences of like lengths; a layer turns them into
outputs, ``Linear`` turns those into logits; ``softmax_cross_entropy`` or ``mean_squared_error`` gives the loss of
every step and its gradient; an optimiser updates every parameter in place, at a rate that a schedule may set; and
``save_checkpoint`` and ``load_checkpoint`` let a run go on later with the same bits. Letters: ``T`` steps, ``B``
sequences, ``V`` classes (the vocabulary), ``I`` inputs, ``O`` outputs.
"""

from .batches import RaggedBatch, ragged_batches, text_batches
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .head import Linear, LinearGrads
from .losses import mean_squared_error, softmax_cross_entropy
from .optimizers import SGD, Adam, AdamW
from .schedules import ConstantRate, CosineDecay, StepDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Checkpoint",
    "ConstantRate",
    "CosineDecay",
    "Linear",
    "LinearGrads",
    "RaggedBatch",
    "StepDecay",
    "load_checkpoint",
    "mean_squared_error",
    "ragged_batches",
    "save_checkpoint",
    "softmax_cross_entropy",
    "text_batches",
]
