"""Scores chunk by chunk: a kill loses one chunk, and prompts stay whole."""

import numpy as np
import pytest

from stablerank.errors import RunFolderError
from stablerank.evaluation.pairs import score_table
from stablerank.evaluation.pairs.score_table import score_answers
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.trivial import LengthScorer, RandomScorer
from stablerank.runs.tables import ShardedTable

ANSWERS = [Answer(f"prompt {n % 100}", "x" * (1 + n * 7 % 50) + str(n)) for n in range(300)]


class Watched:
    """A real scorer that says what it was asked."""

    def __init__(self, stop_after=None):
        self.inner, self.calls, self.stop_after = LengthScorer("longer", 1), [], stop_after
        self.names = self.inner.names

    def score(self, answers):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(list(answers))
        return self.inner.score(answers)


def test_rows_are_in_order_and_columns_are_the_scorers():
    told = []
    found = score_answers(ANSWERS, [LengthScorer("longer", 1), RandomScorer()], progress=told.append)
    assert found.names == ("longer", "random")
    assert found.column("longer").tolist() == [len(answer.response) for answer in ANSWERS]
    assert np.array_equal(found.column("random"), RandomScorer().score(ANSWERS).values_NS[:, 0])
    assert told == sorted(told) and told[-1] == 300 and len(told) > 3


def test_answers_to_one_prompt_meet_in_one_call():
    watched = Watched()
    score_answers(ANSWERS, [watched])
    homes = [{answer.prompt for answer in call} for call in watched.calls]
    assert len(homes) > 3
    assert sum(map(len, homes)) == 100, "no prompt is in two chunks"


def test_an_interrupted_table_goes_on_and_ends_the_same(tmp_path):
    whole = score_answers(ANSWERS, [LengthScorer("longer", 1)])
    table = ShardedTable(tmp_path / "scores")
    with pytest.raises(KeyboardInterrupt):
        score_answers(ANSWERS, [Watched(stop_after=2)], table)
    assert len(table.shards()) == 2
    rest = Watched()
    found = score_answers(ANSWERS, [rest], table)
    assert np.array_equal(found.values_NS, whole.values_NS) and found.statuses == whole.statuses
    again = Watched()
    score_answers(ANSWERS, [again], table)
    assert (len(rest.calls), again.calls) == (len(table.shards()) - 2, [])
    assert all("x" not in str(row) for row in table.rows()), "no text is stored"


def test_undefined_scores_survive_storage(tmp_path):
    table, answers = ShardedTable(tmp_path), [Answer("p", "fine"), Answer("p", "  ")]
    for _ in range(2):
        found = score_answers(answers, [LengthScorer("longer", 1)], table)
        assert np.array_equal(found.values_NS, [[4], [np.nan]], equal_nan=True)
        assert found.statuses == ("scored", "empty")


def test_a_damaged_or_unwritable_table_is_one_sentence(tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "step-00000000-rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match="is damaged; delete it"):
        score_answers(ANSWERS, [RandomScorer()], ShardedTable(tmp_path / "damaged"))
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"):
        score_answers(ANSWERS, [RandomScorer()], ShardedTable(tmp_path / "file"))


def test_a_chunk_has_about_its_size(monkeypatch):
    monkeypatch.setattr(score_table, "CHUNK", 10)
    watched = Watched()
    score_answers(ANSWERS, [watched])
    assert {len(call) for call in watched.calls} == {12}, "whole prompts of three, ten answers or more"
