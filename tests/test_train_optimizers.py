"""Optimisers and schedules against their formulas, in float64; their state."""

import copy
import json
import math

import numpy as np
import pytest
from helpers import assert_same_bits

from fastrnn.train import SGD, Adam, AdamW, ConstantRate, CosineDecay, StepDecay

MAKERS = {
    "sgd": lambda p, lr=0.1: SGD(p, lr),
    "momentum": lambda p, lr=0.1: SGD(p, lr, momentum=0.9),
    "nesterov": lambda p, lr=0.1: SGD(p, lr, momentum=0.9, nesterov=True),
    "adam": lambda p, lr=0.1: Adam(p, lr, weight_decay=0.01),
    "adamw": lambda p, lr=0.1: AdamW(p, lr, betas=(0.8, 0.9), weight_decay=0.1),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def parameters(rng, dtype=np.float64):
    return {"a": rng.standard_normal((2, 3)).astype(dtype), "b": rng.standard_normal(4).astype(dtype)}


def run(optimizer, steps, seed):
    """Take steps with gradients that depend on the parameters and on the number of the step."""
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        optimizer.step({name: p + rng.standard_normal(p.shape) for name, p in optimizer.params.items()})


# ---- Formulas. ----


def test_nesterov_is_momentum_looked_ahead(rng):
    """With p' = p - lr momentum v, the parameters at which Nesterov (1983) takes the gradient: v' = momentum v + g(p')
    and p <- p - lr v'. What the optimiser holds is p', as in Sutskever et al. (2013), equations 3 and 4."""
    lr, momentum = 0.05, 0.8
    curvature = rng.uniform(0.5, 2, 5)
    p, v = rng.standard_normal(5), np.zeros(5)
    held = {"p": p.copy()}
    optimizer = SGD(held, lr, momentum, nesterov=True)
    for _ in range(6):
        optimizer.step({"p": curvature * held["p"]})
        v = momentum * v + curvature * (p - lr * momentum * v)
        p = p - lr * v
        np.testing.assert_allclose(held["p"], p - lr * momentum * v, rtol=1e-12)


def test_adamw_is_algorithm_2_of_the_paper(rng):
    p = rng.normal(size=(2, 3))
    theta, m, v = p.copy(), np.zeros((2, 3)), np.zeros((2, 3))
    schedule = StepDecay(0.01, every=2, factor=0.5)
    optimizer = AdamW({"p": p}, schedule, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for n in range(1, 7):
        g = rng.normal(size=(2, 3))
        optimizer.step({"p": g})
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2
        alpha = 0.01 * 0.5 ** ((n - 1) // 2)
        theta = theta - alpha * ((m / (1 - 0.8**n)) / (np.sqrt(v / (1 - 0.95**n)) + 1e-3) + 0.1 * theta)
        np.testing.assert_allclose(p, theta, rtol=1e-12)


def test_weight_decay_of_adamw_is_not_scaled_by_the_gradients():
    p = {"p": np.full(3, 2.0)}
    AdamW(p, lr=0.1, weight_decay=0.5).step({"p": np.zeros(3)})
    np.testing.assert_allclose(p["p"], 2.0 * (1 - 0.1 * 0.5))
    assert AdamW(p).weight_decay == 0.01


# ---- Schedules. ----


def test_constant_rate():
    assert [ConstantRate(0.25)(step) for step in (0, 1, 1000)] == [0.25] * 3


def test_step_decay():
    assert [StepDecay(8, every=3, factor=0.5)(step) for step in range(8)] == [8, 8, 8, 4, 4, 4, 2, 2]
    assert StepDecay(1, every=1, factor=10)(400) == math.inf


def test_cosine_decay():
    schedule = CosineDecay(2.0, steps=14, warmup=4, floor=0.5)
    assert [schedule(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(9) == pytest.approx(1.25)
    assert schedule(6) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi / 5)) / 2)
    assert schedule(14) == schedule(10_000) == 0.5
    assert CosineDecay(2.0, steps=2)(1) == pytest.approx(1.0)
    rates = [schedule(step) for step in range(4, 15)]
    assert rates == sorted(rates, reverse=True)


def test_a_schedule_gives_the_rate_of_each_step(make, rng):
    schedule = CosineDecay(0.1, steps=6, warmup=2)
    params = parameters(rng)
    optimizer = make(params, schedule)
    other = make({name: p.copy() for name, p in params.items()})
    for step in range(8):
        other.lr = schedule(step)
        run(optimizer, 1, step)
        run(other, 1, step)
        assert optimizer.steps == step + 1
        assert_same_bits(optimizer.params, other.params)


@pytest.mark.parametrize("rate", [math.nan, -1.0])
def test_a_schedule_of_no_rates_changes_nothing(make, rate, rng):
    optimizer = make(parameters(rng), lambda step: rate)
    before = {name: p.copy() for name, p in optimizer.params.items()}
    with pytest.raises(ValueError, match=r"^lr: expected a finite number >= 0"):
        run(optimizer, 1, 0)
    assert optimizer.steps == 0
    assert_same_bits(optimizer.params, before)


@pytest.mark.parametrize(
    ("make_bad", "error", "message"),
    [
        (lambda: ConstantRate(-1), ValueError, "lr: expected a finite number >= 0, got -1"),
        (lambda: ConstantRate("fast"), TypeError, "lr: expected a number, got 'fast'"),
        (lambda: ConstantRate(10**400), ValueError, "lr: expected a finite number >= 0, got 1000"),
        (lambda: StepDecay(1, every=0), ValueError, "every: expected at least 1, got 0"),
        (lambda: StepDecay(1, every=2, factor=-1), ValueError, "factor: expected a finite number >= 0"),
        (lambda: CosineDecay(1, steps=4, warmup=4), ValueError, "steps: expected at least 5, got 4"),
        (lambda: CosineDecay(1, steps=4, warmup=-1), ValueError, "warmup: expected at least 0, got -1"),
        (lambda: CosineDecay(1, steps=4, floor=math.inf), ValueError, "floor: expected a finite number"),
        (lambda: SGD({"p": np.ones(2)}, 0.1, nesterov=1), TypeError, "nesterov: expected True or False, got 1"),
        (lambda: SGD({"p": np.ones(2)}, "slow"), TypeError, "lr: expected a number, got 'slow'"),
        (lambda: Adam({"p": np.ones(2)}, betas=(0.9,)), ValueError, r"betas: expected two numbers, got \(0.9,\)"),
        (lambda: AdamW({"p": np.ones(2)}, weight_decay=-1), ValueError, "weight_decay: expected a finite number"),
    ],
)
def test_bad_settings(make_bad, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make_bad()


# ---- State. ----


@pytest.mark.parametrize("rate", [0.1, CosineDecay(0.1, steps=9, warmup=3)], ids=["number", "schedule"])
def test_state_dict_goes_on_with_the_same_bits(make, dtype, rate, rng):
    params = parameters(rng, dtype)
    whole = make({name: p.copy() for name, p in params.items()}, rate)
    run(whole, 5, seed=1)
    first = make(params, rate)
    run(first, 5, seed=1)
    second = make({name: p.copy() for name, p in params.items()}, rate)
    state = first.state_dict()
    run(first, 1, seed=7)  # the state is a copy
    before = copy.deepcopy(state["moments"])
    second.load_state_dict(state)
    for optimizer in (whole, second):
        run(optimizer, 4, seed=2)
    for moment, arrays in before.items():  # and is copied
        assert_same_bits(state["moments"][moment], arrays)
    assert second.steps == 9
    assert_same_bits(second.params, whole.params)


def test_a_changed_rate_is_part_of_the_state(rng):
    optimizer, other = SGD(parameters(rng), 0.1), SGD(parameters(rng), 0.1)
    optimizer.lr = np.float32(0.25)
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0.25


@pytest.mark.parametrize("rate", [np.float32(0.5), StepDecay(np.float32(0.5), every=np.int64(3)), lambda step: 1.0])
def test_all_of_the_state_but_the_moments_is_json(make, rate, rng):
    state = make(parameters(rng), rate).state_dict()
    del state["moments"]
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("saved", "own", "parts"),
    [
        (lambda p: SGD(p, 0.1), lambda p: Adam(p, 0.1), ["class SGD", "got Adam"]),
        (lambda p: Adam(p, 0.1), lambda p: AdamW(p, 0.1), ["class Adam", "got AdamW"]),
        (lambda p: SGD(p, 0.1), lambda p: SGD(p, 0.1, 0.5), ["'momentum': 0.0", "'momentum': 0.5"]),
        (lambda p: Adam(p, eps=0.1), lambda p: Adam(p), ["'eps': 0.1", "'eps': 1e-08"]),
        (lambda p: SGD(p, 0.1), lambda p: SGD(p, ConstantRate(0.1)), ["lr 0.1", "'ConstantRate'"]),
        (
            lambda p: SGD(p, StepDecay(1, 2)),
            lambda p: SGD(p, StepDecay(1, 3)),
            ["lr", "'every': 2", "'every': 3"],
        ),
        (lambda p: SGD(p, 0.1), lambda p: SGD(p | {"c": np.ones(1)}, 0.1), ["'velocity'", "'c'"]),
        (lambda p: SGD(p, 0.1), lambda p: SGD(p | {"b": np.ones(5)}, 0.1), ["'velocity'", "'b'", "(5,)", "(4,)"]),
    ],
)
def test_a_state_of_another_optimizer(saved, own, parts, rng):
    optimizer, other = saved(parameters(rng)), own(parameters(rng))
    run(optimizer, 2, 0)
    before = other.state_dict()
    with pytest.raises(ValueError, match="expected") as caught:
        other.load_state_dict(optimizer.state_dict())
    assert all(part in str(caught.value) for part in parts), caught.value
    after = other.state_dict()
    for moments in before["moments"]:
        assert_same_bits(after["moments"].pop(moments), before["moments"][moments])
    before["moments"] = {}
    assert after == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: None, TypeError, "state_dict: expected a mapping of names to values, got NoneType"),
        (lambda s: {"lr": 1}, ValueError, r"state_dict: expected the keys .*got \['lr'\]"),
        (lambda s: s | {"steps": -1}, ValueError, r"state_dict\['steps'\]: expected at least 0, got -1"),
        (lambda s: s | {"lr": -1.0}, ValueError, r"state_dict\['lr'\]: expected a finite number >= 0, got -1.0"),
        (lambda s: s | {"moments": None}, ValueError, r"state_dict\['moments'\]\['mean'\]: expected the keys"),
    ],
)
def test_damaged_states(change, error, message, rng):
    optimizer = Adam(parameters(rng))
    with pytest.raises(error, match=f"^{message}"):
        optimizer.load_state_dict(change(optimizer.state_dict()))
