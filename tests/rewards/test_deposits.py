import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablerank.errors import RewardError
from stablerank.rewards.deposits import Deposit, trajectory_deposit
from stablerank.rewards.rollout import length_mask


def deposit(values, mask, trajectory, density="step"):
    return Deposit(torch.tensor(values), torch.tensor(mask), torch.tensor(trajectory), density)


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(-2, 2)), min_size=1, max_size=6))
def test_one_deposit_on_the_last_token_of_what_can_be_scored(rows):
    lengths, rewards = zip(*rows, strict=True)
    made = trajectory_deposit(rewards, length_mask(lengths))
    for row, (length, reward) in enumerate(rows):
        places = made.deposit_mask_NT[row].nonzero().flatten().tolist()
        assert places == ([length - 1] if length and reward is not None else [])
        if places:
            assert made.token_rewards_NT[row, places[0]].item() == pytest.approx(reward, abs=1e-6)
        assert math.isnan(made.trajectory_rewards_N[row]) == (reward is None)
    assert made.notes["empty_completions"] == sum(length == 0 for length in lengths)


def test_the_last_token_is_found_behind_a_gap():
    mask = torch.tensor([[True, False, True, False]])
    assert trajectory_deposit([1.0], mask).deposit_mask_NT.tolist() == [[False, False, True, False]]


def test_nan_outside_the_mask_is_silence_and_inside_an_error():
    assert deposit([[math.nan, 0.0]], [[False, True]], [0.0]).deposit_mask_NT.sum() == 1
    with pytest.raises(RewardError, match="gave nan for token 1 of completion 2; leave a token without"):
        deposit([[0.0, 0.0], [0.0, 0.0], [0.0, math.nan]], [[True, True]] * 3, [0.0] * 3)


def test_an_infinite_trajectory_reward_is_named():
    with pytest.raises(RewardError, match="gave -inf for completion 1; give a finite number"):
        trajectory_deposit([0.0, -math.inf], length_mask([1, 1]))


def test_shapes_must_agree():
    with pytest.raises(RewardError, match=r"shape \(1, 2\), a mask \(1, 1\) and trajectory rewards \(1,\)"):
        deposit([[0.0, 0.0]], [[True]], [0.0])


def test_a_trajectory_holds_one_deposit():
    with pytest.raises(RewardError, match="2 deposits on completion 1"):
        deposit([[0.0, 0.0]] * 2, [[True, False], [True, True]], [0.0, 0.0], "trajectory")
