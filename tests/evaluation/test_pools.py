"""Pools: judged in the order of the rows, and the same whether filled at once or in pieces."""

import math
from dataclasses import replace

import math_verify
import pytest
from math_verify import ExprExtractionConfig, LatexExtractionConfig

from stablerank.errors import RunFolderError
from stablerank.evaluation.generate import fitting_ids
from stablerank.evaluation.pools import Exam, fill_pool
from stablerank.evaluation.sampling import Sampling
from stablerank.rewards.outcome import MathVerifyReward
from stablerank.rewards.python import PythonReward
from stablerank.runs.tables import ShardedTable

ROWS = [{"prompt": "1+" * number + "1=?", "answer": str(number + 1)} for number in (3, 0, 7, 1, 5, 2)]
SAMPLING = Sampling(3)


@pytest.fixture
def reward(tmp_path):
    """The mean id of an answer; problem 2 (answer 8) cannot be scored."""
    (tmp_path / "own.py").write_text(
        "def f(prompts, completions, completion_ids, answer, **columns):\n"
        "    assert len(set(answer)) == 1, 'asked problem by problem'\n"
        "    return [None if a == '8' else sum(ids) / len(ids) for a, ids in zip(answer, completion_ids)]\n"
    )
    return PythonReward(f"{tmp_path}/own.py:f")


def exam(tokenizer, reward, batch_size=6):
    ids_of = fitting_ids(tokenizer, [row["prompt"] for row in ROWS], 4, 128)
    return Exam(ROWS, ids_of, reward, max_new_tokens=4, batch_size=batch_size)


def test_chunks_are_a_batch_each_and_the_longest_come_first(tokenizer, reward):
    asked = exam(tokenizer, reward)
    assert asked.chunks(SAMPLING) == [[2, 4], [0, 5], [3, 1]]
    assert asked.chunks(None) == [[2, 4, 0, 5, 3, 1]]
    assert asked.chunks(Sampling(7)) == [[2], [4], [0], [5], [3], [1]]


def test_answers_come_in_the_order_of_the_rows(model, tokenizer, reward):
    news = []
    found = fill_pool(exam(tokenizer, reward), SAMPLING, lambda: model, tokenizer, progress=news.append)
    assert [answers.problem for answers in found] == list(range(6))
    assert [(answers.prompt, answers.answer) for answers in found] == [(r["prompt"], r["answer"]) for r in ROWS]
    assert news == [6, 12, 18]
    for answers in found:
        assert len(answers.completions) == len(answers.rewards) == 3
        if answers.problem == 2:
            assert all(math.isnan(reward) for reward in answers.rewards)
        elif answers.tokens == [4, 4, 4]:
            ids = [tokenizer(text).input_ids for text in answers.completions]
            whole = [len(row) == 4 for row in ids]  # no special token was dropped
            assert all(r == pytest.approx(sum(i) / 4) for r, i, w in zip(answers.rewards, ids, whole, strict=True) if w)


@pytest.mark.parametrize("sampling", [None, SAMPLING], ids=["greedy", "sampled"])
def test_the_size_of_a_batch_does_not_matter(model, tokenizer, reward, sampling):
    found = [fill_pool(exam(tokenizer, reward, size), sampling, lambda: model, tokenizer) for size in (1, 4, 6, 256)]
    assert all(repr(pool) == repr(found[0]) for pool in found)


class Stop(Exception):
    pass


def test_filled_in_pieces_or_at_once(model, tokenizer, reward, tmp_path):
    asked, pieces = exam(tokenizer, reward), ShardedTable(tmp_path / "pieces")
    for stop in (6, 12):

        def progress(done, stop=stop):
            if done == stop:
                raise Stop

        with pytest.raises(Stop):
            fill_pool(asked, SAMPLING, lambda: model, tokenizer, pieces, progress)
    assert len(pieces.shards()) == 2
    news = []
    found = fill_pool(asked, SAMPLING, lambda: model, tokenizer, pieces, news.append)
    whole = ShardedTable(tmp_path / "whole")
    assert repr(found) == repr(fill_pool(asked, SAMPLING, lambda: model, tokenizer, whole))
    assert news == [18]
    assert (pieces.folder / "all.parquet").read_bytes() == (whole.folder / "all.parquet").read_bytes()


def test_a_whole_pool_needs_no_model(model, tokenizer, reward, tmp_path):
    table = ShardedTable(tmp_path / "pool")
    found = fill_pool(exam(tokenizer, reward), SAMPLING, lambda: model, tokenizer, table)
    again = fill_pool(exam(tokenizer, reward), SAMPLING, lambda: pytest.fail("loaded"), tokenizer, table)
    assert repr(again) == repr(found)


def test_parse_failures_are_counted_by_problem(model, tokenizer, tmp_path):
    table = ShardedTable(tmp_path / "pool")
    asked = replace(exam(tokenizer, MathVerifyReward()), max_new_tokens=1)  # now and then a digit
    found = fill_pool(asked, Sampling(12), lambda: model, tokenizer, table)
    for answers in found:
        read = [
            math_verify.parse(text, (LatexExtractionConfig(), ExprExtractionConfig())) for text in answers.completions
        ]
        assert answers.notes["parse_failures"] == sum(not expressions for expressions in read)
    assert 0 < sum(answers.notes["parse_failures"] for answers in found) < 72


def test_what_is_no_pool_or_cannot_be_written(model, tokenizer, reward, tmp_path):
    table = ShardedTable(tmp_path / "pool")
    table.write(0, [{"problem": 0}])
    with pytest.raises(RunFolderError, match="is damaged; delete it"):
        fill_pool(exam(tokenizer, reward), None, lambda: model, tokenizer, table)
    (tmp_path / "file").write_text("x")
    blocked = ShardedTable(tmp_path / "file" / "pool")
    with pytest.raises(RunFolderError, match="cannot be written"):
        fill_pool(exam(tokenizer, reward), None, lambda: model, tokenizer, blocked)
