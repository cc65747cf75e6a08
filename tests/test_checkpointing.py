"""`forward(..., checkpoint_every=)`: the same bits from less memory, and as much of it as `training_memory` says."""

import sys
import tracemalloc

import numpy as np
import pytest
from helpers import (
    REPRESENTATIVES,
    ROWS,
    as_tuple,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    enliven,
    make,
    map_state,
    normal,
    normal_like,
    numbered,
    pack,
    poison,
    row_of,
    run_script,
    using_threads,
)

import fastrnn
from fastrnn import reference
from fastrnn.memory import memory_available

WITH_STATE = [row for row in ROWS if row.parts]
with_state = pytest.mark.parametrize("row", WITH_STATE, ids=lambda row: row.id)

# Backward sums up to 256 rows at a time, so these have several windows to cut: steps, batch, inputs, hidden.
DIMS = [(80, 23, 5, 7), (600, 1, 3, 9), (9, 70, 11, 18), (500, 18, 3, 4)]


def draw(row, backend, rng, dims, num_layers=1, dtype=np.float64, **options):
    """A layer, and the arguments of `run`."""
    steps, batch, inputs, hidden = dims
    layer = enliven(make(row, backend, inputs, hidden, num_layers, dtype=dtype, seed=0, **options), row, rng)
    x = normal(rng, (steps, batch, inputs), dtype)
    width = layer.num_directions * row.output_size(hidden)
    state = map_state(lambda s: normal(rng, s.shape, dtype), layer(x.swapaxes(0, 1) if layer.batch_first else x)[1])
    return layer, {
        "x": x,
        "state": state,
        "dy": normal(rng, (steps, batch, width), dtype),
        "dstate": normal_like(rng, state),
    }


def uneven(rng, steps, batch):
    """Lengths, in any order, some of which are 0 and one `steps`."""
    lengths = rng.integers(0, steps, batch)
    lengths[rng.permutation(batch)[: batch // 5]] = 0
    lengths[rng.integers(batch)] = steps
    return lengths


def results_of(grads):
    named = {f"grads.{name}": g for name, g in grads.params.items()}
    return {"grads.x": grads.x, **numbered("grads.state", grads.state), **named}


def run(layer, x, state=None, dy=None, dstate=None, *, lengths=None, clip_step=None, **options):
    """Everything that comes of a training pass, by name: outputs, states, the tape's records, gradients."""
    y, end, tape = layer.forward(x, state, lengths=lengths, **options)
    records = {}
    for name in ("h", "c", "gates"):
        if hasattr(tape, name):
            records |= numbered(f"tape.{name}", getattr(tape, name))
    return {
        "y": y,
        **numbered("state", end),
        **records,
        **results_of(layer.backward(tape, dy, dstate, clip_step=clip_step)),
    }


def assert_alike(backend, got, want, note):
    """The kernels' windows are made of the chunks in which they sum; the reference's sums may differ in their order."""
    if backend is fastrnn:
        assert_same_bits(got, want, note)
    else:
        assert_close(got, want, 1e-13, 1e-13, note)


# ---- The same. ----


@pytest.mark.drawn(1)
@with_state
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("layout", ["whole", "padded", "ragged", "batch first"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_same_bits(isa, dtype, row, dims, layout, bidirectional, threads, rng):
    options = {"bidirectional": bidirectional, "batch_first": layout == "batch first", "dtype": dtype}
    layer, data = draw(row, fastrnn, rng, dims, **options)
    steps, batch, *_ = dims
    if layout != "whole":
        data["lengths"] = lengths = uneven(rng, steps, batch)
        lay_out = pack if layout == "ragged" else poison
        data |= {name: lay_out(data[name], lengths) for name in ("x", "dy")}
    if layout == "batch first":
        data |= {name: data[name].swapaxes(0, 1) for name in ("x", "dy")}
    want = run(layer, **data)
    for every in (1, 7, 50, steps, steps + 3):
        assert_same_bits(run(layer, **data, checkpoint_every=every), want, note=f"checkpoint_every={every}:")


@pytest.mark.drawn(1)
@with_state
@pytest.mark.parametrize("every", [1, 4, 20])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("clip_step", [None, 0.2])
@pytest.mark.parametrize("lengths", [None, "padded", "ragged"])
def test_stacks_with_dropout(backend, row, every, bidirectional, clip_step, lengths, rng):
    dims = (30, 40, 4, 5) if backend is fastrnn else (12, 6, 3, 4)
    layer, data = draw(row, backend, rng, dims, num_layers=3, bidirectional=bidirectional, dropout=0.3)
    data["clip_step"] = clip_step
    if lengths:
        data["lengths"] = uneven(rng, *dims[:2])
        lay_out = pack if lengths == "ragged" else poison
        data |= {name: lay_out(data[name], data["lengths"]) for name in ("x", "dy")}
    want = run(layer, **data, rng=np.random.default_rng(5))
    got = run(layer, **data, rng=np.random.default_rng(5), checkpoint_every=every)
    assert_meaningful({name: a for name, a in want.items() if "_l" in name and lengths is None and not row.projected})
    assert_alike(backend, got, want, f"checkpoint_every={every}:")


@pytest.mark.drawn(1, representatives=2)
@pytest.mark.parametrize("row", REPRESENTATIVES[:-1], ids=lambda row: row.id)
@pytest.mark.parametrize("layers", [1, 2])
def test_any_number_of_threads(row, layers, rng):
    layer, data = draw(row, fastrnn, rng, (24, 40, 24, 50), num_layers=layers, dtype=np.float32, bidirectional=True)
    data |= {"lengths": uneven(rng, 24, 40), "clip_step": 0.2}
    with using_threads(1):
        want = run(layer, **data)
    for n in (1, 2, 3):
        with using_threads(n):
            assert_same_bits(run(layer, **data, checkpoint_every=7), want, note=f"{n} threads:")


@pytest.mark.drawn(1)
@with_state
@pytest.mark.parametrize("without", [("dy",), ("dstate",), ("state",), ("dy", "dstate", "state")], ids=str)
def test_with_parts_left_out(backend, row, without, rng):
    layer, data = draw(row, backend, rng, DIMS[0], bidirectional=True)
    data |= dict.fromkeys(without)
    assert_alike(backend, run(layer, **data, checkpoint_every=7), run(layer, **data), str(without))


@pytest.mark.drawn(1)
@with_state
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0), (1, 1)])
def test_nothing_to_do(backend, row, steps, batch, rng):
    layer, data = draw(row, backend, rng, (steps, batch, 3, 4), num_layers=2, bidirectional=True)
    got, want = run(layer, **data, checkpoint_every=2), run(layer, **data)
    assert_alike(backend, got, want, f"{steps} steps")


@pytest.mark.parametrize("row", REPRESENTATIVES[:-1], ids=lambda row: row.id)
def test_all_lengths_zero_and_one_unbatched_sequence(backend, row, rng):
    every = 300 if backend is fastrnn else 15  # twice as many steps make two windows
    layer, data = draw(row, backend, rng, (2 * every, 2, 3, 4))
    zero = {**data, "x": np.full_like(data["x"], np.nan), "lengths": [0, 0]}
    assert_alike(backend, run(layer, **zero, checkpoint_every=3), run(layer, **zero), "no steps")
    one = {name: map_state(lambda s: s[:, :1], data[name]) for name in ("state", "dstate")}
    one |= {name: data[name][:, 0] for name in ("x", "dy")}
    assert_alike(backend, run(layer, **one, checkpoint_every=every), run(layer, **one), "unbatched")


@pytest.mark.parametrize("row", REPRESENTATIVES, ids=lambda row: row.id)
def test_a_tape_is_complete_and_serves_any_number_of_times(backend, row, dtype, rng):
    """What becomes of x, state, y and the parameters after forward changes nothing."""
    layer, data = draw(row, backend, rng, DIMS[0], num_layers=2, dtype=dtype, dropout=0.3)
    y, _, tape = layer.forward(data["x"], data["state"], checkpoint_every=7)
    want = results_of(layer.backward(tape, data["dy"], data["dstate"]))
    h = [a.copy() for a in tape.h]
    layer.jvp(tape, data["x"])
    for a in (*layer.params.values(), data["x"], y, *as_tuple(data["state"])):
        a[...] = 17
    layer.backward(layer.forward(data["x"], checkpoint_every=3)[2], data["dy"])
    for _ in range(3):
        assert_same_bits(results_of(layer.backward(tape, data["dy"], data["dstate"])), want)
    assert_same_bits(numbered("h", tape.h), numbered("h", tuple(h)))


@pytest.mark.parametrize("row", [row for row in REPRESENTATIVES if row.cls == "TDNN"], ids=lambda row: row.id)
@pytest.mark.parametrize(
    "options", [{"checkpoint_every": 3}, {"checkpoint_every": "auto", "memory_budget": 1}], ids=str
)
def test_a_tdnn_disregards_it(backend, row, options, rng):
    layer, data = draw(row, backend, rng, DIMS[0], num_layers=2)
    assert_same_bits(run(layer, **data, **options), run(layer, **data))
    assert layer.training_memory(100, 3, checkpoint_every=3) == layer.training_memory(100, 3)


# ---- Memory. ----


def held(layer, x, **options):
    """Bytes that a tape holds, and the most that forward and backward take. All of the reference's is NumPy's."""
    tracemalloc.start()
    _, _, tape = layer.forward(x, **options)
    size = tracemalloc.get_traced_memory()[0]
    layer.backward(tape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size, peak


@pytest.mark.parametrize("cls", ["LSTM", "GRU"])
def test_auto_depends_on_the_budget(cls, rng):
    layer = getattr(reference, cls)(2, 16, num_layers=2, dtype=np.float64, seed=0)
    x = normal(rng, (200, 3, 2))
    everything, _ = held(layer, x)
    least, peak = held(layer, x, checkpoint_every="auto", memory_budget=1000)
    assert held(layer, x, checkpoint_every="auto", memory_budget=10**9)[0] == pytest.approx(everything, rel=0.01)
    assert held(layer, x, checkpoint_every="auto")[0] == pytest.approx(everything, rel=0.01)
    # What remains is y and the second layer's input, 2 arrays of more than 2 * 5.
    assert least < everything / 3
    # No interval takes much less than the one chosen. States at each step, or one window, take far more.
    others = {every: held(layer, x, checkpoint_every=every)[1] for every in (1, 15, 200)}
    assert peak < 1.1 * min(others.values())
    assert peak < 0.7 * max(others.values())


PROGRAM = """
import re, sys
import numpy as np, fastrnn

def resident(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

cls, options, steps, batch, every = sys.argv[1], *map(eval, sys.argv[2:])
fastrnn.set_num_threads(1)
layer = getattr(fastrnn, cls)(64, 64, **options)
x = np.zeros((steps, batch, 64), np.float32)
y, _, tape = layer.forward(x[:2], checkpoint_every=every)
layer.backward(tape)
dy = np.zeros((steps, batch, y.shape[-1]), np.float32)
x += 1
dy += 1
del tape, y
before = resident("VmRSS")
y, state, tape = layer.forward(x, checkpoint_every=every)
grads = layer.backward(tape, dy)
print(resident("VmHWM") - before)
print(layer.training_memory(steps, batch, checkpoint_every=every), layer.training_memory(steps, batch))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc elsewhere")
@pytest.mark.parametrize(
    ("cls", "options", "every"),
    [
        ("RNN", {}, None),
        ("LSTM", {}, None),
        ("LSTM", {}, 3000),
        ("LSTM", {"num_layers": 3, "dropout": 0.3}, None),
        ("LSTM", {"num_layers": 3, "dropout": 0.3}, 300),
        ("LSTM", {"num_layers": 2, "proj_size": 32, "peephole": True}, 300),
        ("GRU", {"num_layers": 2, "bidirectional": True}, None),
        ("GRU", {"num_layers": 2, "bidirectional": True}, 300),
        ("TDNN", {"num_layers": 2, "dropout": 0.5}, 300),
        ("TDNN", {"num_layers": 3, "dropout": 0.5, "bidirectional": True, "dtype": "float64"}, None),
    ],
    ids=str,
)
def test_training_memory(cls, options, every):
    """Steps enough (arrays of 12 MB) for the interpreter's and the allocator's own changes to be a few per cent."""
    steps, batch = 6000, 8
    taken, predicted, plain = map(
        int, run_script(PROGRAM, cls, repr(options), str(steps), str(batch), repr(every)).split()
    )
    assert 0.9 * predicted <= taken <= 1.1 * predicted
    if every and every < steps / 10 and cls in ("LSTM", "GRU"):
        assert taken < plain / 2


def test_training_memory_grows_with_what_is_kept(backend):
    layer = backend.LSTM(8, 16, seed=0)
    plain = layer.training_memory(1000, 4)
    assert type(plain) is int
    assert layer.training_memory(2000, 4) > 1.5 * plain
    assert layer.training_memory(1000, 4, checkpoint_every=100) < plain
    assert layer.training_memory(1000, 4, checkpoint_every="auto") == plain  # for there is enough
    for steps, batch in ((0, 0), (0, 3), (5, 0)):
        for every in (None, 3):
            assert layer.training_memory(steps, batch, checkpoint_every=every) > 0


# ---- Bad values. ----

BAD = [
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every: expected at least 1, got 0"),
    ({"checkpoint_every": -3}, ValueError, "checkpoint_every: expected at least 1, got -3"),
    ({"checkpoint_every": 2.0}, TypeError, r"checkpoint_every: expected an integer, got 2\.0"),
    ({"checkpoint_every": True}, TypeError, "checkpoint_every: expected an integer, got True"),
    ({"checkpoint_every": [3]}, TypeError, r"checkpoint_every: expected an integer, got \[3\]"),
    ({"checkpoint_every": "all"}, ValueError, 'checkpoint_every: expected a number of steps, "auto" or None, got'),
]
BUDGETS = [
    ({"checkpoint_every": "auto", "memory_budget": 0}, ValueError, "memory_budget: expected at least 1, got 0"),
    ({"checkpoint_every": "auto", "memory_budget": 1e9}, TypeError, "memory_budget: expected an integer, got 1000000"),
    ({"memory_budget": "1 GB"}, TypeError, "memory_budget: expected an integer, got '1 GB'"),
]


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("options", "error", "message"), BAD + BUDGETS)
def test_bad_values(backend, row, options, error, message):
    layer = make(row, backend, 3, 4)
    with pytest.raises(error, match=f"^{message}"):
        layer.forward(np.ones((2, 1, 3)), **options)
    if "memory_budget" not in options:
        with pytest.raises(error, match=f"^{message}"):
            layer.training_memory(2, 1, **options)


@pytest.mark.parametrize("value", [-1, 2.5, None])
def test_sizes_that_are_none(backend, value):
    layer = backend.RNN(3, 4)
    for arguments, name in (((value, 1), "T"), ((1, value), "B")):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: expected "):
            layer.training_memory(*arguments)


def test_any_integer_will_do(backend, rng):
    layer, data = draw(row_of("lstm"), backend, rng, DIMS[0])
    want = run(layer, **data, checkpoint_every=7)
    assert_same_bits(run(layer, **data, checkpoint_every=np.int16(7)), want)


GROUPS = {"version 2": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")} | {
    "version 1": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
}


@pytest.mark.parametrize("version", GROUPS)
def test_the_memory_there_is(version, tmp_path):
    """What the system has, caches that it can give up included, and no more than the control group leaves."""
    assert memory_available(tmp_path) > 2**20  # says nothing: of what this machine says otherwise
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    5000 kB\n")
    assert memory_available(tmp_path) == 5000 * 1024
    directory, limit, usage, cache = GROUPS[version]
    group = tmp_path / directory
    group.mkdir(parents=True)
    (group / usage).write_text("3000000\n")
    (group / "memory.stat").write_text(f"anon 5\n{cache} 1000000\n")
    for text, want in (("max\n", 5000 * 1024), ("4000000\n", 2000000), ("1000000\n", 0)):
        (group / limit).write_text(text)
        assert memory_available(tmp_path) == want
