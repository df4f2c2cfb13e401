"""Accuracy, ties and undefined pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from stablerank.evaluation.pairs.agreement import agreement, credits_of

SCORES = arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([0.0, 1.0, 2.0, np.inf, -np.inf, np.nan]))


@given(SCORES, st.randoms(use_true_random=False))
def test_a_pair_and_its_mirror_share_one_point(chosen_P, random):
    rejected_P = np.array(random.sample(chosen_P.tolist(), len(chosen_P)))
    forward, back = credits_of(chosen_P, rejected_P), credits_of(rejected_P, chosen_P)
    undefined = np.isnan(chosen_P) | np.isnan(rejected_P)
    assert np.array_equal(np.isnan(forward), undefined)
    assert (forward + back)[~undefined] == pytest.approx(1)
    lost = credits_of(chosen_P, rejected_P, "lose") + credits_of(rejected_P, chosen_P, "lose")
    assert np.array_equal(lost[~undefined] == 0, (chosen_P == rejected_P)[~undefined])


def test_ties_and_undefined_pairs_are_told():
    chosen, rejected = np.array([1.0, 2, 3, np.nan, 5, 0]), np.array([0.0, 2, 4, 1, np.nan, 0])
    found = agreement(chosen, rejected, list("abcdef"))
    assert (found.accuracy.value, found.tie_rate, found.pairs, found.undefined) == (0.5, 0.5, 4, 2)
    assert agreement(chosen, rejected, list("abcdef"), "lose").accuracy.value == 0.25
    assert found.accuracy.low < 0.5 < found.accuracy.high


def test_a_score_without_a_miss_has_the_exact_lower_bound_over_groups():
    groups = [str(n // 2) for n in range(40)]
    found = agreement(np.ones(40), np.zeros(40), groups)
    assert (found.accuracy.value, found.accuracy.high, found.accuracy.problems) == (1, 1, 20)
    assert found.accuracy.low == pytest.approx(binomtest(20, 20).proportion_ci(method="exact").low)


def test_nothing_scored_is_not_a_number():
    found = agreement(np.array([np.nan]), np.array([1.0]), ["a"])
    assert np.isnan([found.accuracy.value, found.accuracy.low, found.tie_rate]).all()
    assert (found.pairs, found.undefined) == (0, 1)
