import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from trl.rewards import get_soft_overlong_punishment

from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.length import LengthSpec, length_penalty
from stablerank.rewards.rollout import length_mask, rollout_from_trl


def scored(spec, lengths):
    return spec.build(None)(rollout_from_trl(["?"] * len(lengths), [""] * len(lengths), [[1] * n for n in lengths]))


@given(st.integers(1, 300), st.data())
def test_the_penalty_is_trls_soft_overlong_punishment(limit, data):
    buffer = data.draw(st.integers(1, limit))
    lengths = data.draw(st.lists(st.integers(0, 2 * limit), min_size=1, max_size=20))
    theirs = get_soft_overlong_punishment(limit, buffer)([[1] * length for length in lengths])
    assert scored(LengthSpec(limit=limit, buffer=buffer), lengths).trajectory_rewards_N.tolist() == pytest.approx(
        theirs
    )


def test_a_buffer_as_long_as_the_limit_prices_every_token_alike():
    assert length_penalty(torch.arange(0, 13), 10, 10).tolist() == pytest.approx(
        [-n / 10 for n in range(11)] + [-1, -1]
    )


def test_the_deposit_lies_on_the_last_token_and_an_empty_completion_has_none():
    deposit = scored(LengthSpec(limit=4, buffer=4), [2, 0, 4])
    assert deposit.deposit_mask_NT.nonzero().tolist() == [[0, 1], [2, 3]]
    assert deposit.trajectory_rewards_N.tolist() == [-0.5, 0, -1]
    assert deposit.notes == {"empty_completions": 1}


def test_a_small_penalty_stays_small():
    """Divided by the group's deviation, a hundredth would become 1.5 and outweigh a wrong answer."""
    spec, lengths = LengthSpec(limit=200, buffer=100), [100, 100, 100, 101]
    component = Component(scored(spec, lengths), credit=spec.default_credit)
    credit = advantages([component], torch.zeros(4, dtype=torch.long), length_mask(lengths))
    assert credit.advantages_NT[:, 0].tolist() == pytest.approx([0.0025, 0.0025, 0.0025, -0.0075])


def test_a_buffer_longer_than_the_limit_is_refused():
    with pytest.raises(ValidationError, match="buffer=11 is longer than limit=10; set it to 10 or less"):
        LengthSpec(limit=10, buffer=11)
