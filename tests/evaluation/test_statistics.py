import math

import numpy as np
import pytest
from scipy.stats import binomtest, t

from stablerank.errors import DataError
from stablerank.evaluation.statistics import mean_interval, paired_difference

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("right", [60, 300, 590])
def test_right_or_wrong_agrees_with_wilson(right):
    interval = mean_interval([1.0] * right + [0.0] * (600 - right))
    wilson = binomtest(right, 600).proportion_ci(method="wilson")
    assert interval.value == pytest.approx(right / 600) and interval.problems == 600
    assert (interval.low, interval.high) == pytest.approx((wilson.low, wilson.high), abs=0.005)


def test_real_values_agree_with_student():
    values = RNG.normal(3.0, 2.0, 400)
    interval = mean_interval(values.tolist())
    low, high = t.interval(0.95, 399, loc=values.mean(), scale=values.std(ddof=1) / 20)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.02)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 20, 600])
def test_all_right_or_all_wrong_is_clopper_pearson(value, count):
    interval = mean_interval([value] * count)
    exact = binomtest(int(value) * count, count).proportion_ci(method="exact")
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert interval.value == value


def test_no_change_on_few_problems_is_weak_evidence():
    few, many = paired_difference([1, 0] * 3, [1, 0] * 3), paired_difference([1, 0] * 300, [1, 0] * 300)
    assert few.value == many.value == 0
    assert few.low < -0.4 and few.high > 0.4 and -0.01 < many.low < 0 < many.high < 0.01


def test_pairing_removes_the_spread_between_problems():
    before = RNG.normal(0.0, 5.0, 300)
    after = before + RNG.normal(0.3, 0.1, 300)
    paired = paired_difference(before.tolist(), after.tolist())
    apart = mean_interval(after.tolist())
    assert 0.28 < paired.low < 0.3 < paired.high < 0.32
    assert apart.high - apart.low > 30 * (paired.high - paired.low)


def test_unscorable_problems_leave_both_sides():
    interval = paired_difference([0.0, math.nan, 0.0, 1.0], [1.0, 1.0, math.nan, 1.0])
    assert (interval.value, interval.problems) == (0.5, 2)
    assert mean_interval([math.nan, 1.0, 0.0, 0.0, 1.0]).value == 0.5


def test_the_same_values_give_the_same_interval():
    values = RNG.random(50).tolist()
    assert mean_interval(values) == mean_interval(values)


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_nothing_to_average_is_refused(values):
    with pytest.raises(DataError, match=f"none of {len(values)} problems could be scored"):
        mean_interval(values)


def test_different_problems_are_refused():
    with pytest.raises(DataError, match="2 before and 1 after"):
        paired_difference([0.0, 1.0], [1.0])
