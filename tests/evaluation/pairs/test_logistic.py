"""The regression against statsmodels' GLM on pairs in a random order, and its statuses."""

import numpy as np
import pytest
import statsmodels.api as sm

from stablerank.evaluation.pairs.logistic import length_regression


@pytest.fixture
def sample():
    """Pairs that prefer by both: 1.2 a unit of score, -0.6 a unit of log length."""
    rng = np.random.default_rng(4)
    first, length = rng.normal(size=(2, 4_000))
    is_first = rng.random(4_000) < 1 / (1 + np.exp(-(1.2 * first - 0.6 * length)))
    sign = np.where(is_first, 1, -1)
    return sign * first, sign * length, [str(n // 4) for n in range(4_000)]


def test_any_order_of_the_two_responses_gives_the_same_estimate_and_errors(sample):
    x_P, z_P, groups = sample
    found = length_regression(x_P, z_P, groups)
    order_P = np.random.default_rng(6).choice([-1, 1], size=len(x_P))
    columns = (order_P * np.stack([x_P / np.sqrt((x_P**2).mean()), z_P / np.sqrt((z_P**2).mean())])).T
    oracle = sm.GLM((order_P > 0).astype(float), columns, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.asarray(groups, dtype=int)}
    )
    assert found.status == "fitted"
    for interval, value, bounds in zip((found.score, found.length), oracle.params, oracle.conf_int(), strict=True):
        assert interval.value == pytest.approx(value, rel=1e-5)
        assert (interval.low, interval.high) == pytest.approx(bounds, rel=1e-3)
        assert interval.problems == 1_000


def test_it_finds_what_made_the_preferences(sample):
    found = length_regression(*sample)
    assert found.score.low < 1.2 < found.score.high
    assert found.length.low < -0.6 < found.length.high


def test_a_score_that_only_follows_length_gets_nothing(biased):
    chosen_P, rejected_P, groups, rng = biased
    ratios_P = np.log(chosen_P / rejected_P)
    found = length_regression(rng.normal(scale=0.5, size=len(ratios_P)) - ratios_P, ratios_P, groups)
    assert found.score.low < 0 < found.score.high
    assert found.length.high < 0


@pytest.mark.parametrize(
    ("x_P", "z_P", "groups", "status"),
    [
        (np.zeros(40), np.arange(40.0), 40, "constant"),
        (np.arange(40.0), np.zeros(40), 40, "constant"),
        (-2 * np.arange(40.0), np.arange(40.0), 40, "collinear"),
        (np.linspace(1, 2, 40), np.cos(np.arange(40)), 40, "separated"),
        (np.cos(np.arange(40)), np.sin(np.arange(40)), 9, "too_few_groups"),
        (np.full(40, np.nan), np.arange(40.0), 40, "too_few_groups"),
    ],
)
def test_what_cannot_be_estimated_says_why(x_P, z_P, groups, status):
    found = length_regression(x_P, z_P, [str(n % groups) for n in range(40)])
    assert found.status == status
    assert np.isnan(found.score.value)
