"""The suite's own comparisons: each refuses what it is there to refuse."""

import numpy as np
import pytest
from helpers import ROWS, assert_close, assert_meaningful, assert_same_bits, poison

from fastrnn import _core

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
