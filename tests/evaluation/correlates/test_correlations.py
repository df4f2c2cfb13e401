import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr
from statsmodels.stats.multitest import multipletests

from stablerank.errors import DataError
from stablerank.evaluation.correlates.correlations import correlate, correlation


def sample(rng, rows=120):
    z = rng.normal(size=rows)
    x = (z + rng.normal(size=rows)).round(1)
    return x, np.exp(0.5 * z + rng.normal(size=rows)).round(2), z


def residuals(values, control):
    return sm.OLS(values, sm.add_constant(control)).fit().resid


def test_plain_coefficients_agree_with_scipy(rng):
    x, y, _ = sample(rng)
    assert correlation(x, y, "pearson") == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
    assert correlation(x, y, "spearman") == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_given_length_is_the_correlation_of_regression_residuals(rng):
    x, y, z = sample(rng)
    wanted = pearsonr(residuals(x, z), residuals(y, z)).statistic
    assert correlation(x, y, "pearson", z) == pytest.approx(wanted, abs=1e-12)
    x_rank, y_rank, z_rank = rankdata(x), rankdata(y), rankdata(z)
    wanted = pearsonr(residuals(x_rank, z_rank), residuals(y_rank, z_rank)).statistic
    assert correlation(x, y, "spearman", z) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_a_draw_is_the_coefficient_of_the_rows_drawn(seed):
    """Weights stand for repeated rows, ties and ranks included."""
    from stablerank.evaluation.correlates.correlations import _coefficients

    rng = np.random.default_rng(seed)
    x, y, z = sample(rng, 30)
    weights = rng.integers(0, 3, size=(4, 30)).astype(float)
    for coefficient, plain in (("pearson", pearsonr), ("spearman", spearmanr)):
        drawn = _coefficients([x, y], weights, coefficient)
        given_z = _coefficients([x, y, z], weights, coefficient)
        for index, row in enumerate(weights.astype(int)):
            repeated = [np.repeat(column, row) for column in (x, y, z)]
            assert drawn[index] == pytest.approx(plain(*repeated[:2]).statistic, abs=1e-9)
            assert given_z[index] == pytest.approx(correlation(*repeated[:2], coefficient, repeated[2]), abs=1e-9)


def test_a_metric_that_is_length_alone_vanishes_given_length(rng):
    length = rng.normal(size=600)
    metric, score = length + rng.normal(size=600), -length + rng.normal(size=600)
    by_kind = {
        (c.coefficient, c.given_length): c
        for c in correlate(["metric"], metric[:, None], score, length, [str(i) for i in range(600)], draws=400)
    }
    for coefficient in ("pearson", "spearman"):
        raw, given_length = by_kind[coefficient, False], by_kind[coefficient, True]
        assert raw.interval.high < -0.3 and raw.p_holm < 0.05
        assert given_length.interval.low < 0 < given_length.interval.high and given_length.p > 0.05


def test_groups_widen_the_interval_where_their_rows_are_copies(rng):
    x, y, z = sample(rng, 50)
    copied = [np.repeat(column, 4) for column in (x, y, z)]

    def interval(columns, groups):
        return correlate(["m"], columns[0][:, None], *columns[1:], groups, draws=1000)[0].interval

    alone = interval((x, y, z), [str(row) for row in range(50)])
    together = interval(copied, [str(row // 4) for row in range(200)])
    as_rows = interval(copied, [str(row) for row in range(200)])
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert together.problems == 50 and as_rows.high - as_rows.low < 0.7 * (alone.high - alone.low)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    covered = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x_NM = np.repeat(rng.normal(size=(80, 16)), 3, axis=0)
        noise = np.repeat(rng.normal(size=(80, 17)), 3, axis=0)
        y = 0.5 * x_NM.sum(1) + noise[:, 16]
        # Each metric has the score's correlation with its own noisy part of it.
        truth = 0.5 / math.sqrt(2 * (16 * 0.25 + 1))
        groups = [str(row // 3) for row in range(240)]
        found = correlate([str(m) for m in range(16)], x_NM + noise[:, :16], y, noise[:, 0], groups, draws=200)[:16]
        covered += [each.interval.low <= truth <= each.interval.high for each in found]
    assert np.mean(covered) > 0.85


def test_holm_is_taken_over_the_defined_metrics_of_a_kind(rng):
    x, y, z = sample(rng)
    metrics = np.stack([x, x + 3 * rng.normal(size=120), np.ones(120), rng.normal(size=120)], axis=1)
    names = ["a", "b", "constant", "noise"]
    found = correlate(names, metrics, y, z, [str(i) for i in range(120)], draws=500)
    kinds = [("pearson", False), ("spearman", False), ("pearson", True), ("spearman", True)]
    assert [(c.metric, c.coefficient, c.given_length) for c in found] == [(n, *kind) for kind in kinds for n in names]
    for start in range(0, 16, 4):
        family = found[start : start + 4]
        assert math.isnan(family[2].interval.value) and math.isnan(family[2].p) and math.isnan(family[2].p_holm)
        defined = [c for c in family if c.metric != "constant"]
        assert [c.p_holm for c in defined] == pytest.approx(multipletests([c.p for c in defined], method="holm")[1])


def test_rows_that_are_not_finite_leave_their_metric_only(rng):
    x, y, z = sample(rng)
    holed = x.copy()
    holed[::3] = np.nan
    y = y.copy()
    y[1] = np.nan
    found = correlate(["whole", "holed"], np.stack([x, holed], axis=1), y, z, [str(i) for i in range(120)], draws=100)
    assert (found[0].rows, found[1].rows, found[1].interval.problems) == (119, 79, 79)
    keep = np.isfinite(holed) & np.isfinite(y)
    assert found[1].interval.value == pytest.approx(pearsonr(x[keep], y[keep]).statistic, abs=1e-12)


def test_what_length_explains_whole_or_too_few_rows_have_no_coefficient(rng):
    x, y, z = sample(rng)
    assert math.isnan(correlation(2 * z + 1, y, "pearson", z)) and math.isnan(correlation(np.exp(z), y, "spearman", z))
    assert math.isfinite(correlation(np.exp(z), y, "pearson", z))
    assert math.isnan(correlation(x[:4], y[:4], "pearson")) and math.isnan(
        correlation(x, np.full(120, 0.1), "spearman")
    )


def test_columns_of_different_length_are_refused(rng):
    x, y, z = sample(rng)
    with pytest.raises(DataError, match="got 120, 119, 120 and 120; align them"):
        correlate(["m"], x[:, None], y[:-1], z, ["g"] * 120)
