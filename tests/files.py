"""Weight files: parameters to put into them, files made by hand, and what is refused."""

import json

import numpy as np
import pytest

from fastrnn import storage

SIZES = {"input_size": 3, "hidden_size": 4}


def drawn(class_name, options, rng):
    """Parameters with zeros of both signs, infinities and NaN among them."""
    special = np.array([-0.0, np.inf, -np.inf, np.nan])
    return {
        name: np.where(rng.random(shape) < 0.1, rng.choice(special, shape), rng.standard_normal(shape)).astype(
            options.get("dtype", "float32")
        )
        for name, shape in storage.parameter_shapes(class_name, options)
    }


def refused(path, *parts):
    with pytest.raises(ValueError, match=r"expected a layer that fastrnn saved") as caught:
        storage.load(path)
    for part in (str(path), *parts):
        assert part in str(caught.value), f"no {part!r} in: {caught.value}"


def parts_of(path):
    """The header of a file, as an object, and the data."""
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def written(path, header, data=b"", length=None):
    """A file of that header, an object or bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
