import pytest
import torch

from stablerank.errors import RewardError
from stablerank.rewards.rollout import completion_text, length_mask, rollout_from_trl


def test_trl_extras_are_no_columns():
    rollout = rollout_from_trl(
        ["p", "q"],
        ["a", "b"],
        [[1, 2], [3]],
        answer=["1", "2"],
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
    )
    assert dict(rollout.columns) == {"answer": ["1", "2"]}
    assert rollout.completion_mask_NT.tolist() == [[True, True], [True, False]]
    assert len(rollout) == 2


def test_a_chat_completion_is_what_the_assistant_said():
    messages = [
        {"role": "assistant", "content": "I compute."},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "9"},
        {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "9."}]},
    ]
    assert completion_text(messages) == "I compute.\n\nIt is 9."
    assert completion_text("plain") == "plain"


def test_a_missing_column_names_those_there_are():
    rollout = rollout_from_trl(["p"], ["a"], [[1]], solution=["1"])
    with pytest.raises(RewardError, match=r"math_verify reads the column 'answer'.*\(columns: solution\)"):
        rollout.column("answer", "math_verify")


def test_length_mask_of_nothing():
    assert length_mask([]).shape == (0, 0)
    assert length_mask([0, 0]).shape == (2, 0)
    assert torch.equal(length_mask([0, 2]), torch.tensor([[False, False], [True, True]]))
