"""What a tape shows, tape.h, tape.c and tape.gates, against the oracle: every layer, direction, layout and length."""

import numpy as np
import oracles
import pytest
from helpers import (
    ROWS,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    enliven,
    make,
    mask_of,
    normal,
    normal_like,
    numbered,
    pack,
    poison,
)

import fastrnn
from fastrnn import reference

pytestmark = pytest.mark.drawn(3)

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 5, 7
LENGTHS = (2, 0, 6, 5)
RECORDS = ("h", "c", "gates")


def shown(tape, row):
    """By name and layer."""
    records = {name: getattr(tape, name) for name in row.records}
    return {f"{name}[{k}]": a for name, record in records.items() for k, a in enumerate(as_tuple(record))}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("layout", ["time", "batch", "padded", "padded batch", "ragged", "unbatched"])
def test_every_value(backend, row, layout, num_layers, bidirectional, rng):
    batch_first = layout.endswith("batch") and layout != "unbatched"
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "dtype": np.float64}
    layer = enliven(make(row, backend, INPUTS, HIDDEN, num_layers, **options), row, rng)
    batch = 1 if layout == "unbatched" else BATCH
    lengths = LENGTHS if layout.startswith(("padded", "ragged")) else (STEPS,) * batch
    x = normal(rng, (STEPS, batch, INPUTS))
    states = tuple(normal(rng, dims) for dims in row.state_shapes(num_layers * (1 + bidirectional), batch, HIDDEN))

    def lay_out(a):
        if layout == "ragged":
            return pack(a, lengths)
        if layout == "unbatched":
            return a[:, 0]
        return a.swapaxes(0, 1) if batch_first else a

    oracle = oracles.run(row.cls, row.options_for(HIDDEN), layer.params, x, states, lengths)
    want = {f"{name}[{k}]": records[name] for name in row.records for k, records in enumerate(oracle.layers)}
    mask = mask_of(lengths, STEPS)
    assert_meaningful({name: a[mask] for name, a in want.items()})
    state = states if len(states) == 2 else states[0] if states else None
    given = layer.forward(lay_out(poison(x, lengths)), state, lengths=LENGTHS if lengths == LENGTHS else None)[2]
    got = shown(given, row)
    want = {name: lay_out(a) for name, a in want.items()}
    # Six steps of two layers, 20 terms at most in a sum: a hundred rounding units.
    assert_close(got, want, forward=1e-14, gradient=0)
    if layout.startswith("padded"):
        past = lay_out(~mask[:, :, None])[..., 0]
        assert not any(a[past].any() for a in got.values())


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_with_a_line_between_them(row, bidirectional, checkpoint_every, rng):
    """Rows of 4 kB and more, whole kilobytes, have a cache line between them in memory, and none in what is shown."""
    options = {"bidirectional": bidirectional, "dtype": np.float64}
    layer, twin = (enliven(make(row, library, INPUTS, 128, **options), row, rng) for library in (fastrnn, reference))
    twin.load_state_dict(layer.state_dict())
    x = normal(rng, (STEPS, BATCH, INPUTS))
    got, want = (shown(a.forward(x, checkpoint_every=checkpoint_every)[2], row) for a in (layer, twin))
    assert_close(got, want, 1e-13, 1e-12)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_one_array_or_one_for_each_layer(backend, row, dtype, num_layers, rng):
    layer = make(row, backend, INPUTS, HIDDEN, num_layers, bidirectional=True, dtype=dtype)
    tape = layer.forward(normal(rng, (STEPS, BATCH, INPUTS)))[2]
    widths = {"h": row.output_size(HIDDEN), "c": HIDDEN, "gates": row.gates * HIDDEN}
    for name in row.records:
        record = getattr(tape, name)
        assert type(record) is (np.ndarray if num_layers == 1 else tuple)
        assert len(as_tuple(record)) == num_layers
        for a in as_tuple(record):
            assert a.shape == (STEPS, BATCH, 2 * widths[name])
            assert a.dtype == dtype


def test_what_a_cell_does_not_have(backend, row):
    tape = make(row, backend, INPUTS, HIDDEN).forward(np.ones((STEPS, BATCH, INPUTS)))[2]
    for name in set(RECORDS) - set(row.records):
        with pytest.raises(AttributeError, match=rf"\b{name}\b"):
            getattr(tape, name)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_nobody_can_spoil_a_tape_by_them(backend, row, bidirectional, rng):
    """They are read-only, or copies."""
    layer = enliven(make(row, backend, INPUTS, HIDDEN, 2, bidirectional=bidirectional, dtype=np.float64), row, rng)
    y, state, tape = layer.forward(normal(rng, (STEPS, BATCH, INPUTS)))
    dy, dstate = normal_like(rng, y), normal_like(rng, state)

    def backward():
        grads = layer.backward(tape, dy, dstate)
        return {"x": grads.x, **numbered("state", grads.state), **grads.params}

    want, values = backward(), {name: a.copy() for name, a in shown(tape, row).items()}
    for a in shown(tape, row).values():
        if a.flags.writeable:
            a[...] = 17
    assert_same_bits(backward(), want)
    assert_same_bits(shown(tape, row), values)


@pytest.mark.parametrize("row", [row for row in ROWS if row.cls != "RNN"], ids=lambda row: row.id)
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0)])
def test_nothing_to_show(backend, row, steps, batch):
    tape = make(row, backend, INPUTS, HIDDEN).forward(np.empty((steps, batch, INPUTS)))[2]
    assert all(a.shape[:2] == (steps, batch) and a.size == 0 for a in shown(tape, row).values())
