"""Parameters: of a layer, by name; and of one direction of one level, as engines take them."""

from typing import NamedTuple

import numpy as np

from . import checks


class Weights(NamedTuple):
    """Arrays, or None for what a cell does not have; also their gradients."""

    W: np.ndarray  #: (G*H, I); TDNN: (H, contexts, I)
    R: np.ndarray | None = None  #: (G*H, O)
    b_ih: np.ndarray | None = None  #: (G*H,)
    b_hh: np.ndarray | None = None  #: (G*H,)
    P: np.ndarray | None = None  #: (O, H), the projection
    p: np.ndarray | None = None  #: (3*H,), the peepholes of i, f, o


#: What the parameters of one direction of one level are called, in the order of Weights, before the suffix.
STEMS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peep")


def suffixes(k, bidirectional):
    """What ends the names of level k's parameters, direction by direction."""
    return (f"_l{k}", f"_l{k}_reverse") if bidirectional else (f"_l{k}",)


def gated_shapes(options, I, gates, outputs=None):
    """The parameters of ``gates`` gates on W x + b_ih + R h + b_hh, h of that many ``outputs`` (None: H), by stem."""
    rows = gates * options.hidden_size
    shapes = {"weight_ih": (rows, I), "weight_hh": (rows, outputs or options.hidden_size)}
    return shapes | ({"bias_ih": (rows,), "bias_hh": (rows,)} if options.bias else {})


class Parameters(dict):
    """The parameters of a layer by name. The arrays are the layer's own: a change in place is seen by the next call,
    and to assign to a name copies the values into its array."""

    def _checked(self, name, value):
        if name not in self:
            raise KeyError(f"params: expected one of {', '.join(self)}, got {name!r}")
        if not self[name].flags.writeable:
            raise ValueError(f"{name}: expected a parameter that can be changed in place, but it is read-only")
        return checks.shaped_array(value, name, self[name].shape, self[name].dtype)

    def __setitem__(self, name, value):
        self[name][...] = self._checked(name, value)

    def update(self, *args, **kwargs):
        values = {name: self._checked(name, value).copy() for name, value in dict(*args, **kwargs).items()}
        for name, value in values.items():
            self[name][...] = value

    def __ior__(self, other):
        self.update(other)
        return self

    def _fixed(self, *args, **kwargs):
        raise TypeError("params: the set of a layer's parameters is fixed")

    def __reduce__(self):
        """Copies and pickles are plain dicts: they belong to no layer."""
        return dict, (dict(self),)

    __delitem__ = pop = popitem = clear = setdefault = _fixed
