"""A column as a series: ends, noise and onsets, held against numpy, scipy and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stablerank.dynamics.causes.series import STAYS, Series, series

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


def of(values) -> Series:
    return Series(np.arange(1, len(values) + 1), np.asarray(values, float))


def test_what_is_not_finite_is_left_out():
    kept = series([1, 2, 3, 4], [math.nan, 1.0, math.inf, 2.0])
    assert kept.step_S.tolist() == [2, 4]
    assert kept.value_S.tolist() == [1.0, 2.0]
    assert series([1], [math.nan]) is None


@given(VALUES)
def test_the_ends_never_overlap_and_are_means(values):
    found = of(values)
    window = found.window
    assert 1 <= window <= 5 and (2 * window <= len(values) or len(values) == 1)
    assert found.opening == pytest.approx(np.mean(values[:window]))
    assert found.closing == pytest.approx(np.mean(values[-window:]))
    means = [np.mean(values[at : at + window]) for at in range(len(values) - window + 1)]
    assert found.peak == pytest.approx(max(means))


def test_noise_is_the_deviation_of_normal_rows_with_and_without_a_trend():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 2.0, 4000)
    for trend in (0.0, 0.01):
        assert of(rows + trend * np.arange(4000)).noise == pytest.approx(2.0, rel=0.05)


def test_a_change_is_a_standard_normal_where_nothing_changes():
    rng = np.random.default_rng(1)
    changes = [of(rng.normal(size=200)).change for _ in range(2000)]
    assert stats.kstest(changes, "norm").pvalue > 0.01


def test_a_constant_has_no_change_and_a_jump_without_noise_an_infinite_one():
    assert of([2.0] * 12).change == 0.0
    assert of([2.0] * 12).is_constant
    step = Series(np.arange(2), np.array([0.0, 0.0]))
    assert step.change == 0.0
    assert not of([0, 0, 0, 1]).is_constant


@settings(max_examples=200)
@given(st.lists(st.booleans(), min_size=3, max_size=25))
def test_since_is_the_first_step_from_which_most_rows_hold(mask):
    found = of([0.0] * len(mask))
    tail = mask[-found.window :]
    wanted = next(
        (at + 1 for at in range(len(mask)) if mask[at] and np.mean(mask[at:]) >= STAYS),
        None,
    )
    assert found.since(np.array(mask)) == (wanted if np.mean(tail) >= STAYS else None)


def test_four_rows_of_five_are_enough_to_stay_and_fewer_are_not():
    assert of([0.0] * 10).since(np.array([0, 0, 0, 0, 0, 1, 0, 1, 1, 1], bool)) == 6
    assert of([0.0] * 10).since(np.array([0, 0, 0, 0, 1, 0, 0, 1, 1, 1], bool)) == 8


def test_means_near_and_after_a_step():
    found = Series(np.array([10, 20, 30, 40, 50, 60]), np.array([1.0, 2, 3, 4, 5, 6]))
    assert found.window == 2
    assert found.near(30) == 2.5
    assert found.near(5) == 1.5
    assert found.after(40) == 4.5
    assert found.after(99) == 5.5
    assert found.between(20, 40) == 3.0
    assert math.isnan(found.between(41, 49))
    assert found.before(60) == 20
