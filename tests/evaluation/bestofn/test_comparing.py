"""From picks to lines: differences are paired, N = 1 compares nothing, no headroom is said."""

import numpy as np
import pytest

from stablerank.evaluation.bestofn.comparing import (
    LEAST_GAP,
    control_lengths,
    gap,
    lines,
    pool_controls,
    scorer_lengths,
    scorer_picks,
)
from stablerank.evaluation.bestofn.controls import COMPARED
from stablerank.evaluation.bestofn.pools import Pool
from stablerank.evaluation.bestofn.scores import score_pool
from stablerank.evaluation.statistics import mean_interval, paired_difference
from stablerank.rewards.scorers.trivial import LengthScorer, RandomScorer


def same(first, second):
    return first == second


@pytest.fixture
def pool(problem):
    """The longer of two lengths is right more often than not."""
    rng = np.random.default_rng(1)
    problems = []
    for number in range(50):
        sizes = rng.integers(1, 9, 4)
        right = [int(size > 4) if rng.random() < 0.8 else int(rng.random() < 0.5) for size in sizes]
        texts = tuple("x" * int(size) for size in sizes)
        problems.append(problem(right, responses=texts, prompt=str(number)))
    return Pool("p", tuple(problems))


@pytest.fixture
def found(pool):
    controls = pool_controls(pool, same)
    scored = score_pool(pool, [LengthScorer("longer", 1), RandomScorer()])
    both = (
        *lines("scorer", scorer_picks(pool, scored), scorer_lengths(pool, scored), (1, 4), controls),
        *lines("control", controls, control_lengths(pool), (1, 4), controls),
    )
    return {(line.kind, line.chooser, line.n): line for line in both}


def test_a_scorer_that_is_a_control_is_that_control(found):
    scorer, control = (found[kind, name, 4] for kind, name in (("scorer", "longer"), ("control", "longest")))
    assert (scorer.accuracy, scorer.length) == (control.accuracy, control.length)
    assert (scorer.over["longest"].value, "longest" in control.over) == (0, False)


def test_a_scorer_may_have_the_name_of_a_control(found):
    chance, mean = found["scorer", "random", 4], found["control", "random", 4]
    assert chance.accuracy != mean.accuracy
    assert set(chance.over) == set(COMPARED)
    assert set(mean.over) == set(COMPARED) - {"random"}


def test_numbers_are_means_over_problems_and_differences_are_paired(pool, found):
    right = np.array([problem.right_M for problem in pool.problems])
    longest = np.array([pool.lengths(problem) for problem in pool.problems])
    best = longest == longest.max(axis=1, keepdims=True)
    picked = (right * best).sum(axis=1) / best.sum(axis=1)
    line = found["scorer", "longer", 4]
    assert line.accuracy == mean_interval(picked)
    assert line.over["random"] == paired_difference(right.mean(axis=1), picked)
    assert line.length == pytest.approx(longest.max(axis=1).mean())
    assert line.over["random"].low > 0


def test_one_answer_is_no_choice(found):
    ones = [line for (_, _, n), line in found.items() if n == 1]
    assert {line.accuracy.value for line in ones} == {ones[0].accuracy.value}
    assert all(not line.over for line in ones)


def test_headroom_is_the_paired_gap_of_the_oracle(pool, problem):
    room = gap(pool_controls(pool, same), 4)
    assert room.gain.value == pytest.approx(room.oracle.value - room.random.value)
    assert room.has_headroom
    rare = Pool("p", (problem((1, 0, 0, 0)), *(problem((1, 1, 1, 1), prompt=str(at)) for at in range(20))))
    little = gap(pool_controls(rare, same), 4)
    assert 0 < little.gain.value < LEAST_GAP
    assert not little.has_headroom
    assert not gap(pool_controls(pool, same), 1).has_headroom


def test_without_headroom_nothing_is_compared(pool):
    controls = pool_controls(pool, same)
    assert all(not line.over for line in lines("control", controls, control_lengths(pool), (1, 2, 4), None))
