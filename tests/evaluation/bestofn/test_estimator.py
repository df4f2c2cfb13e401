"""Best-of-N from one pool: equal to enumerating the subsets, and what must hold for any scores."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.estimator import expected_picks, subset_share
from stablerank.evaluation.pass_at_k import pass_at_k

SCORES = st.sampled_from([-2.0, 0.0, 0.5, 3.0, math.nan])
ANSWERS = st.lists(st.tuples(SCORES, st.floats(-3, 3)), min_size=1, max_size=7)


@given(ANSWERS)
def test_equals_the_mean_over_all_subsets(enumerated, answers):
    scores, values = zip(*answers, strict=True)
    np.testing.assert_allclose(expected_picks(scores, values), enumerated["best"](scores, values), atol=1e-12)


@given(ANSWERS, st.randoms())
def test_neither_order_nor_scale_of_the_scores_matters(answers, rng):
    scores, values = map(np.array, zip(*answers, strict=True))
    order = rng.sample(range(len(values)), len(values))
    moved = expected_picks(3 * scores[order] ** 3 + scores[order], values[order])
    np.testing.assert_allclose(moved, expected_picks(scores, values), atol=1e-12)


@given(ANSWERS)
def test_one_answer_is_any_answer_and_all_of_them_give_the_best(answers):
    scores, values = map(np.array, zip(*answers, strict=True))
    found = expected_picks(scores, values)
    assert found[0] == pytest.approx(values.mean())
    best = np.isnan(scores) if np.isnan(scores).all() else scores == np.nanmax(scores)
    assert found[-1] == pytest.approx(values[best].mean())


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_correctness_as_its_own_score_is_pass_at_k(right):
    wanted = [pass_at_k([right], tries)[0] for tries in range(1, len(right) + 1)]
    np.testing.assert_allclose(expected_picks(right, right), wanted, atol=1e-12)


def test_nothing_to_tell_apart_is_the_mean_at_every_n():
    for level in (0.0, math.nan):
        np.testing.assert_allclose(expected_picks([level] * 5, [1, 0, 0, 1, 0]), [0.4] * 5)


def test_a_nan_is_picked_where_nothing_else_is_there():
    assert expected_picks([math.nan, -1e300], [1, 0]).tolist() == [0.5, 0.0]
    assert expected_picks([math.nan, -math.inf], [1, 0]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("total", [16, 1100])
def test_the_weights_are_those_of_order_statistics(total):
    """Answer of rank r is picked with C(r - 1, N - 1) / C(M, N), exactly, where coefficients no longer fit in fp64."""
    for rank in (1, total // 2, total):
        found = expected_picks(range(total), [float(at == rank - 1) for at in range(total)])
        for drawn in (1, 2, total // 2, total):
            exact = Fraction(math.comb(rank - 1, drawn - 1), math.comb(total, drawn))
            assert found[drawn - 1] == pytest.approx(float(exact), rel=1e-10, abs=1e-15)


def test_shares_of_subsets_are_exact():
    for count in range(7):
        wanted = [math.comb(count, drawn) / math.comb(6, drawn) for drawn in range(1, 7)]
        np.testing.assert_allclose(subset_share(count, 6), wanted, atol=1e-15)


def test_a_score_that_orders_better_picks_better():
    """A sanity check of direction: the larger score wins, so agreement with the value must not hurt."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    clean, noisy = values, values + 3 * rng.normal(size=40)
    assert kendalltau(clean, values).statistic > kendalltau(noisy, values).statistic
    assert (expected_picks(clean, values)[1:] > expected_picks(noisy, values)[1:] - 1e-12).all()
    assert (np.diff(expected_picks(clean, values)) > 0).all()


@pytest.mark.parametrize(("scores", "values"), [([], []), ([1, 2], [1]), ([[1, 2]], [[1, 0]])])
def test_what_is_no_pool_is_refused(scores, values):
    with pytest.raises(DataError, match="one score and one value"):
        expected_picks(scores, values)
