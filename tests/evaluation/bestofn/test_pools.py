"""Pools: one problem a prompt, and what is left out is counted."""

import math

import pytest

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.pools import TOO_FEW, UNJUDGED, Pool, default_ns, merged


def test_answers_to_one_prompt_are_one_problem(problem):
    first, other, again = problem((1,), prompt="a", tokens=(3,)), problem((0,), prompt="b"), problem((0,), prompt="a")
    found = merged([first, other, again])
    assert [each.prompt for each in found] == ["a", "b"]
    assert found[0].right_M == (1.0, 0.0)
    assert found[0].tokens is None, "half of the lengths are unknown"


def test_what_cannot_be_used_is_counted_and_named(problem):
    pool = Pool("p", (problem((1, 0)), problem((1,)), problem((1, math.nan)), problem((0, 0, 1))), {"seen before": 2})
    found, kept = pool.usable(2)
    assert kept == (0, 3)
    assert found.problems == (pool.problems[0], pool.problems[3])
    assert found.left_out == {"seen before": 2, TOO_FEW: 1, UNJUDGED: 1}


@pytest.mark.parametrize("problems", [(), (1,)])
def test_nothing_left_is_an_error(problem, problems):
    with pytest.raises(DataError, match=r"no problem to choose from with N = 3 .*(empty|fewer answers)"):
        Pool("p", tuple(problem((1,)) for _ in problems)).usable(3)


@pytest.mark.parametrize(("smallest", "ns"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))])
def test_numbers_to_choose_from(problem, smallest, ns):
    pool = Pool("p", (problem((0,) * smallest), problem((1,) * 20)))
    assert default_ns(pool) == ns


def test_lengths_are_in_one_unit(problem):
    known, unknown = problem((1, 0), tokens=(5, 6)), problem((1, 0))
    assert Pool("p", (known,)).length_unit == "tokens"
    mixed = Pool("p", (known, unknown))
    assert mixed.length_unit == "characters"
    assert mixed.lengths(known) == (1, 2)
