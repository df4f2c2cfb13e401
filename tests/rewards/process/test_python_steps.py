"""A judge of steps that is a function: what it gets, what it may return, and what is said when it does not."""

import pytest

from stablerank.errors import RewardError
from stablerank.rewards.process.python_steps import PythonSteps, PythonStepsSpec
from stablerank.rewards.rollout import Rollout, length_mask

TRUE_SUMS = """
def judge(questions, steps):
    return [[float(eval(step.split("=")[0]) == int(step.split("=")[1])) if "=" in step else None for step in parts]
            for parts in steps]
"""


@pytest.fixture
def judge(tmp_path):
    def written(body, name="judge"):
        place = tmp_path / "steps.py"
        place.write_text(body)
        return f"{place}:{name}"

    return written


def test_each_step_gets_what_the_function_says_on_the_token_that_closes_it(judge, characters):
    reward = PythonStepsSpec(ref=judge(TRUE_SUMS)).build(characters)
    text = "2+2=4\n4+1=6\nso"
    ids = characters(text).input_ids
    made = reward(Rollout(["2+2=?"], [text], [ids], length_mask([len(ids)])))
    assert made.density == "step" and not reward.own_forward
    assert made.token_rewards_NT[0][made.deposit_mask_NT[0]].tolist() == [1.0, 0.0]
    closing = made.deposit_mask_NT[0].nonzero().flatten().tolist()
    assert closing == [len("2+2=4"), len("2+2=4\n4+1=6")]
    assert made.trajectory_rewards_N.tolist() == [0.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def judge(questions, steps):\n    raise KeyError('x')", "raised KeyError: 'x'"),
        ("def judge(questions, steps):\n    return None", "a NoneType for 2 completions"),
        ("def judge(questions, steps):\n    return [[1.0]]", "1 lists for 2 completions"),
        ("def judge(questions, steps):\n    return [[1.0], ['yes']]", "['yes'] for completion 1"),
        ("def judge(questions, steps):\n    return [[1.0], 0.5]", "0.5 for completion 1"),
    ],
)
def test_what_a_function_may_not_do_is_said(judge, body, said):
    scorer = PythonSteps(judge(body))
    with pytest.raises(RewardError) as caught:
        scorer.score(["a", "b"], [["x"], ["y"]])
    assert said in str(caught.value)


def test_a_missing_function_is_refused_before_anything_runs(judge, characters):
    with pytest.raises(RewardError, match="names no function"):
        PythonStepsSpec(ref=judge(TRUE_SUMS, "jugde")).build(characters)
