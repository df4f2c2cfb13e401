import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from stablerank.studies.intervals import LEAST_ALPHA, Share, crossed_mean, crossed_share, error_rate

RNG = np.random.default_rng(0)


def long(value_SU):
    """Values, seed codes and unit codes of a complete design."""
    seed, unit = np.indices(value_SU.shape)
    return value_SU.ravel(), seed.ravel(), unit.ravel()


def crossed(seeds, units, between, shared, within, rng=RNG):
    return (
        between * rng.normal(size=(seeds, 1))
        + shared * rng.normal(size=(1, units))
        + within * rng.normal(size=(seeds, units))
    )


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_seeds_alone_are_students_interval(alpha):
    value_S = RNG.normal(3.0, 2.0, 7)
    bounds = crossed_mean(value_S, np.arange(7), None)
    oracle = stats.ttest_1samp(value_S, 0.0).confidence_interval(1 - alpha)
    assert bounds.interval(alpha) == pytest.approx((oracle.low, oracle.high))


@pytest.mark.parametrize("threshold", [2.0, 3.5, 9.0])
def test_error_rate_is_students_p(threshold):
    value_S = RNG.normal(3.0, 2.0, 7)
    bounds = crossed_mean(value_S, np.arange(7), None)
    oracle = stats.ttest_1samp(value_S, threshold)
    above = value_S.mean() > threshold
    assert error_rate(bounds, threshold, above=above) == pytest.approx(oracle.pvalue, rel=1e-6)
    assert error_rate(bounds, threshold, above=not above) == 1.0


def test_equal_units_leave_the_seeds_error_and_equal_seeds_the_units():
    value_S, value_U = RNG.normal(size=4), RNG.normal(size=9)
    of_seeds = crossed_mean(*long(np.repeat(value_S[:, None], 9, 1)))
    of_units = crossed_mean(*long(np.repeat(value_U[None], 4, 0)))
    for bounds, values in ((of_seeds, value_S), (of_units, value_U)):
        oracle = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert bounds.interval(0.05) == pytest.approx((oracle.low, oracle.high))


def test_many_seeds_and_units_agree_with_the_bootstrap_of_both():
    """The pigeonhole bootstrap (Owen 2007) draws seeds and units anew, each with all that belongs to it."""
    value_SU = crossed(40, 60, 0.5, 1.0, 0.3)
    draws = [value_SU[np.ix_(RNG.integers(40, size=40), RNG.integers(60, size=60))].mean() for _ in range(4000)]
    low, high = crossed_mean(*long(value_SU)).interval(0.05)
    oracle = np.quantile(draws, [0.025, 0.975])
    assert (low, high) == pytest.approx(oracle, abs=0.1 * np.ptp(oracle))


def test_missing_units_change_weights_not_the_meaning():
    value_SU = crossed(3, 30, 0.1, 1.0, 0.1)
    value_R, seed_R, unit_R = long(value_SU)
    kept = ~((seed_R == 1) & (unit_R < 10))
    bounds = crossed_mean(value_R[kept], seed_R[kept], unit_R[kept])
    assert bounds.estimate == pytest.approx(np.mean([value_SU[0].mean(), value_SU[1, 10:].mean(), value_SU[2].mean()]))
    assert bounds.units.degrees == 29


def test_units_of_one_seed_each_still_give_an_interval_no_narrower_than_the_seeds():
    value_SU = crossed(4, 10, 0.5, 0.0, 1.0)
    value_R, seed_R, unit_R = long(value_SU)
    nested = crossed_mean(value_R, seed_R, seed_R * 10 + unit_R)
    oracle = stats.ttest_1samp(value_SU.mean(axis=1), 0.0).confidence_interval(0.95)
    low, high = nested.interval(0.05)
    assert low < oracle.low < oracle.high < high


@pytest.mark.parametrize("shape", [(1, 30), (3, 1), (1, 1)])
def test_one_seed_or_one_unit_says_nothing_of_others(shape):
    bounds = crossed_mean(*long(np.full(shape, 2.0)))
    assert bounds.estimate == 2.0
    assert bounds.interval(0.05) == (-math.inf, math.inf)
    assert error_rate(bounds, 0.0, above=True) == 1.0


def test_measurements_all_alike_are_sure_and_verdicts_all_alike_are_not():
    alike = long(np.zeros((3, 40)))
    assert crossed_mean(*alike).interval(0.05) == (0.0, 0.0)
    assert error_rate(crossed_mean(*alike), -1e-9, above=True) == LEAST_ALPHA
    low, high = crossed_mean(*alike, scale=1.0).interval(0.05)
    exact = stats.binomtest(40, 40).proportion_ci(0.95).low
    assert (low, high) == pytest.approx((exact - 1, 1 - exact))


def test_verdicts_are_never_surer_than_clopper_pearson_nor_than_student():
    value_U = (RNG.random(50) < 0.1).astype(float)
    alike_in_every_seed = long(np.repeat(value_U[None], 3, 0))
    low, high = crossed_mean(*alike_in_every_seed, scale=1.0).interval(0.05)
    exact = stats.binomtest(int(value_U.sum()), 50).proportion_ci(0.95)
    student = crossed_mean(*alike_in_every_seed).interval(0.05)
    assert low <= min(exact.low, student[0]) + 1e-12
    assert high >= max(exact.high, student[1]) - 1e-12


@pytest.mark.parametrize("ones", [0, 1, 13, 50])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_share_of_independent_trials_is_clopper_pearson(ones, alpha):
    value_S = np.arange(50) < ones
    bounds = crossed_share(value_S.astype(float), np.arange(50), None)
    assert bounds.interval(alpha) == pytest.approx(proportion_confint(ones, 50, alpha, method="beta"))
    assert Share(ones / 50, 50).interval(alpha) == bounds.interval(alpha)


def test_a_share_counts_a_problem_once_however_many_seeds_ask_it():
    value_U = (np.arange(40) < 26).astype(float)
    asked_once = crossed_share(value_U, np.arange(40), None)
    asked_thrice = crossed_share(*long(np.repeat(value_U[None], 3, 0)))
    assert asked_thrice.trials(0.05) == pytest.approx(40, rel=0.1)
    assert asked_thrice.trials(0.05) <= 40
    assert asked_thrice.interval(0.05) == pytest.approx(asked_once.interval(0.05), abs=0.02)


def test_a_share_that_differs_between_seeds_is_worth_little():
    value_SU = np.concatenate([np.zeros((1, 200)), np.ones((2, 200))])
    low, high = crossed_share(*long(value_SU)).interval(0.05)
    assert low < 0.1 and high == pytest.approx(1.0, abs=0.01)
