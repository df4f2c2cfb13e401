"""The cluster bootstrap against scipy's, and against itself on repeated data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from stablerank.evaluation.pairs.resampling import (
    divided,
    draw_counts,
    interval_of,
    percentile_interval,
    resampled_sums,
)


def mean_columns(values_P):
    return np.stack([values_P, np.ones_like(values_P)], axis=1)


def ratio(sums):
    return divided(sums[..., 0], sums[..., 1])


@pytest.fixture
def clustered():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(80), rng.integers(1, 6, size=80))
    return (rng.normal(size=80)[groups] + rng.normal(size=len(groups)) > 0).astype(float), groups.astype(str).tolist()


def test_bounds_are_scipys_of_a_paired_ratio_over_groups(clustered):
    values_P, groups_P = clustered
    names = sorted(set(groups_P))
    totals = [sum(v for v, g in zip(values_P, groups_P, strict=True) if g == name) for name in names]
    sizes = [groups_P.count(name) for name in names]
    wanted = bootstrap(
        (totals, sizes),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(3),
    ).confidence_interval
    found = interval_of(ratio, mean_columns(values_P), groups_P)
    assert found.value == pytest.approx(values_P.mean())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)
    assert found.problems == 80


def test_copies_of_a_pair_within_its_group_add_no_certainty(clustered):
    values_P, groups_P = clustered
    once = interval_of(ratio, mean_columns(values_P), groups_P)
    copied = interval_of(ratio, mean_columns(np.tile(values_P, 5)), groups_P * 5)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    alone = [str(n) for n in range(5 * len(groups_P))]
    assert np.ptp([*vars(interval_of(ratio, mean_columns(np.tile(values_P, 5)), alone)).values()][1:3]) < 0.6 * (
        once.high - once.low
    )


@given(groups=st.integers(1, 40), draws=st.integers(1, 30), seed=st.integers(0, 9))
def test_every_draw_has_as_many_groups_as_there_are(groups, draws, seed):
    counts_BG = np.concatenate(list(draw_counts(groups, draws, seed)))
    assert counts_BG.shape == (draws, groups)
    assert (counts_BG.sum(axis=1) == groups).all()


def test_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch, clustered):
    values_P, groups_P = clustered
    whole = resampled_sums(mean_columns(values_P), groups_P, draws=50)
    monkeypatch.setattr("stablerank.evaluation.pairs.resampling._NUMBERS_AT_ONCE", 700)
    assert np.array_equal(resampled_sums(mean_columns(values_P), groups_P, draws=50), whole)


def test_too_few_defined_draws_have_no_bounds():
    draws_B = np.where(np.arange(100) < 90, 0.5, np.nan)
    assert np.isnan([percentile_interval(0.5, draws_B, 9).low, percentile_interval(0.5, draws_B, 9).high]).all()
    assert percentile_interval(0.5, np.where(np.arange(100) < 96, 0.5, np.nan), 9).low == 0.5


def test_one_group_cannot_be_resampled():
    found = interval_of(ratio, mean_columns(np.array([1.0, 0.0, 1.0])), ["a"] * 3)
    assert found.value == pytest.approx(2 / 3)
    assert np.isnan([found.low, found.high]).all()
