"""Scores of a pool: in order, not done twice, with their cost and their reasons."""

import math

import numpy as np
import pytest

from stablerank.errors import RunFolderError
from stablerank.evaluation.bestofn.pools import Pool
from stablerank.evaluation.bestofn.scores import CHUNK, costs, reasons, score_pool, tied_share
from stablerank.rewards.scorers.trivial import LengthScorer, RandomScorer
from stablerank.runs.tables import ShardedTable


class Counted:
    """A scorer that notes how many answers it was asked, and stops after some."""

    def __init__(self, scorer, stop=math.inf):
        self.names, self.asked, self._scorer, self._stop = scorer.names, 0, scorer, stop

    def score(self, answers):
        if self.asked >= self._stop:
            raise KeyboardInterrupt
        self.asked += len(answers)
        return self._scorer.score(answers)


@pytest.fixture
def pool(problem):
    rng = np.random.default_rng(0)
    texts = [tuple("x" * int(size) for size in rng.integers(1, 30, 5)) for _ in range(60)]
    return Pool("p", tuple(problem((0, 1, 0, 0, 1), responses=each, prompt=str(at)) for at, each in enumerate(texts)))


def scorers():
    return [LengthScorer("longer", 1), RandomScorer()]


def plain(scored):
    return [(one.problem, {name: values.tolist() for name, values in one.scores.items()}) for one in scored]


def test_scores_stand_in_the_order_of_the_answers(pool):
    news = []
    found = score_pool(pool, scorers(), progress=lambda done, total, what: news.append((done, total)))
    assert [one.problem for one in found] == list(range(60))
    for one, problem in zip(found, pool.problems, strict=True):
        assert one.scores["longer"].tolist() == [len(text) for text in problem.responses]
        assert one.statuses == ("scored",) * 5
    assert [done for done, _ in news] == [130, 260, 300]
    assert {total for _, total in news} == {300}
    assert news[0][0] >= CHUNK


def test_interrupted_it_goes_on_and_ends_the_same(pool, tmp_path):
    table = ShardedTable(tmp_path / "scores")
    with pytest.raises(KeyboardInterrupt):
        score_pool(pool, [Counted(LengthScorer("longer", 1), stop=130), RandomScorer()], table)
    assert len(table.shards()) == 1
    counted = Counted(LengthScorer("longer", 1))
    found = score_pool(pool, [counted, RandomScorer()], table)
    assert counted.asked == 170
    assert plain(found) == plain(score_pool(pool, scorers()))
    again = Counted(LengthScorer("longer", 1))
    assert plain(score_pool(pool, [again, RandomScorer()], table)) == plain(found)
    assert again.asked == 0


def test_what_has_no_score_is_nan_with_its_reason(problem, tmp_path):
    pool = Pool("p", (problem((1, 0, 0), responses=("a", " ", None)),))
    for table in (None, ShardedTable(tmp_path / "scores"), ShardedTable(tmp_path / "scores")):
        (found,) = scored = score_pool(pool, scorers(), table)
        assert np.isnan(found.scores["longer"]).tolist() == [False, True, True]
        assert reasons(scored) == {"empty": 1, "missing": 1}


def test_ties_are_counted_by_pairs(problem):
    pool = Pool("p", (problem((1, 0, 0), responses=("a", "b", "ccc")), problem((1, 0), responses=("a", "b"))))
    scored = score_pool(pool, scorers())
    assert tied_share(scored, "longer") == pytest.approx(2 / 4)
    assert tied_share(scored, "random") == 0


def test_cost_is_of_an_answer_and_a_pass(pool):
    scored = score_pool(pool, [LengthScorer("shorter", -1), RandomScorer()])
    length, chance = costs(scored)
    assert (length.scores, chance.scores) == ("shorter", "random")
    assert 0 < length.seconds < 1
    assert sum(one.seconds["shorter"] for one in scored) == pytest.approx(300 * length.seconds)
    assert chance.tokens == 0


def test_a_table_of_something_else_is_damaged(pool, tmp_path):
    table = ShardedTable(tmp_path / "scores")
    table.write(0, [{"problem": 0}])
    with pytest.raises(RunFolderError, match="is damaged; delete it"):
        score_pool(pool, scorers(), table)
