"""The table: every scorer on every part."""

import numpy as np
import pytest

from stablerank.evaluation.pairs.agreement import agreement
from stablerank.evaluation.pairs.comparison import PairScores, compared, described
from stablerank.tasks.preferences import Pair


@pytest.fixture
def table(biased):
    """900 pairs of two subsets: one scorer that likes brevity, one that sees something of what is right."""
    chosen_P, rejected_P, _, rng = (each[:900] if isinstance(each, np.ndarray) else each for each in biased)
    pairs = [Pair(str(n), f"p{n // 2}", "a", "b", "ab"[n % 3 == 0], f"p{n // 2}") for n in range(900)]
    noise_P = rng.normal(size=(4, 900))
    scores = {
        "brief": PairScores(0.5 * noise_P[0] - np.log(chosen_P), 0.5 * noise_P[1] - np.log(rejected_P)),
        "seeing": PairScores(noise_P[2] + 0.8, noise_P[3]),
    }
    return pairs, scores, PairScores(chosen_P, rejected_P)


def test_parts_are_all_pairs_and_each_subset(table):
    pairs, scores, lengths = table
    rows = list(compared(pairs, scores, lengths))
    assert [(row.part, row.scorer) for row in rows] == [
        (part, name) for part in ("all", "b", "a") for name in ("brief", "seeing")
    ]
    for row in rows:
        inside = [n for n, pair in enumerate(pairs) if row.part in ("all", pair.subset)]
        both = scores[row.scorer].at(inside)
        assert row.agreement == agreement(both.chosen_P, both.rejected_P, [pairs[n].group for n in inside])
    first, *subsets = described(pairs, lengths)
    assert (first.pairs, first.groups, sum(part.pairs for part in subsets)) == (900, 450, 900)
    assert first.chosen_longer == pytest.approx(0.25, abs=0.05)
    assert [part.name for part in described([pairs[1], pairs[2]], lengths.at([1, 2]))] == ["all"]


def test_matched_lengths_take_away_brevity_and_leave_signal(table):
    pairs, scores, lengths = table
    brief, seeing = list(compared(pairs, scores, lengths))[:2]
    assert brief.agreement.accuracy.low > 0.55
    assert brief.matched.accuracy.low < 0.5 < brief.matched.accuracy.high
    assert brief.ranks.given_length.low < 0 < brief.ranks.given_length.high
    assert brief.regression.score.low < 0 < brief.regression.score.high
    for interval in (seeing.agreement.accuracy, seeing.matched.accuracy):
        assert interval.low > 0.6
    assert seeing.ranks.given_length.low > 0.2
    assert seeing.regression.score.low > 0.3


def test_a_lost_tie_changes_plain_accuracy_alone(table):
    pairs, _, lengths = table
    level = {"level": PairScores(np.zeros(900), np.zeros(900))}
    (half, *_), (lost, *_) = (list(compared(pairs, level, lengths, ties)) for ties in ("half", "lose"))
    assert (half.agreement.accuracy.value, lost.agreement.accuracy.value) == (0.5, 0)
    assert half.matched == lost.matched
    assert half.matched.accuracy.value == 0.5
