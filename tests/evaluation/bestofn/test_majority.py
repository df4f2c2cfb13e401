"""The majority's answer: equal to counting every subset."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.majority import MOST_ANSWERS, expected_votes

VOTES = st.lists(st.tuples(st.sampled_from([None, 0, 1, 2, 3]), st.floats(-3, 3)), min_size=1, max_size=8)


@given(VOTES)
def test_equals_the_mean_over_all_subsets(enumerated, votes):
    classes, values = zip(*votes, strict=True)
    np.testing.assert_allclose(expected_votes(classes, values), enumerated["majority"](classes, values), atol=1e-12)


@given(VOTES, st.randoms())
def test_neither_order_nor_names_of_the_classes_matter(votes, rng):
    classes, values = zip(*votes, strict=True)
    order = rng.sample(range(len(values)), len(values))
    names = {None: None, 0: 7, 1: 3, 2: 0, 3: 1}
    moved = expected_votes([names[classes[at]] for at in order], [values[at] for at in order])
    np.testing.assert_allclose(moved, expected_votes(classes, values), atol=1e-12)


def test_two_camps_are_a_hypergeometric_draw():
    """For 120 right and 80 wrong answers the right ones lead with the probability that scipy gives."""
    total, right = 200, 120
    found = expected_votes([0] * right + [1] * (total - right), [1.0] * right + [0.0] * (total - right))
    for drawn in (1, 2, 9, 10, 101, 200):
        camp = hypergeom(total, right, drawn)
        wanted = camp.sf(drawn // 2) + (camp.pmf(drawn // 2) / 2 if drawn % 2 == 0 else 0)
        assert found[drawn - 1] == pytest.approx(wanted, rel=1e-9)


def test_votes_of_one_or_two_say_nothing():
    found = expected_votes([0, 0, 1, 2], [1, 1, 0, 0])
    assert found[:2] == pytest.approx([0.5, 0.5])
    assert found[2] > 0.5
    assert found[3] == 1


def test_where_nobody_votes_any_answer_is_taken():
    assert expected_votes([None, None, None], [1, 0, 0]).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("classes", [[], [0] * (MOST_ANSWERS + 1)])
def test_none_and_too_many_are_refused(classes):
    with pytest.raises(DataError, match=f"1 to {MOST_ANSWERS} answers"):
        expected_votes(classes, [0.0] * len(classes))
