import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.evaluation.correlates.significance import FEWEST_GROUPS, holm, sign_p_value
from stablerank.evaluation.pairs.resampling import percentile_interval


@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_p_and_interval_agree_on_zero(seed, centre):
    draws = np.random.default_rng(seed).normal(centre, 1, 400)
    interval, p = percentile_interval(centre, draws, 50), sign_p_value(draws, 50)
    if p < 0.05:
        assert interval.low > 0 or interval.high < 0
    if p > 0.06:
        assert interval.low <= 0 <= interval.high


def test_p_is_never_below_what_the_draws_can_tell():
    assert sign_p_value(np.ones(999), 50) == 2 / 1000
    assert sign_p_value(np.zeros(999), 50) == 1
    assert sign_p_value(np.array([-1.0, 1.0] * 500), 50) == 1


@pytest.mark.parametrize(
    ("draws", "groups"),
    [(np.ones(100), FEWEST_GROUPS - 1), (np.empty(0), 50), (np.array([1.0] * 94 + [np.nan] * 6), 50)],
)
def test_no_p_without_groups_or_draws(draws, groups):
    assert math.isnan(sign_p_value(draws, groups))


def test_holm_leaves_out_what_is_not_defined():
    """Holm 1979 by hand: 0.01 x 3, then 0.03 x 2, then the larger of 0.04 x 1 and the one before."""
    assert holm([0.04, math.nan, 0.01, 0.03]) == pytest.approx([0.06, math.nan, 0.03, 0.06], nan_ok=True)
    assert all(map(math.isnan, holm([math.nan]))) and holm([]) == []
