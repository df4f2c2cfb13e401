"""Oracles: TRL's own trainer for trajectory rewards; loops over the stdlib `statistics` for the other densities."""

import statistics
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stablerank.rewards.credit import Component, Normalisation, advantages
from stablerank.rewards.deposits import Deposit, trajectory_deposit
from stablerank.rewards.rollout import length_mask

SCALES = ["group", "batch", "none"]
REPLAYED = [
    *[1.0, 0.0, 0.25, 0.0],
    *[0.1, 0.1, 0.1, 0.1],
    *[None, 0.7, None, None],
    *[None, -3.0, 5.0, 1e-3],
    *[None, None, None, None],
]


def test_trajectory_credit_is_that_of_trl(grpo_trainer):
    trainer = grpo_trainer(lambda prompts, **_: REPLAYED)
    trainer.model.train()
    rows = [row for row in trainer.train_dataset for _ in range(4)]
    for scale in SCALES:
        trainer.scale_rewards = scale
        batch = trainer._generate_and_score_completions(rows)
        mask_NT = batch["completion_mask"].bool()
        deposit = trajectory_deposit(REPLAYED, mask_NT)
        ours = advantages([Component(deposit, 1.0, Normalisation(scale=scale))], torch.arange(20) // 4, mask_NT)
        theirs_NT = batch["advantages"][:, None] * mask_NT
        torch.testing.assert_close(ours.advantages_NT, theirs_NT, rtol=0, atol=1e-6)
        assert ours.advantages_NT[4:12].abs().max() == 0 and ours.advantages_NT[0, 0] > 0


@st.composite
def cases(draw, densities=("step", "token")):
    """Groups of ragged completions, some empty, with arbitrary deposits."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    group_ids_N = torch.tensor([7 * group for group, size in enumerate(sizes) for _ in range(size)])
    count = len(group_ids_N)
    lengths = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    mask_NT = length_mask(lengths)
    cells = mask_NT.numel()
    values = st.sampled_from([0.0, 0.1, 1.0]) | st.floats(-100, 100, width=32)
    rewards = torch.tensor(draw(st.lists(values, min_size=cells, max_size=cells)), dtype=torch.float32)
    placed = torch.tensor(draw(st.lists(st.booleans(), min_size=cells, max_size=cells)), dtype=torch.bool)
    deposit = Deposit(
        rewards.reshape(mask_NT.shape),
        placed.reshape(mask_NT.shape) & mask_NT,
        torch.zeros(count),
        draw(st.sampled_from(densities)),
    )
    normalisation = Normalisation(scale=draw(st.sampled_from(SCALES)))
    return Component(deposit, draw(st.sampled_from([1.0, -0.5])), normalisation), group_ids_N, mask_NT


def credit_by_loops(component, group_ids, mask):
    """Float64 loops over the definition; `statistics` computes mean and deviation exactly."""
    deposit, rule = component.deposit, component.normalisation
    rewards, placed = deposit.token_rewards_NT.tolist(), deposit.deposit_mask_NT.tolist()
    deposits = [(g, r, t) for r, g in enumerate(group_ids) for t in range(len(placed[r])) if placed[r][t]]
    everything = [rewards[r][t] for _, r, t in deposits]
    credit = [[0.0] * len(row) for row in mask]
    for group, row, at in deposits:
        mates = [rewards[r][t] for g, r, t in deposits if g == group]
        spread = {"group": mates, "batch": everything, "none": []}[rule.scale]
        deviation = statistics.stdev(spread) if len(spread) > 1 else 0.0
        divisor = 1.0 if rule.scale == "none" else deviation + rule.epsilon
        earlier = range(at + 1) if deposit.density == "step" else [at]
        for t in earlier:
            credit[row][t] += component.weight * mask[row][t] * (rewards[row][at] - statistics.mean(mates)) / divisor
    return torch.tensor(credit).reshape(len(mask), -1)


@given(cases())
@settings(deadline=None)
def test_step_and_token_credit_equal_the_loops(case):
    component, group_ids_N, mask_NT = case
    ours = advantages([component], group_ids_N, mask_NT).advantages_NT
    loops = credit_by_loops(component, group_ids_N.tolist(), mask_NT.tolist()).reshape(ours.shape)
    torch.testing.assert_close(ours, loops, rtol=1e-5, atol=1e-5)


@given(cases(), st.randoms())
@settings(deadline=None)
def test_order_of_completions_does_not_matter(case, random):
    component, group_ids_N, mask_NT = case
    order = list(range(len(group_ids_N)))
    random.shuffle(order)
    deposit = component.deposit
    shuffled = replace(
        deposit, token_rewards_NT=deposit.token_rewards_NT[order], deposit_mask_NT=deposit.deposit_mask_NT[order]
    )
    straight = advantages([component], group_ids_N, mask_NT)
    mixed = advantages([replace(component, deposit=shuffled)], group_ids_N[order], mask_NT[order])
    torch.testing.assert_close(mixed.advantages_NT, straight.advantages_NT[order], rtol=1e-5, atol=1e-5)
    assert mixed.scale == pytest.approx(straight.scale, rel=1e-6, abs=1e-6)
    assert mixed.zero_variance_groups == straight.zero_variance_groups


class TwoWorkers:
    """Two threads that meet at each gather and leave with both halves, in order."""

    def __init__(self):
        self.slots, self.barrier = [None, None], threading.Barrier(2, timeout=30)

    def gather_as(self, rank):
        def gather(local):
            self.slots[rank] = local
            self.barrier.wait()
            both = torch.cat(self.slots)
            self.barrier.wait()
            return both

        return gather

    def run(self, work):
        results = [None, None]
        threads = [
            threading.Thread(target=lambda r=r: results.__setitem__(r, work(r, self.gather_as(r)))) for r in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@given(cases())
@settings(deadline=None, max_examples=40)
def test_groups_may_straddle_processes(case):
    component, group_ids_N, mask_NT = case
    keep = len(group_ids_N) // 2 * 2
    halves = [slice(0, keep // 2), slice(keep // 2, keep)]

    def part(rows):
        deposit = component.deposit
        cut = Deposit(
            deposit.token_rewards_NT[rows],
            deposit.deposit_mask_NT[rows],
            deposit.trajectory_rewards_N[rows],
            deposit.density,
        )
        return [replace(component, deposit=cut)], group_ids_N[rows], mask_NT[rows]

    if keep == 0:
        return
    whole = advantages(*part(slice(0, keep)))
    first, second = TwoWorkers().run(lambda rank, gather: advantages(*part(halves[rank]), gather=gather))
    split_NT = torch.cat([first.advantages_NT, second.advantages_NT])
    torch.testing.assert_close(split_NT, whole.advantages_NT, rtol=1e-6, atol=1e-6)
    assert first.scale == second.scale == pytest.approx(whole.scale, rel=1e-9, abs=1e-12)
    assert first.zero_variance_groups == second.zero_variance_groups == whole.zero_variance_groups


def test_equal_deposits_far_from_zero_teach_exactly_nothing():
    mask_NT = length_mask([3] * 8)
    deposit = Deposit(torch.full((8, 3), 1e6 + 0.1), mask_NT, torch.zeros(8), "step")
    credit = advantages([Component(deposit)], torch.zeros(8, dtype=torch.long), mask_NT)
    assert credit.advantages_NT.abs().max() == 0
    assert credit.scale == 0 and credit.zero_variance_groups == 1


def test_components_are_normalised_apart_and_summed():
    mask_NT, group_ids_N = length_mask([2, 1, 2, 2]), torch.tensor([0, 0, 1, 1])
    large = Component(trajectory_deposit([0.0, 1000.0, 1.0, 1.0], mask_NT), 0.5)
    small = Component(trajectory_deposit([0.0, 1e-2, None, 1.0], mask_NT), 2.0, Normalisation(scale="none"))
    both = advantages([large, small], group_ids_N, mask_NT)
    alone = [advantages([component], group_ids_N, mask_NT) for component in (large, small)]
    torch.testing.assert_close(both.advantages_NT, alone[0].advantages_NT + alone[1].advantages_NT)
    assert both.zero_variance_groups == 0.5
    assert both.scale == pytest.approx(both.advantages_NT[mask_NT].double().std().item())


def test_a_masked_completion_still_counts_in_its_group():
    sampled_NT, group_ids_N = length_mask([2, 2, 2]), torch.zeros(3, dtype=torch.long)
    deposit = trajectory_deposit([0.0, 0.0, 3.0], sampled_NT)
    loss_NT = sampled_NT & torch.tensor([[True], [True], [False]])
    full, masked = (advantages([Component(deposit)], group_ids_N, mask).advantages_NT for mask in (sampled_NT, loss_NT))
    assert torch.equal(masked, full * loss_NT) and masked[2].abs().max() == 0 and full[2].min() > 0


def test_normalisation_refuses_division_by_zero():
    with pytest.raises(ValidationError):
        Normalisation(epsilon=0.0)
