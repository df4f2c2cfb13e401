"""Answers before and after are paired by prompt and sorted by what changed."""

from stablerank.reports.pairs import CHANGES, by_change, pair_up
from stablerank.reports.read import Rollout


def rollout(row: int, reward: float, prompt: str = "p") -> Rollout:
    return Rollout(row, prompt, "c", "a", reward, passed=reward >= 1, tokens=1, truncated=False)


def test_each_kind_of_change_has_its_place() -> None:
    before = [rollout(0, 0.0), rollout(1, 1.0), rollout(2, 1.0), rollout(3, 0.0)]
    after = [rollout(0, 1.0), rollout(1, 1.0), rollout(2, 0.0), rollout(3, 0.0)]
    found = by_change(pair_up(before, after))
    assert {change: [pair.before.row for pair in pairs] for change, pairs in found.items()} == dict(
        zip(CHANGES, [[0], [1], [2], [3]], strict=True)
    )


def test_only_the_same_prompt_of_the_same_row_makes_a_pair_whatever_the_order() -> None:
    before = [rollout(2, 0.0), rollout(0, 0.0), rollout(1, 0.0, "old")]
    after = [rollout(0, 1.0), rollout(1, 1.0, "new"), rollout(2, 1.0), rollout(9, 1.0)]
    assert [pair.before.row for pair in pair_up(before, after)] == [0, 2]


def test_an_answer_without_a_score_makes_no_pair() -> None:
    assert pair_up([rollout(0, float("nan")), rollout(1, 0.0)], [rollout(0, 1.0), rollout(1, float("nan"))]) == []
