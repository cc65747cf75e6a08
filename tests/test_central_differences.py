"""The gradients of everything against central differences of the loss, in float64, for both backends."""

import numpy as np
import oracles
import pytest
from helpers import (
    REPRESENTATIVES,
    as_tuple,
    assert_meaningful,
    differences,
    enliven,
    make,
    map_state,
    mask_of,
    meaningful_part,
    normal,
    normal_like,
    pack,
    row_of,
    train,
    why_meaningless,
)

# Per unit of the largest gradient. The loss is of order 10 and rounds at 1e-15 of that, so a difference over
# 2e-5 is right to about 1e-9, and the step's own error is 1e-10 times a third derivative of order 1 to 10;
# the largest element of a small gradient (the logistic's slope is at most 1/4) may be of order 0.05.
LIMIT = 1e-7
# A pre-activation of a rectifier nearer to zero than this could cross it within a step.
KINK = 1e-3

STEPS, BATCH, INPUTS, HIDDEN, LAYERS = 5, 3, 2, 3, 2


def near_a_kink(row, layer, x, state, lengths):
    if row.options.get("nonlinearity") != "relu":
        return False
    pre = oracles.run(row.cls, row.options_for(HIDDEN), layer.params, x, as_tuple(state), lengths).pre
    return np.abs(pre).min() < KINK


def draw(row, backend, lengths, loss=("dy", "dstate"), **options):
    """A layer and data, canonical in layout, away from kinks and with gradients of that loss worth checking."""
    rng = np.random.default_rng(11)
    valid = mask_of(lengths, STEPS)
    for _ in range(300):
        layer = enliven(make(row, backend, INPUTS, HIDDEN, LAYERS, dtype=np.float64, **options), row, rng)
        x = normal(rng, (STEPS, BATCH, INPUTS))
        y, state = layer(x)
        data = {"x": x, "state": normal_like(rng, state), "lengths": lengths}
        if near_a_kink(row, layer, x, data["state"], lengths):
            continue
        data |= {"dy": normal_like(rng, y) * valid[:, :, None], "dstate": normal_like(rng, state)}
        results = train(layer, x, data["state"], lengths, **{part: data[part] for part in loss})
        if why_meaningless(meaningful_part(results, valid)) is None:
            break
    assert_meaningful(results, valid)
    return layer, data


def check(layer, data, loss, got):
    """Every gradient in `got`, by name, against differences of `loss()`."""
    arrays = {"grads.x": data["x"]} | {f"grads.{name}": p for name, p in layer.params.items()}
    arrays |= {f"grads.state[{i}]": s for i, s in enumerate(as_tuple(data["state"]))}
    assert arrays.keys() == {name for name in got if name.startswith("grads.")}
    for name, a in arrays.items():
        want = differences(loss, a)
        assert want.any(), f"not a test: {name} has no gradient"
        error = np.abs(got[name] - want).max() / np.abs(want).max()
        assert error <= LIMIT, f"{name}: off by {error:.3g} of its largest element"


def total(y, state, dy, dstate):
    pairs = zip(as_tuple(state), as_tuple(dstate), strict=True)
    return (y * dy).sum() + sum((s * ds).sum() for s, ds in pairs)


@pytest.mark.drawn(1, representatives=4)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lengths", [(STEPS,) * BATCH, (2, 0, STEPS)], ids=["whole", "lengths"])
def test_every_gradient(backend, row, bidirectional, bias, lengths):
    layer, data = draw(row, backend, lengths, bidirectional=bidirectional, bias=bias)

    def loss():
        return total(*layer(data["x"], data["state"], lengths=lengths), data["dy"], data["dstate"])

    check(layer, data, loss, train(layer, **data))


@pytest.mark.drawn(0)
def test_ragged(backend, row):
    lengths = (2, 0, STEPS)
    layer, data = draw(row, backend, lengths, bidirectional=True)
    data["x"], data["dy"] = pack(data["x"], lengths), pack(data["dy"], lengths)

    def loss():
        return total(*layer(data["x"], data["state"], lengths=lengths), data["dy"], data["dstate"])

    check(layer, data, loss, train(layer, **data))


@pytest.mark.drawn(0)
@pytest.mark.parametrize("part", ["dy", "dstate"])
def test_one_part_of_the_loss(backend, row, part):
    """The loss through the outputs alone, and through the final state alone."""
    if part == "dstate" and not row.parts:
        pytest.skip("it has no state")
    lengths = (STEPS,) * BATCH
    layer, data = draw(row, backend, lengths, loss=(part,))
    other = "dstate" if part == "dy" else "dy"
    weights = {"dy": data["dy"], "dstate": data["dstate"], other: map_state(np.zeros_like, data[other])}

    def loss():
        return total(*layer(data["x"], data["state"]), **weights)

    check(layer, data, loss, train(layer, data["x"], data["state"], **{part: data[part]}))


@pytest.mark.parametrize("row", [*REPRESENTATIVES[:-1], row_of("tdnn_tanh")], ids=lambda row: row.id)
def test_dropout(backend, row):
    """The same masks in every evaluation, so the loss is a function of the parameters.

    Not with rectifiers, whose distance from kinks is known only without masks.
    """
    lengths = (STEPS,) * BATCH
    layer, data = draw(row, backend, lengths, dropout=0.4)

    def forward():
        return layer.forward(data["x"], data["state"], rng=np.random.default_rng(5))

    def loss():
        return total(*forward()[:2], data["dy"], data["dstate"])

    got = train(layer, **data, rng=np.random.default_rng(5))
    assert not np.array_equal(got["y"], layer(data["x"], data["state"])[0])
    check(layer, data, loss, got)
