"""The controls: hand-made problems whose picks are known, and pass@N from its own module."""

import numpy as np
import pytest

from stablerank.evaluation.bestofn.controls import COMPARED, CONTROLS, control_picks
from stablerank.evaluation.bestofn.pools import Pool
from stablerank.evaluation.pass_at_k import pass_at_k


def same(first, second):
    return first == second


def picks(problem):
    return control_picks(Pool("hand-made", (problem,)), problem, same)


def test_by_characters_the_shortest_and_the_longest(problem):
    found = picks(problem((1, 0, 0, 1), responses=("aa", "a", "aaa", "aaaa")))
    assert found["shortest"][-1] == 0
    assert found["longest"][-1] == 1
    assert found["shortest"][0] == found["longest"][0] == found["random"][0] == 0.5
    # Of six pairs three hold the shortest, which is wrong; of the others two hold the next, which is right.
    assert found["shortest"][1] == pytest.approx(2 / 6)
    assert found["random"].tolist() == [0.5] * 4


def test_recorded_tokens_go_before_characters(problem):
    found = picks(problem((1, 0), responses=("a", "aaaa"), tokens=(9, 2)))
    assert (found["shortest"][-1], found["longest"][-1]) == (0, 1)


def test_the_oracle_is_pass_at_n(problem):
    right = (0, 1, 0, 0, 1)
    wanted = [pass_at_k([right], n)[0] for n in range(1, 6)]
    np.testing.assert_allclose(picks(problem(right))["oracle"], wanted)


def test_the_majority_may_be_wrong_together(problem):
    found = picks(problem((1, 0, 0, 0, 1), keys=("4", "5", "5", "5", "4")))
    assert found["majority"][-1] == 0
    assert found["majority"][0] == pytest.approx(0.4)


def test_greedy_is_there_where_it_was_asked(problem):
    assert "greedy" not in picks(problem((1, 0)))
    assert picks(problem((1, 0), greedy=1.0))["greedy"].tolist() == [1, 1]


def test_every_control_is_named(problem):
    assert set(picks(problem((1, 0), greedy=0.0))) == set(CONTROLS)
    assert set(COMPARED) < set(CONTROLS)


def test_no_control_beats_the_oracle(problem):
    rng = np.random.default_rng(3)
    for _ in range(50):
        right = rng.integers(0, 2, 6)
        found = picks(problem(right, keys=[str(k) for k in rng.integers(0, 3, 6)]))
        for name in ("random", "majority", "shortest", "longest"):
            assert (found[name] <= found["oracle"] + 1e-12).all()
