"""Pools from files, in both shapes; GSM8K's recorded solutions; bad files are one sentence."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.recorded import gsm8k_solutions, recorded_pool
from stablerank.tasks.files import data_folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "pool.jsonl")

    return write


def test_one_row_a_prompt_and_one_row_an_answer_are_the_same_pool(written):
    wide = recorded_pool(
        written(
            {"prompt": "a", "responses": ["x", "yy"], "correct": [True, False], "tokens": [4, 5], "keys": ["1", "2"]},
            {"prompt": "b", "responses": ["z"], "correct": [None], "tokens": [6], "keys": ["3"]},
        )
    )
    long = recorded_pool(
        written(
            {"prompt": "a", "response": "x", "correct": 1, "tokens": 4, "key": "1"},
            {"prompt": "b", "response": "z", "correct": None, "tokens": 6, "key": "3"},
            {"prompt": "a", "response": "yy", "correct": 0, "tokens": 5, "key": "2"},
        )
    )
    assert repr(wide.problems) == repr(long.problems)
    assert wide.problems[0].right_M == (1.0, 0.0)
    assert (wide.problems[0].keys, wide.problems[0].tokens) == (("1", "2"), (4, 5))
    assert math.isnan(wide.problems[1].right_M[0])


def test_a_gold_answer_judges_and_final_answers_vote(written):
    told = []
    row = {"question": "2+16?", "responses": ["so \\boxed{18.0}", "it is 17", None], "gold": "18"}
    pool = recorded_pool(
        written(row), {"prompt": "question", "answer": "gold"}, lambda done, total, what: told.append((done, total))
    )
    (found,) = pool.problems
    assert found.right_M == (1.0, 0.0, 0.0)
    assert found.keys == ("18.0", "17", "")
    assert told == [(3, 3)]


def test_a_gold_answer_that_says_nothing_leaves_the_problem_unjudged(written):
    (found,) = recorded_pool(written({"prompt": "a", "responses": ["1"], "answer": ""})).problems
    assert math.isnan(found.right_M[0])


def test_parquet(tmp_path):
    rows = [{"prompt": "a", "responses": ["1", "2"], "correct": [True, False]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    assert recorded_pool(str(tmp_path / "pool.parquet")).problems[0].right_M == (1.0, 0.0)


BAD = {
    "no responses": ({"prompt": "a", "completions": ["1"]}, ["row 0", "neither `responses` nor", "completions"]),
    "no verdict": ({"prompt": "a", "responses": ["1"]}, ["row 0", "neither `correct` nor", "answer"]),
    "text for a list": ({"prompt": "a", "responses": "1", "correct": [True]}, ["'responses'", "not a list"]),
    "numbers for text": ({"prompt": "a", "responses": [1], "correct": [True]}, ["'responses'", "not text"]),
    "no answer": ({"prompt": "a", "responses": [], "correct": []}, ["'responses'", "not text"]),
    "another length": ({"prompt": "a", "responses": ["1"], "correct": [True, False]}, ["1 responses", "length"]),
    "half right": ({"prompt": "a", "responses": ["1"], "correct": [0.5]}, ["0.5", "neither true nor false"]),
    "no prompt": ({"question": "a", "responses": ["1"], "correct": [True]}, ["no column 'prompt'"]),
}


@pytest.mark.parametrize(("row", "words"), BAD.values(), ids=BAD)
def test_what_is_no_pool_is_one_sentence(written, row, words):
    with pytest.raises(DataError) as caught:
        recorded_pool(written(row))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.skipif(not data_folder().is_dir(), reason=f"no data folder at {data_folder()}")
def test_gsm8k_questions_with_right_and_wrong_solutions():
    pool = gsm8k_solutions()
    assert (len(pool.problems), pool.smallest, sum(pool.left_out.values())) == (731, 4, 1319 - 731)
    assert all(0 < sum(each.right_M) < 4 for each in pool.problems)
    first = pool.problems[0]
    assert first.keys == ("26", "224", "4", "18")
    assert first.right_M == (0, 0, 0, 1)
    assert pool.problems[:3] == gsm8k_solutions(3).problems
