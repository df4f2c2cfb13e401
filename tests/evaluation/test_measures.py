"""The numbers of a result against plain loops over every subset."""

import math
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from stablerank.errors import DataError
from stablerank.evaluation.measures import compared, manners, pass_rates, unscorable
from stablerank.evaluation.pools import Answers
from stablerank.evaluation.statistics import mean_interval, paired_difference

RNG = np.random.default_rng(3)


def answers(problem, rewards, tokens=None, failures=0):
    count = len(rewards)
    tokens = tokens or [4] * count
    notes = {} if failures is None else {"parse_failures": failures}
    return Answers(problem, "", None, [""] * count, tokens, [t == 9 for t in tokens], list(rewards), notes)


def pool(samples=6, problems=20):
    chances = RNG.random(problems)
    return [answers(p, (RNG.random(samples) < chance).astype(float)) for p, chance in enumerate(chances)]


def test_pass_rates_are_the_shares_of_subsets_with_a_right_one():
    found = pool()
    for k, rates in zip((1, 2, 4, 6), pass_rates(found, "sampled", (1, 2, 4, 6), 1.0), strict=True):
        exact = [fmean(any(chosen) for chosen in combinations(a.rewards, k)) for a in found]
        assert rates.values_P == pytest.approx(exact, abs=1e-12)
        assert (rates.name, rates.decoding) == (f"pass@{k}", "sampled")


def test_the_bar_decides_what_passes():
    (rates,) = pass_rates([answers(0, [0.2, 0.5, 0.9])], "sampled", (1,), 0.5)
    assert rates.values_P == (pytest.approx(2 / 3),)


def test_a_problem_with_an_unscorable_answer_leaves_the_rates_and_is_counted():
    found = [answers(0, [1.0, 1.0]), answers(1, [math.nan, 1.0]), answers(2, [0.0, 0.0])]
    (rates,) = pass_rates(found, "sampled", (2,), 1.0)
    assert [rates.values_P[0], rates.values_P[2]] == [1.0, 0.0] and math.isnan(rates.values_P[1])
    (measure,) = compared([rates], None)
    assert (measure.value.value, measure.value.problems) == (0.5, 2)
    assert unscorable(found, [answers(2, [math.nan])]) == 2
    with pytest.raises(DataError, match="none of 1 problems could be scored"):
        compared(pass_rates(found[1:2], "sampled", (1,), 1.0), None)


def test_length_truncation_and_parse_failures_are_means_over_problems():
    found = [answers(0, [1.0] * 4, [2, 9, 9, 4], 1), answers(1, [1.0] * 4, [1, 1, 1, 1], 4)]
    tokens, truncated, failures = manners(found, "sampled", 9)
    assert tokens.values_P == (6.0, 1.0) and tokens.scale == (1.0, 9)
    assert truncated.values_P == (0.5, 0.0)
    assert failures.values_P == (0.25, 1.0)
    assert [v.name for v in manners([answers(0, [1.0], failures=None)], "greedy", 9)] == ["tokens", "truncated"]


def test_against_another_is_the_paired_difference():
    ours, others = pool(), pool()
    mine, theirs = (pass_rates(found, "sampled", (1, 3), 1.0) for found in (ours, others))
    for measure, own, other in zip(compared(mine, theirs), mine, theirs, strict=True):
        assert measure.value == mean_interval(own.values_P)
        assert measure.against == mean_interval(other.values_P)
        assert measure.difference == paired_difference(other.values_P, own.values_P)
        assert measure.difference.value == pytest.approx(measure.value.value - measure.against.value)
    for measure in compared(mine, mine):
        assert measure.difference.value == 0
