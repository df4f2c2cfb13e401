"""Rank correlations against scipy and statsmodels on the doubled sample."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import pearsonr, rankdata, spearmanr

from stablerank.evaluation.pairs.partial import rank_correlations, signed_ranks


@pytest.fixture
def sample():
    rng = np.random.default_rng(2)
    z_P = rng.normal(0.3, 1, size=150).round(1)  # rounded: ties and zeros
    x_P = (rng.normal(0.2, 1, size=150) - 0.8 * z_P).round(1)
    return x_P, z_P, [str(n // 3) for n in range(150)]


def doubled(values_P):
    return np.concatenate([values_P, -values_P])


def test_they_are_those_of_pairs_both_ways_round(sample):
    x_P, z_P, groups = sample
    found = rank_correlations(x_P, z_P, groups)
    y_P = doubled(np.ones(len(x_P)))
    assert found.with_preference.value == pytest.approx(spearmanr(doubled(x_P), y_P).statistic)
    assert found.with_length.value == pytest.approx(spearmanr(doubled(x_P), doubled(z_P)).statistic)
    length = sm.add_constant(rankdata(doubled(z_P)))
    left_x, left_y = (sm.OLS(rankdata(values), length).fit().resid for values in (doubled(x_P), y_P))
    assert found.given_length.value == pytest.approx(pearsonr(left_x, left_y).statistic)


def test_a_weight_is_a_number_of_copies(sample):
    x_P, _, _ = sample
    counts_P = np.random.default_rng(3).integers(0, 4, size=len(x_P))
    copies_P = np.repeat(x_P, counts_P)
    weighted = signed_ranks(x_P, counts_P[None].astype(float))[0]
    centred = rankdata(doubled(copies_P))[: len(copies_P)] - (2 * len(copies_P) + 1) / 2
    assert np.repeat(weighted, counts_P) == pytest.approx(centred)


def test_intervals_hold_the_estimate_and_follow_groups(sample):
    x_P, z_P, groups = sample
    found = rank_correlations(x_P, z_P, groups)
    for interval in vars(found).values():
        assert interval.low < interval.value < interval.high
        assert interval.problems == 50
    copied = rank_correlations(np.tile(x_P, 4), np.tile(z_P, 4), groups * 4)
    assert copied.given_length.low == pytest.approx(found.given_length.low)


def test_a_score_that_is_length_has_nothing_left(sample):
    _, z_P, groups = sample
    assert np.isnan(rank_correlations(-3 * z_P, z_P, groups).given_length.value)
    assert rank_correlations(-3 * z_P, z_P, groups).with_length.value == pytest.approx(-1)
    assert np.isnan(rank_correlations(np.zeros(150), z_P, groups).with_preference.value)


def test_equal_lengths_leave_the_plain_correlation(sample):
    x_P, _, groups = sample
    found = rank_correlations(x_P, np.zeros(150), groups)
    assert found.given_length.value == found.with_preference.value


def test_undefined_pairs_are_left_out(sample):
    x_P, z_P, groups = sample
    holes_P = np.where(np.arange(150) % 5 == 0, np.nan, x_P)
    kept = np.flatnonzero(~np.isnan(holes_P))
    wanted = rank_correlations(x_P[kept], z_P[kept], [groups[n] for n in kept])
    assert rank_correlations(holes_P, z_P, groups) == wanted
