"""GradientFlow: what is read off a flow, its horizon and verdict, and its form as JSON."""

import json

import numpy as np
import pytest

from fastrnn import GradientFlow


def flow_of(*sequences, cell="RNN", **fields):
    """A GradientFlow with the given flows over lag, flow[length] first, one sequence each."""
    lengths = np.array([len(sequence) - 1 for sequence in sequences], np.int64)
    T, B = max(lengths, default=0), len(sequences)
    flow = np.full((T + 1, B), np.nan)
    for b, sequence in enumerate(sequences):
        flow[: len(sequence), b] = sequence[::-1]
    rest = {"gamma": np.full((T, B), np.nan), "grad_norm": np.zeros((T, B)), "lag_gradient": np.zeros(T)}
    return GradientFlow(cell, lengths, flow=flow, **{**rest, **fields})


def steady(rate, steps, start=1.0):
    """A flow that changes by `rate` in each step back."""
    with np.errstate(over="ignore"):
        return start * rate ** np.arange(steps + 1.0)


@pytest.mark.parametrize(
    ("sequence", "horizon"),
    [
        (steady(0.5, 20), 9),  # 2^-9 > 1e-3 > 2^-10
        (steady(0.5, 20, start=1e-30), 9),  # relative to its start
        (steady(0.5, 5), 5),  # throughout
        (steady(2.0, 20), 20),
        (steady(10.0, 400), 400),  # to infinity
        ([1, 0.5, 1e-4, 1, 1], 1),  # the first time
        ([1, 1e-3, 1], 0),  # above, not at
        ([0.0, 0.0], 0),  # nothing starts
        ([1.0], 0),  # no steps
        ([1, np.inf, np.nan], 2),  # infinite on the way
    ],
)
def test_horizon(sequence, horizon):
    got = flow_of(sequence, steady(1.0, 30)).horizon
    assert got.dtype == np.int64
    assert got.tolist() == [horizon, 30]


@pytest.mark.parametrize(
    ("rate", "steps", "verdict"),
    [
        # From 100 steps on: what has happened, thousandfold.
        (1.0, 1000, "stable"),
        (0.992, 1000, "vanishing"),
        (0.994, 1000, "stable"),
        (1.008, 1000, "exploding"),
        (1.006, 1000, "stable"),
        (0.93, 100, "vanishing"),
        (0.94, 100, "stable"),
        # Fewer: at this rate over 100 steps, but tenfold already.
        (0.93, 50, "vanishing"),
        (0.94, 50, "stable"),
        (0.5, 5, "vanishing"),
        (0.7, 5, "stable"),
        (1.5, 6, "exploding"),
        (1.5, 5, "stable"),
        (0.09, 1, "vanishing"),
        (0.5, 1, "stable"),
        (11.0, 1, "exploding"),
        (0.0, 3, "vanishing"),
    ],
)
@pytest.mark.parametrize("start", [1.0, 1e-200])
def test_verdict_of_a_steady_flow(rate, steps, verdict, start):
    assert flow_of(steady(rate, steps, start)).verdict == verdict


@pytest.mark.parametrize(
    ("sequences", "verdict"),
    [
        ([[1, np.inf]], "exploding"),
        ([[1, np.nan]], "exploding"),
        ([[1e-300, 1e300]], "exploding"),
        ([[1e300, 1e-300]], "vanishing"),
        ([[0, 0]], "vanishing"),
        ([], "stable"),
        ([[1.0], [1.0]], "stable"),
        ([steady(0.5, 50), steady(1, 50), steady(0.5, 9)], "vanishing"),
        ([steady(0.5, 50), steady(1, 50), steady(1, 9)], "stable"),
        ([steady(0.5, 50), [1.0]], "vanishing"),  # one without steps has no say
        ([steady(0.5, 50), steady(2, 50)], "exploding"),
        ([steady(0.5, 50), steady(2, 50), steady(1, 50)], "stable"),
    ],
)
def test_verdict_of_a_batch(sequences, verdict):
    assert flow_of(*sequences).verdict == verdict


def test_nothing_can_be_assigned():
    with pytest.raises(AttributeError):
        flow_of([1.0, 0.5]).flow = None


def test_as_json():
    """Strict JSON, and all of it."""
    flow = flow_of(
        [1, 0.5, np.inf],
        [1, 0.25],
        gamma_u=np.float64(0.5),
        bound=np.array([[0.5, np.nan]]),
        lag_matrices=np.ones((2, 1, 1)),
        gates={"f": np.array([[0.9, 0.8]])},
    )
    data = json.loads(json.dumps(flow.to_dict(), allow_nan=False))
    assert data["cell"] == "RNN"
    assert data["lengths"] == [2, 1]
    assert data["flow"] == [["Infinity", 0.25], [0.5, 1.0], [1.0, None]]
    assert data["gates"] == {"f": [[0.9, 0.8]]}
    assert (data["gamma_u"], data["gamma_f"], data["bound"]) == (0.5, None, [[0.5, None]])
    assert data["lag_matrices"] == [[[1.0]], [[1.0]]]
    assert (data["horizon"], data["verdict"]) == ([2, 1], "exploding")
    assert set(data) > {"gamma", "grad_norm", "lag_gradient"}


def test_repr():
    assert repr(flow_of(steady(0.5, 20))) == "GradientFlow(RNN, T=20, B=1, vanishing, horizon=[9])"
