import math

import numpy as np
import pytest

from stablerank.errors import RewardError
from stablerank.rewards.python import PythonReward
from stablerank.rewards.rollout import rollout_from_trl

ROLLOUT = rollout_from_trl(["p", "q"], ["long", "s"], [[1, 2], [3]], answer=["4", "1"])


@pytest.fixture
def reward(tmp_path):
    """Build the reward `f` from the text of its file."""

    def build(text, name="f"):
        (tmp_path / "mine.py").write_text(text)
        return PythonReward(f"{tmp_path}/mine.py:{name}")

    return build


def returning(expression):
    return f"import numpy as np\ndef f(prompts, completions, completion_ids, **columns):\n    return {expression}\n"


def test_the_function_gets_what_trl_gives(reward):
    made = reward(
        "def length(prompts, completions, completion_ids, answer, **columns):\n"
        "    assert prompts == ['p', 'q'] and completion_ids == [[1, 2], [3]] and not columns\n"
        "    return [float(len(text) == int(gold)) + 0.5 for text, gold in zip(completions, answer)]\n",
        "length",
    )
    deposit = made(ROLLOUT)
    assert made.name == "length"
    assert deposit.trajectory_rewards_N.tolist() == [1.5, 1.5]
    assert deposit.deposit_mask_NT.tolist() == [[False, True], [True, False]]


def test_chat_completions_come_as_messages(reward):
    made = reward("def f(completions, **_):\n    return [len(c[0]['content']) for c in completions]\n")
    messages = [{"role": "assistant", "content": "four"}]
    deposit = made(rollout_from_trl([[{"role": "user", "content": "?"}]], [messages], [[1]]))
    assert deposit.trajectory_rewards_N.tolist() == [4.0]


@pytest.mark.parametrize(
    "expression", ["[1, None]", "(True, float('nan'))", "[np.float32(1), None]", "np.array([1, np.nan])"]
)
def test_numbers_of_many_kinds_and_none(reward, expression):
    values = reward(returning(expression))(ROLLOUT).trajectory_rewards_N.numpy()
    assert np.array_equal(values, [1.0, math.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("[1.0]", "returned 1 numbers for 2 completions"),
        ("1.0", "returned a float; return a list of 2 numbers"),
        ("'ab'", "returned a str"),
        ("[1.0, '2']", "returned '2' for completion 1; return a finite number"),
        ("[float('inf'), 0]", "returned inf for completion 0"),
        ("[1 / 0, 0]", "raised ZeroDivisionError: division by zero at line 3; mend it"),
        ("prompts.lower()", "raised AttributeError: .* at line 3"),
    ],
)
def test_bad_answers_are_one_sentence(reward, expression, sentence):
    made = reward(returning(expression))
    with pytest.raises(RewardError, match=sentence) as caught:
        made(ROLLOUT)
    assert made.ref in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_signature_names_the_right_one(reward):
    with pytest.raises(RewardError, match=r"TypeError: .* at line 1; .*def f\(prompts, completions, completion_ids"):
        reward("def f(texts):\n    return []\n")(ROLLOUT)


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("x = 1\n", "f", "names no function of .*define `def f"),
        ("f = 1\n", "f", "names no function"),
        ("x = 1\nx / 0\n", "f", "raised ZeroDivisionError: division by zero at line 2"),
        ("def f(:\n", "f", "raised SyntaxError: .* at line 1"),
    ],
)
def test_bad_files_are_one_sentence(reward, text, name, sentence):
    with pytest.raises(RewardError, match=sentence):
        reward(text, name)


@pytest.mark.parametrize("ref", ["missing.py:f", "no_colon.py", ":f"])
def test_a_missing_file_is_named(ref, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=r"names no file .*write it as path/to/file\.py:function"):
        PythonReward(ref)
