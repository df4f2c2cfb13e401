from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, page_trend_test

from stablerank.studies.concordance import concordance


def score(column):
    return sum(np.sign(later - earlier) for at, later in enumerate(column) for earlier in column[:at])


def brute_force(value_KS):
    """The share of all ways to reorder each seed's arms whose score is as large."""
    scores = [[score(order) for order in permutations(column)] for column in value_KS.T]
    sums = np.array([sum(choice) for choice in product(*scores)])
    return (sums >= sum(score(column) for column in value_KS.T)).mean()


@given(arrays(float, st.tuples(st.integers(3, 4), st.integers(1, 3)), elements=st.integers(0, 4).map(float)))
def test_is_the_permutation_test_with_and_without_ties(value_KS):
    assert concordance(value_KS)[1] == pytest.approx(brute_force(value_KS), abs=1e-12)


@given(arrays(float, st.integers(3, 8), elements=st.floats(-9, 9), unique=True))
def test_one_seed_is_scipys_exact_kendall(value_K):
    oracle = kendalltau(np.arange(len(value_K)), value_K, method="exact", alternative="greater")
    tau, p = concordance(value_K[:, None])
    assert (tau, p) == pytest.approx((oracle.statistic, oracle.pvalue), abs=1e-9)


def test_perfect_order_is_as_rare_as_pages():
    value_KS = np.arange(4.0)[:, None] + np.zeros((1, 3))
    assert concordance(value_KS) == (1.0, pytest.approx(page_trend_test(value_KS.T, method="exact").pvalue))
    assert concordance(value_KS[::-1]) == (-1.0, pytest.approx(1.0))


def test_all_equal_is_no_evidence():
    assert concordance(np.ones((5, 3))) == (0.0, pytest.approx(1.0))


def test_many_arms_and_seeds_take_the_normal_limit():
    from scipy.stats import norm

    rng, arms, seeds = np.random.default_rng(0), 12, 200
    value_KS = rng.normal(size=(arms, seeds)) + 0.02 * np.arange(arms)[:, None]
    tau, p = concordance(value_KS)
    variance = seeds * arms * (arms - 1) * (2 * arms + 5) / 18
    assert p == pytest.approx(norm.sf(tau * seeds * arms * (arms - 1) / 2 / variance**0.5), abs=2e-3)
