"""Sizes near 2^31, 2^32, 2^63 and beyond: ValueError or MemoryError, never a crash or a wrapped product.

Each case runs in a process with a limit on its address space, because an implementation that does not
refuse would otherwise take the machine's memory first.
"""

import json

import pytest
from helpers import run_script

resource = pytest.importorskip("resource")

pytestmark = pytest.mark.drawn(0, representatives=1)

LIMIT = 4 * 2**30  # bytes; far above what the imports map, far below the smallest case

SCRIPT = """
import json, resource, sys
import numpy as np
import fastrnn
import fastrnn.reference

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
kind, backend, cls, options, dtype, sizes = json.loads(sys.argv[2])
cls = getattr(fastrnn.reference if backend == "fastrnn.reference" else fastrnn, cls)

def attempt(size):
    if kind == "layer":
        return cls(*size, dtype=dtype, **options)
    layer = cls(3, 4, dtype=dtype, **options)
    x = np.broadcast_to(np.dtype(dtype).type(1), (*size, 3))  # of no size in memory itself
    return {"call": layer, "forward": layer.forward, "frozen": layer.frozen()}[kind](x)

def outcome(size):
    try:
        attempt(size)
    except Exception as error:
        # numpy's own MemoryError is a subclass of the built-in one
        return next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
    return "accepted"

print(json.dumps([outcome(size) for size in sizes]))
layer = cls(3, 4, dtype=dtype, **options)
assert layer(np.ones((5, 2, 3)))[0].shape == (5, 2, options.get("proj_size", 4))  # and all is well afterwards
"""


def assert_refused(kind, backend, row, dtype, sizes):
    case = [kind, backend.__name__, row.cls, row.options_for(4), dtype.__name__, sizes]
    outcomes = json.loads(run_script(SCRIPT, str(LIMIT), json.dumps(case)))
    accepted = {str(size): seen for size, seen in zip(sizes, outcomes, strict=True)}
    assert {size: seen for size, seen in accepted.items() if seen not in ("ValueError", "MemoryError")} == {}


def test_layers_too_large(backend, row, dtype):
    """Products that overflow 64 bits, that reach 2^63 exactly, and that exceed any address space."""
    sizes = [
        (2**62, 1),
        (1, 2**62),
        (2**62, 2**62),
        (2**61, 1),
        (2**63, 1),
        (2**64, 1),
        (1, 2**64),
        (2**58, 1),
    ]
    sizes += [(1, 1, 2**20), (1, 1, 2**31), (1, 1, 2**62), (1, 1, 2**64)]  # of a stack
    sizes += [(2**31, 2**31), (1, 2**31), (1, 2**32), (2**32 + 3, 2**32), (2**31, 1), (2**32, 1)]
    assert_refused("layer", backend, row, dtype, sizes)


@pytest.mark.parametrize("kind", ["call", "forward", "frozen"])
def test_inputs_too_large(backend, row, dtype, kind):
    """Inputs (T, B) of no size in memory, whose outputs would not fit in any."""
    sizes = [
        (2**50, 1),
        (2**58, 1),
        (1, 2**50),
        (2**31, 2**27),
        (2**32, 2**26),
        (2**31, 1),
        (1, 2**31),
        (2**32, 1),
    ]
    assert_refused(kind, backend, row, dtype, sizes)
