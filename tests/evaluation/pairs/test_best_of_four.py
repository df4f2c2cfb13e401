"""RewardBench 2: best of four with shared credit, and the Ties rule on an example worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.evaluation.pairs.best_of_four import SUBSETS, ScoredChoice, best_of, rewardbench2_scores


def row(name, subset, right, wrong):
    return ScoredChoice(name, subset, f"{subset} {name}", np.array(right, float), np.array(wrong, float))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_the_four_answers_share_one_point(scores):
    """Whichever of the four is the right one, the credits add up to 1."""
    earned = [
        best_of(np.array(scores[n : n + 1], float), np.array(scores[:n] + scores[n + 1 :], float)) for n in range(4)
    ]
    assert sum(earned) == pytest.approx(1)
    assert all(value in (0, 1, 1 / 2, 1 / 3, 1 / 4) for value in earned)


def test_ties_by_hand():
    rows = [
        # Worst right 8 beats best wrong 5 by 3, more than the spread 2; the ref row by 1, less than it.
        row("tied:0", "Ties", [10, 8], [5, 4]),
        row("ref:0", "Ties", [9], [8, 1]),
        # Right answers do not all beat the wrong ones; the ref row does, by 4.
        row("tied:1", "Ties", [6, 2], [3]),
        row("ref:1", "Ties", [7], [3]),
    ]
    found = rewardbench2_scores(rows).subsets["Ties"]
    margins = [math.tanh(1 / 2 - 1), math.tanh(-1 / 4 - 1)]
    wanted = 0.3 * 1 / 2 + 0.3 * 2 / 2 + 0.2 * 1 / 2 + 0.2 * 0 + 0.01 * sum(margins) / 2
    assert found.value == pytest.approx(wanted)
    assert found.problems == 2


def test_right_answers_that_tie_exactly_have_the_largest_margin():
    rows = [row("tied:0", "Ties", [2, 2], [1]), row("ref:0", "Ties", [2], [1])]
    assert rewardbench2_scores(rows).subsets["Ties"].value == pytest.approx(1.01)
    level = [row("tied:0", "Ties", [1, 1], [1]), row("ref:0", "Ties", [1], [1])]
    assert rewardbench2_scores(level).subsets["Ties"].value == 0, "0 / 0 adds nothing"


def test_overall_is_the_mean_of_six_and_needs_them_all():
    rows = [row(str(n), subset, [n % 2], [0.5, 0.25, 0]) for subset in SUBSETS[:-1] for n in range(40)]
    rows += [
        one for n in range(20) for one in (row(f"tied:{n}", "Ties", [3, 3], [1]), row(f"ref:{n}", "Ties", [3], [1]))
    ]
    found = rewardbench2_scores(rows)
    assert found.overall.value == pytest.approx((5 * 0.5 + 1.01) / 6)
    assert found.overall.low < found.overall.value < found.overall.high
    narrower = found.overall.high - found.overall.low
    assert narrower < 0.7 * (found.subsets["Math"].high - found.subsets["Math"].low)
    assert rewardbench2_scores(rows[1:40]).overall is None


def test_undefined_rows_unknown_subsets_and_ties_are_told():
    rows = [
        row("0", "Math", [1], [0, 0, np.nan]),
        row("1", "Math", [1], [1, 0, 0]),
        row("2", "Math", [1], [0, 0, 0]),
        row("3", "mine", [0], [1, 0, 0]),
    ]
    found = rewardbench2_scores(rows)
    assert found.subsets["Math"].value == 0.75
    assert (found.rows, found.undefined, found.tied_rows, found.unknown) == (3, 1, pytest.approx(1 / 3), {"mine": 1})
