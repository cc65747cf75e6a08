"""The suite's own comparisons: each refuses what it is there to refuse."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    MOST_DRAWN,
    REPRESENTATIVES,
    ROWS,
    assert_close,
    assert_meaningful,
    assert_same_bits,
    drawn,
    enliven,
    make,
    normal,
    normal_like,
    numbered,
    poison,
)

from fastrnn import _core, reference

GOOD = np.array([[1.0, -2.0], [0.5, 3.0]])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (GOOD * 0, "mostly zeros"),
        (np.eye(9), "mostly zeros"),
        (GOOD * 1e-9, "vanished"),
        (GOOD * np.nan, "not finite"),
        (GOOD[:0], "empty"),
    ],
)
def test_a_comparison_that_proves_nothing_fails(bad, reason):
    assert_meaningful({"y": GOOD})
    with pytest.raises(pytest.fail.Exception, match=f"not a test: grads.x .*{reason}"):
        assert_meaningful({"y": GOOD, "grads.x": bad})


def test_padding_does_not_count_as_zeros():
    padded = np.zeros((9, 2, 2))
    padded[0] = GOOD
    assert_meaningful({"y": padded}, padded[..., 0] != 0)


def test_closeness_has_a_limit_for_each_kind():
    assert_close({"y": GOOD * (1 + 1e-9)}, {"y": GOOD}, forward=1e-8, gradient=0)
    for bad in (GOOD * (1 + 1e-7), GOOD * np.nan):
        with pytest.raises(AssertionError, match="y: normalised error"):
            assert_close({"y": bad}, {"y": GOOD}, forward=1e-8, gradient=1)
    with pytest.raises(AssertionError, match=r"grads\.x: normalised error"):
        assert_close({"grads.x": GOOD * 1e-30}, {"grads.x": GOOD * 0}, forward=1, gradient=1e-8)


def test_one_bit_is_a_difference():
    assert_same_bits({"y": poison(GOOD[:, :, None], [2, 1])}, {"y": poison(GOOD[:, :, None], [2, 1])})
    for other in (np.nextafter(GOOD, 9), np.where(GOOD == 1, -GOOD, GOOD)):
        with pytest.raises(AssertionError, match="elements differ"):
            assert_same_bits({"y": other}, {"y": GOOD})
    with pytest.raises(AssertionError, match="1 of 1 elements differ"):
        assert_same_bits({"y": np.array([-0.0])}, {"y": np.array([0.0])})


def test_every_cell_of_the_c_table_has_a_row():
    assert {row.cell for row in ROWS} == set(_core.cells())
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", REPRESENTATIVES, ids=lambda row: row.id)
def test_enlivened_layers_stay_alive(row, rng):
    """States, gates and gradients over fifty steps: none is saturated for good, or gone."""
    layer = enliven(make(row, reference, 11, 24, 2, dtype=np.float64), row, rng)
    y, state, tape = layer.forward(normal(rng, (50, 4, 11)))
    grads = layer.backward(tape, dstate=normal_like(rng, state)) if row.parts else layer.backward(tape, y)
    assert_meaningful({"x": grads.x, **numbered("state", grads.state), **grads.params})
    for record in (getattr(tape, name) for name in row.records):
        for a in record:
            assert np.median(a.std(axis=0)) > 0.01  # they change in time
            assert np.median(np.abs(a)) < 5


@pytest.mark.parametrize("others", [0, 1, 2, 100])
def test_what_is_drawn(others):
    """The same every time; as much as is asked for, and more with the representatives."""

    class Item:
        def __init__(self, row, number):
            self.nodeid, self.row = f"file::test[{row.id}-{number}]", row
            self.callspec = SimpleNamespace(params={"row": row, "number": number})

        def get_closest_marker(self, name):
            return pytest.mark.drawn(others).mark

    items = [Item(row, number) for row in ROWS for number in range(5)]
    chosen = drawn(items)
    assert chosen == drawn(items[::-1])
    for row in ROWS:
        count = sum(item.row is row for item in chosen)
        assert count == min(5, MOST_DRAWN if row in REPRESENTATIVES else others)
