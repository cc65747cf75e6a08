"""Python threads, fork, Ctrl-C, memory over many calls, and the caller's floating-point mode."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from helpers import (
    assert_same_bits,
    enliven,
    infer,
    make,
    normal,
    normal_like,
    run_script,
    train,
    using_threads,
)

import fastrnn

CALLERS = 8


@pytest.mark.drawn(0, representatives=2)
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_calls_from_many_threads_at_once(row, dtype, pool, rng):
    """One layer shared by all callers: each gets the bits that it gets alone."""
    layer = enliven(make(row, fastrnn, 24, 65, 2, dtype=dtype), row, rng)
    work = []
    for i in range(CALLERS):
        x = normal(rng, (20 + i, 1 + 4 * i, 24), dtype)
        y, state = layer(x)
        work.append({"x": x, "state": normal_like(rng, state), "dy": normal_like(rng, y)})
    want = [(train(layer, **data), infer(layer, data["x"], data["state"])) for data in work]
    together = Barrier(CALLERS)

    def caller(i):
        together.wait(timeout=30)
        for _ in range(10):
            assert_same_bits(train(layer, **work[i]), want[i][0])
            assert_same_bits(infer(layer, work[i]["x"], work[i]["state"]), want[i][1])
        return True

    with using_threads(pool), ThreadPoolExecutor(CALLERS) as callers:
        assert all(callers.map(caller, range(CALLERS)))


@pytest.mark.parametrize(("cls", "size"), [("RNN", 512), ("LSTM", 256), ("GRU", 256)])
def test_steps_beside_threads_that_spin_or_sleep(cls, size, rng):
    """A single step of so many weights is shared with threads that still spin, roused for it where steps follow each
    other, and not with those that sleep: the bits are the same, for several callers at once too."""
    layer = getattr(fastrnn, cls)(size, size, seed=0).frozen()
    x = normal(rng, (120, 1, size), np.float32)

    def run(pauses):
        state, outputs = None, {}
        for t, x_t in enumerate(x):
            y, state = layer.step(x_t, state)
            outputs[f"step {t}"] = y
            if pauses and t % 30 == 29:
                time.sleep(0.002)  # longer than a thread spins
        return outputs

    with using_threads(1):
        want = run(False)
    with using_threads(2), ThreadPoolExecutor(3) as callers:
        for got in [run(False), run(True), *callers.map(run, [False, True, False])]:
            assert_same_bits(got, want)


FORK = """
import os, signal, sys, threading
import numpy as np
import fastrnn

fastrnn.set_num_threads(2)
layer = fastrnn.RNN(16, 64, seed=1)
x = np.random.default_rng(0).standard_normal((60, 32, 16)).astype(np.float32)

def results():
    y, state, tape = layer.forward(x)
    grads = layer.backward(tape, y)
    return layer(x)[0].tobytes() + grads.x.tobytes() + b"".join(g.tobytes() for g in grads.params.values())

want, stop = results(), threading.Event()

def work():
    while not stop.is_set():
        assert results() == want

busy = threading.Thread(target=work)
if sys.argv[1] == "busy":
    busy.start()
try:
    for cycle in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a child that hangs is ended, and seen
            status = 1
            try:
                status = 0 if all(results() == want for _ in range(3)) else 2
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, f"child {cycle} ended with {status}"
        assert results() == want
finally:
    stop.set()
if busy.ident:
    busy.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("parent", ["idle", "busy"])
def test_fork_after_use(parent):
    """A child computes on its own, whether or not the parent is in the middle of a call."""
    assert run_script(FORK, parent, timeout=120) == "done"


TEAM = """
import os, signal
import numpy as np
import fastrnn

fastrnn.set_num_threads(2)
layer, x = fastrnn.RNN(64, 64, seed=1), np.ones((60, 32, 64), np.float32)

def others():
    return set(os.listdir("/proc/self/task")) - {str(os.getpid())}
"""

SIGNAL = f"""{TEAM}
before = others()
layer(x)
assert others() - before, "not a test: there is no second thread"
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
os.kill(os.getpid(), signal.SIGTERM)
print(signal.sigwait({{signal.SIGTERM}}).name)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_signals_are_for_the_application():
    """One that it blocks, to wait for it, is not taken by a thread of the team, where it would end the process."""
    assert run_script(SIGNAL, OPENBLAS_NUM_THREADS="1") == "SIGTERM"


AFFINITY = f"""{TEAM}
before = others()
processors = os.sched_getaffinity(0)

def team(allowed):
    os.sched_setaffinity(0, allowed)
    layer(x)
    (thread,) = others() - before
    return os.sched_getaffinity(int(thread))

beside = team(processors)
callers = processors - beside
print(len(callers), beside < processors, team(callers) == callers, team(processors) < processors)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_the_team_runs_where_its_caller_may():
    """Not beside it, as long as there is room elsewhere; so too where it may now run on fewer processors."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    assert run_script(AFFINITY, OPENBLAS_NUM_THREADS="1") == "1 True True True"


# Calls that take a second or so: class, options, inputs, hidden units, steps, and those of a backward pass.
LONG = {
    "RNN": ("RNN", {}, 1, 2048, 12000, 4000),
    "LSTM": ("LSTM", {"proj_size": 1000, "peephole": True}, 1, 1024, 8000, 2000),
    "GRU, reset before": ("GRU", {"reset_after": False}, 1, 1024, 10000, 4000),
    "CEC": ("CEC", {}, 2000, 2000, 8000, 8000),
    "TDNN": ("TDNN", {}, 800, 800, 12000, 12000),
    "one step": ("LSTM", {}, 1024, 1024, 1, 1, 8000),
}

INTERRUPT = """
import os, signal, sys, threading, time
import numpy as np
import fastrnn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have left it ignored
cls, options, inputs, units, steps, few, *batch = eval(sys.argv[2])
batch = batch[0] if batch else 1
layer = getattr(fastrnn, cls)(inputs, units, dtype=np.float64, seed=1, **options)
short, long = np.ones((3, 1, inputs)), np.ones((steps, batch, inputs))
before = layer(short)[0].tobytes()

if sys.argv[1] == "inference":
    job = lambda: layer(long)
elif sys.argv[1] == "forward":
    job = lambda: layer.forward(long)
else:
    y, _, tape = layer.forward(long[:few])
    job = lambda: layer.backward(tape, y)

sent = []

def interrupt():
    time.sleep(0.2)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    job()
except KeyboardInterrupt:
    latency = time.monotonic() - sent[0]
else:
    sys.exit("not a test: the call ended before it was interrupted")
assert layer(short)[0].tobytes() == before
_, _, tape = layer.forward(short)
layer.backward(tape, layer(short)[0])
print(latency)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize(
    ("call", "threads", "name"),
    [
        *((call, n, "RNN") for call in ("inference", "backward") for n in (1, 2)),
        ("forward", 2, "RNN"),
        *((call, 1 + i % 2, name) for call in ("inference", "backward") for i, name in enumerate(LONG) if i),
    ],
)
def test_ctrl_c_ends_a_long_call(call, threads, name):
    """Within 200 ms by contract; a second here, for a busy machine. The layer is good afterwards."""
    latency = float(run_script(INTERRUPT, call, repr(LONG[name]), FASTRNN_NUM_THREADS=str(threads)))
    assert latency < 1


MEMORY = """
import os, sys
import numpy as np
import fastrnn

cls = getattr(fastrnn, sys.argv[2])
layer = cls(8, 16, 2, bidirectional=True, dropout=0.1, seed=1)
one_way = cls(8, 16, seed=1)
x = np.random.default_rng(0).standard_normal((5, 3, 8))
dy = np.ones((5, 3, 32))

def call(n):
    state = None
    for _ in range(n):
        layer(x, lengths=[3, 0, 5])
        y, _, tape = layer.forward(x)
        layer.backward(tape, dy)
        if sys.argv[2] != "TDNN":
            _, state = one_way.step(x[0], state)
        one_way.frozen()(x)
        try:
            layer(dy)
        except ValueError:
            pass

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

call(1000)
before = resident()
call(int(sys.argv[1]))
print(resident() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident size from /proc")
@pytest.mark.parametrize("cls", ["RNN", "LSTM", "CEC", "TDNN"])  # h, both states, c, none
def test_many_calls_leave_no_memory_behind(cls):
    """Less than 1 MB for 10,000 calls of each kind: a leak of 100 bytes a call shows."""
    assert int(run_script(MEMORY, "10000", cls)) < 2**20


@pytest.mark.drawn(1)
def test_the_callers_floating_point_mode_is_untouched(isa, dtype, row, threads, rng):
    """The kernels flush denormals to zero; NumPy, afterwards and beside them, does not."""
    denormal = np.full(64, np.finfo(dtype).tiny / 16, dtype)
    layer = make(row, fastrnn, 9, 33, dtype=dtype)
    y, state, tape = layer.forward(normal(rng, (7, 5, 9), dtype))
    layer.backward(tape, y, state)
    fastrnn._core.evaluate("tanh", denormal)
    fastrnn._core.product(denormal.reshape(8, 8), denormal.reshape(8, 8))
    for number in (layer(normal(rng, (7, 5, 9), dtype))[0], denormal):
        assert number.any()
    assert (denormal * dtype(0.5) > 0).all()
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        dtype(1) / np.zeros(1, dtype)


HANDLER = """
import os, signal, threading, time
import numpy as np
import fastrnn

seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(float(np.float32(1e-40) + np.float32(0)) > 0))
layer = fastrnn.RNN(1, 1024, seed=1)
x = np.ones((8000, 1, 1), np.float32)

def interrupt():
    while not over.is_set():
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

over = threading.Event()
sender = threading.Thread(target=interrupt)
sender.start()
layer(x)
within = len(seen)
over.set()
sender.join()
print(within, all(seen))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_signal_handler_within_a_call_sees_denormal_numbers():
    within, right = run_script(HANDLER).split()
    assert int(within) > 0, "not a test: the call was over before a handler ran"
    assert right == "True"
