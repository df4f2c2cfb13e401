"""What is asked and who judges, from words: what they mean, and what is refused."""

import json

import pytest

from stablerank.errors import DataError, RecipeError
from stablerank.evaluation.problems import WholeFile, check_columns, fingerprint_of, parse_reward, parse_task
from stablerank.rewards.specs import MathVerifySpec, PythonSpec
from stablerank.tasks.specs import ArithmeticSpec, FileSpec

ROWS = [{"prompt": "1+1=?", "answer": "2"}, {"prompt": "2+2=?", "answer": "4"}, {"prompt": "1+1=?", "answer": "2"}]


def test_words_are_a_data_section_on_one_line():
    assert parse_task("arithmetic") == ArithmeticSpec(kind="arithmetic")
    assert parse_task("arithmetic:level=hard,problems=5") == ArithmeticSpec(kind="arithmetic", level="hard", problems=5)
    asked = parse_task("file:path=a/b.jsonl,chat=true,answer_pattern=#### (.*)")
    assert asked == FileSpec(kind="file", path="a/b.jsonl", chat=True, answer_pattern="#### (.*)")
    assert parse_reward("math_verify:answer_column=gold") == MathVerifySpec(answer_column="gold")
    assert parse_reward("python:ref=a/b.py:f") == PythonSpec(kind="python", ref="a/b.py:f")


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows", "data:gsm8k.jsonl", "openai/gsm8k", "C=1.jsonl"])
def test_anything_else_is_a_file(name):
    assert parse_task(name) == WholeFile(path=name)


def test_a_file_is_asked_as_a_whole_and_in_its_order(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert parse_task(str(file)).held_out_rows("test", 10) == ROWS
    assert parse_task(str(file)).held_out_rows("validation", 2) == ROWS[:2]
    (first, *_) = parse_task(str(file), chat=True).held_out_rows("test", 10)
    assert first == {"prompt": [{"role": "user", "content": "1+1=?"}], "answer": "2"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arithmetik", "no task 'arithmetik'; give one of arithmetic"),
        ("arithmetic:level=impossible", "level='impossible' is refused"),
        ("arithmetic:levle=hard", "no setting 'levle'"),
        ("arithmetic:level=hard,5", "'5' is not KEY=VALUE"),
        ("arithmetic:level=[", "not YAML"),
        ("file", "needs 'path'; add `path=VALUE`"),
    ],
)
def test_tasks_that_are_refused(text, words):
    with pytest.raises(RecipeError) as error:
        parse_task(text)
    assert words in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "words"),
    [("gold", "no reward 'gold'; give one of math_verify"), ("a.py:f", "not KIND:KEY=VALUE"), ("python", "'ref'")],
)
def test_rewards_that_are_refused(text, words):
    with pytest.raises(RecipeError) as error:
        parse_reward(text)
    assert words in str(error.value) and str(error.value).endswith(".")


def test_chat_belongs_to_the_settings_of_a_task():
    with pytest.raises(RecipeError, match="`file:chat=true`"):
        parse_task("file:path=rows.jsonl", chat=True)


def test_a_column_that_the_judge_lacks_is_named():
    check_columns(ROWS, MathVerifySpec())
    check_columns([{"prompt": "1"}], PythonSpec(kind="python", ref="a.py:f"))
    with pytest.raises(DataError, match=r"column 'answer', which problem 1 lacks \(columns: prompt\)"):
        check_columns([ROWS[0], {"prompt": "1"}], MathVerifySpec())


def test_other_problems_have_another_fingerprint():
    assert fingerprint_of(ROWS) == fingerprint_of([dict(reversed(row.items())) for row in ROWS])
    assert fingerprint_of(ROWS) != fingerprint_of([*ROWS[:2], {"prompt": "1+1=?", "answer": "3"}])
    assert fingerprint_of(ROWS) != fingerprint_of([*ROWS[1:], ROWS[0]])
