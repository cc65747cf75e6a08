"""The parameters of one direction of one layer, as engines take them."""

from typing import NamedTuple

import numpy as np


class Weights(NamedTuple):
    """Arrays, or None for what a cell does not have; also their gradients."""

    W: np.ndarray  #: (G*H, I); TDNN: (H, contexts, I)
    R: np.ndarray | None = None  #: (G*H, O)
    b_ih: np.ndarray | None = None  #: (G*H,)
    b_hh: np.ndarray | None = None  #: (G*H,)
    P: np.ndarray | None = None  #: (O, H), the projection
    p: np.ndarray | None = None  #: (3*H,), the peepholes of i, f, o
