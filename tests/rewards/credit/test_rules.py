"""Rules by hand, S4's rule by its own definition, what rules have in common, and the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.credit.rules import RULES
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit, trajectory_deposit
from stablerank.rewards.rollout import length_mask

PLAIN = {"scale": "none"}


def step_deposit(steps, lengths=None, *, scored=None):
    """Steps of two tokens, the reward on the second, then tokens without a deposit up to each length."""
    lengths = lengths or [2 * len(rewards) + 1 for rewards in steps]
    mask_NT = length_mask(lengths)
    rewards_NT, placed_NT = torch.zeros(mask_NT.shape), torch.zeros(mask_NT.shape, dtype=torch.bool)
    for row, rewards in enumerate(steps):
        for step, reward in enumerate(rewards):
            rewards_NT[row, 2 * step + 1], placed_NT[row, 2 * step + 1] = reward, True
    numbers_N = torch.tensor([sum(rewards) for rewards in steps]).float()
    numbers_N[~torch.tensor(scored or [True] * len(steps))] = torch.nan
    return Deposit(rewards_NT, placed_NT, numbers_N, "step"), mask_NT


def credited(steps, groups=None, lengths=None, scored=None, **settings):
    deposit, mask_NT = step_deposit(steps, lengths, scored=scored)
    group_ids_N = torch.tensor(groups or [0] * len(steps))
    return advantages([Component(deposit, 1.0, CreditSpec(**settings))], group_ids_N, mask_NT)


# Two completions, of steps 1, 0, 2 and of step 3; pooled mean 1.5, means 1 and 3, sums to go 3, 2, 2 and 3.
BY_HAND = {
    "mean_to_go": [[-2, -2, 0, 0, 0.5, 0.5, 0], [2, 2, 4 / 3]],
    "trajectory_mean": [[-1, -1, -1, -1, -1, -1, -1], [1, 1, 1]],
    "progress": [[-1, -1, 1, 1, 2, 2, 0], [1, 1, 0]],
    "position": [[0, 0, 2, 2, 2, 2, 0], [0, 0, -2]],
    "return_to_go": [[-1.5, -1.5, -1, -1, 0.5, 0.5, 0], [1.5, 1.5, 0]],
    "per_deposit": [[-0.5, -0.5, -1.5, -1.5, 0.5, 0.5, 0], [1.5, 1.5, 0]],
}


@pytest.mark.parametrize("rule", RULES)
def test_by_hand(rule):
    found_NT = credited([[1, 0, 2], [3]], rule=rule, **PLAIN).advantages_NT
    for row, wanted in enumerate(BY_HAND[rule]):
        assert found_NT[row, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-6)
    assert found_NT[1, 3:].tolist() == [0] * 4


def test_statistics_count_deposits_or_completions():
    steps = [[1, 0, 2], [3], []]
    by_deposit, by_trajectory = (
        credited(steps, rule="per_deposit", statistics=each).parts[0].deposits_NT for each in ("deposit", "trajectory")
    )
    deviation = math.sqrt((0.5**2 + 1.5**2 + 0.5**2 + 1.5**2) / 3)
    assert by_deposit[0, 1].item() == pytest.approx((1 - 1.5) / (deviation + 1e-4))
    # Means 1 and 3 count once each; about their mean the first completion's deposits lie 1, 2 and 0 away.
    deviation = math.sqrt((1 + 4 + 0) / 3 + 1)
    assert by_trajectory[0, 1].item() == pytest.approx((1 - 2) / (deviation + 1e-4))


finite = st.floats(-10, 10, width=32)
groups_of_steps = st.lists(st.lists(st.lists(finite, max_size=4), min_size=1, max_size=4), min_size=1, max_size=3)


@given(groups_of_steps)
@settings(deadline=None)
def test_s4_is_a_spec(batch):
    """METHODS of gernim/lora-reward-density: group by group, unbiased deviation, NaN of a single deposit to 0."""
    steps, groups = (
        [rewards for group in batch for rewards in group],
        [g for g, group in enumerate(batch) for _ in group],
    )
    spec = {"rule": "return_to_go", "epsilon": 1e-8, "statistics": "deposit", "scale": "group"}
    ours = credited(steps, groups, **spec).parts[0].advantages_NT
    wanted = torch.zeros_like(ours)
    for g, group in enumerate(batch):
        deposits = torch.tensor([reward for rewards in group for reward in rewards], dtype=torch.float64)
        if len(deposits) == 0:
            continue
        deviation = torch.std(deposits) if len(deposits) > 1 else torch.tensor(math.nan, dtype=torch.float64)
        for row in (i for i, of in enumerate(groups) if of == g):
            for t in range(2 * len(steps[row])):
                for step, reward in enumerate(steps[row]):
                    if 2 * step + 1 >= t:
                        wanted[row, t] += torch.nan_to_num((reward - deposits.mean()) / (deviation + 1e-8))
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-5)


@given(groups_of_steps, st.sampled_from(list(RULES)), st.sampled_from(["group", "batch", "none"]))
@settings(deadline=None)
def test_deposits_explain_the_advantages(batch, rule, scale):
    steps, groups = (
        [rewards for group in batch for rewards in group],
        [g for g, group in enumerate(batch) for _ in group],
    )
    (part,) = credited(steps, groups, rule=rule, scale=scale).parts
    for row, rewards in enumerate(steps):
        deposits = part.deposits_NT[row, 1 : 2 * len(rewards) : 2]
        credit, tail = part.advantages_NT[row, : 2 * len(rewards) : 2], part.advantages_NT[row, 2 * len(rewards)]
        wanted = {
            "trajectory_mean": lambda d=deposits: d.mean().expand(len(d)),
            "per_deposit": lambda d=deposits: d,
        }.get(rule, lambda d=deposits, tail=tail: d.flip(0).cumsum(0).flip(0) + tail)()
        torch.testing.assert_close(credit, wanted, rtol=1e-9, atol=1e-6)
        assert part.deposits_NT[row].count_nonzero() <= len(rewards)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_one_step_a_completion_is_the_outcome_rule(scale):
    deposit, mask_NT = step_deposit([[0.0], [1.0], [0.25], [0.5]], [2, 2, 2, 2])
    outcome = trajectory_deposit([0.0, 1.0, 0.25, 0.5], mask_NT)
    group_ids_N = torch.zeros(4, dtype=torch.long)

    def of(deposit, rule):
        return advantages([Component(deposit, 1.0, CreditSpec(rule=rule, scale=scale))], group_ids_N, mask_NT)

    wanted_NT = of(outcome, "trajectory_mean").parts[0].advantages_NT
    for rule in RULES:
        # A baseline of the others alone is 4/3 as far away as one with an own share; a deviation takes that out again.
        factor = 4 / 3 if scale == "none" and rule in ("mean_to_go", "progress", "position") else 1
        found_NT = of(deposit, rule).parts[0].advantages_NT
        torch.testing.assert_close(found_NT, factor * wanted_NT, rtol=1e-12 if scale == "none" else 2e-4, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_completion_alone_in_its_group_starts_from_itself(rule):
    alone = credited([[0.5], [1.0], [0.0]], [0, 1, 1], rule=rule).advantages_NT
    assert alone[0].abs().max() == 0 and alone[1:].abs().max() > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [[[], []], [[1.0], []], [[0.0, 0.0], [0.0]]])
def test_too_little_to_compare_teaches_nothing(rule, steps):
    credit = credited(steps, rule=rule)
    if rule == "position" and steps == [[1.0], []]:
        assert credit.advantages_NT[0, 0] > 0 > credit.advantages_NT[1, 0]  # a sum of 0 is known
    else:
        assert credit.advantages_NT.abs().max() == 0 and credit.zero_variance_groups == 1


@pytest.mark.parametrize("rule", RULES)
def test_equal_returns_by_different_steps_stay_small(rule):
    """All end with 1, sum to 2 and have the mean 1: the deviation of the returns is 0, that of the steps is not."""
    found_NT = credited([[1, 1], [1, 1]], rule=rule).advantages_NT
    assert found_NT.abs().max() == 0
    found_NT = credited([[0, 2, 1], [2, 0, 1]], rule=rule).advantages_NT
    assert 0 <= found_NT.abs().max() < 3
    assert (found_NT.abs().max() == 0) == (rule == "trajectory_mean")


@pytest.mark.parametrize("rule", RULES)
def test_completions_that_cannot_be_scored_take_no_part(rule):
    steps = [[1, 0, 2], [3], [0.5, 0.5]]
    without = credited(steps, rule=rule).advantages_NT
    among = credited([*steps, []], rule=rule, scored=[True, True, True, False], lengths=[7, 3, 5, 4]).advantages_NT
    assert torch.equal(among[:3], without) and among[3].abs().max() == 0


@pytest.mark.parametrize("rule", RULES)
def test_empty_completions_and_an_empty_batch(rule):
    assert credited([[], []], lengths=[0, 0], rule=rule).advantages_NT.shape == (2, 0)
    some = credited([[1.0], [], [0.0]], lengths=[2, 0, 2], rule=rule).advantages_NT
    assert some.isfinite().all() and some[1].abs().max() == 0 and some[0, 0] > 0 > some[2, 0]


def test_a_rule_needs_others_of_its_own_group_only():
    """What another group did changes nothing, unless the batch's deviation was asked for."""
    for rule in RULES:
        near, far = (
            credited([[1, 0], [2], *other], [0, 0, 1, 1], lengths=[5, 5, 5, 5], rule=rule).advantages_NT[:2]
            for other in ([[0, 1], [1]], [[9, 9], [-5]])
        )
        assert torch.equal(near, far)


def test_the_default_rule_does_not_pay_for_length():
    assert CreditSpec().rule == "mean_to_go"
