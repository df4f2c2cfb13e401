"""Oracles: TRL's own trainer for trajectory rewards; loops over the stdlib `statistics` for every density and rule."""

import itertools
import math
import statistics
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.credit.rules import RULES
from stablerank.rewards.credit.specs import CreditSpec
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
        ours = advantages([Component(deposit, 1.0, CreditSpec(scale=scale))], torch.arange(20) // 4, mask_NT)
        theirs_NT = batch["advantages"][:, None] * mask_NT
        torch.testing.assert_close(ours.advantages_NT, theirs_NT, rtol=0, atol=1e-6)
        assert ours.advantages_NT[4:12].abs().max() == 0 and ours.advantages_NT[0, 0] > 0


@st.composite
def cases(draw, densities=("step", "token")):
    """Groups of ragged completions with arbitrary deposits; some are empty, some cannot be scored."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    group_ids_N = torch.tensor([7 * group for group, size in enumerate(sizes) for _ in range(size)])
    count = len(group_ids_N)
    mask_NT = length_mask(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    cells = mask_NT.numel()
    values = st.sampled_from([0.0, 0.1, 1.0]) | st.floats(-100, 100, width=32)
    rewards = torch.tensor(draw(st.lists(values, min_size=cells, max_size=cells)), dtype=torch.float32)
    placed = torch.tensor(draw(st.lists(st.booleans(), min_size=cells, max_size=cells)), dtype=torch.bool)
    scored_N = torch.tensor(draw(st.lists(st.sampled_from([True, True, False]), min_size=count, max_size=count)))
    deposit = Deposit(
        rewards.reshape(mask_NT.shape),
        placed.reshape(mask_NT.shape) & mask_NT & scored_N[:, None],
        torch.zeros(count).where(scored_N, torch.nan),
        draw(st.sampled_from(densities)),
    )
    scale = draw(st.sampled_from(SCALES))
    spec = CreditSpec(
        scale=scale,
        centre=draw(st.sampled_from(["group", "none"] if scale == "none" else ["group"])),
        statistics=draw(st.sampled_from(["deposit", "trajectory"])),
        rule=draw(st.sampled_from(list(RULES))),
        tokens=draw(st.sampled_from(["own", "to_go"])),
        unit=draw(st.booleans()),
    )
    return Component(deposit, draw(st.sampled_from([1.0, -0.5])), spec), group_ids_N, mask_NT


class Loops:
    """The definitions, completion by completion and token by token; `statistics` is exact."""

    def __init__(self, component, group_ids_N):
        self.deposit, self.spec, self.groups = component.deposit, component.credit, group_ids_N.tolist()
        rewards, placed = self.deposit.token_rewards_NT.tolist(), self.deposit.deposit_mask_NT.tolist()
        self.at = [[t for t, there in enumerate(row) if there] for row in placed]
        self.steps = [[rewards[i][t] for t in at] for i, at in enumerate(self.at)]
        self.scored = [not math.isnan(number) for number in self.deposit.trajectory_rewards_N.tolist()]

    def centre(self, i, samples):
        """Mean of the group of completion i; ``samples``: the values of each completion."""
        mates = [values for group, values in zip(self.groups, samples, strict=True) if group == self.groups[i]]
        return self.mean(mates) if self.spec.centre == "group" else 0.0

    def divisor(self, i, samples):
        mates = [values for group, values in zip(self.groups, samples, strict=True) if group == self.groups[i]]
        return {
            "group": lambda: self.deviation(mates) + self.spec.epsilon,
            "batch": lambda: self.deviation(samples) + self.spec.epsilon,
            "none": lambda: 1.0,
        }[self.spec.scale]()

    def mean(self, samples):
        if self.spec.statistics == "trajectory":
            samples = [[statistics.mean(values)] for values in samples if values]
        return statistics.mean(list(itertools.chain(*samples)) or [0.0])

    def deviation(self, samples):
        samples, centre = [values for values in samples if values], self.mean(samples)
        if self.spec.statistics == "trajectory":
            squares = sum(statistics.mean([(value - centre) ** 2 for value in values]) for values in samples)
            return math.sqrt(squares / max(1, len(samples) - 1))
        flat = list(itertools.chain(*samples))
        return statistics.stdev(flat) if len(flat) > 1 else 0.0

    def others(self, i, numbers):
        """Mean over the others of the group that have a number, its own where none has."""
        others = [
            number
            for k, number in enumerate(numbers)
            if k != i and self.groups[k] == self.groups[i] and number is not None
        ]
        return statistics.mean(others or [numbers[i]])

    def ahead(self, i):
        """Of rules with a baseline of the others alone: the advantages of steps 1 to S + 1 before any division."""
        rewards, weight = self.steps[i], 1 if self.spec.centre == "group" else 0
        lasts, means, counts = (
            [of(values) if values else None for values in self.steps]
            for of in (lambda values: values[-1], statistics.mean, len)
        )
        if self.spec.rule == "position":
            sums = [
                [sum(values[j:]) if scored else None for values, scored in zip(self.steps, self.scored, strict=True)]
                for j in range(len(rewards) + 1)
            ]
            return [column[i] - weight * self.others(i, column) for column in sums] if self.scored[i] else []
        if not rewards:
            return []
        if self.spec.rule == "progress":
            return [rewards[-1] - before for before in [weight * self.others(i, lasts), *rewards]]
        centre, number = weight * self.others(i, means), self.others(i, counts)
        brought = [sum(reward - centre for reward in rewards[:j]) / max(number, j) for j in range(len(rewards) + 1)]
        return [means[i] - centre - part for part in brought]

    def of_step(self, i, j):
        """The advantage of the tokens of step j of completion i; j = S is what comes after the last deposit."""
        rewards, samples = self.steps[i], self.steps
        if self.spec.rule == "trajectory_mean":
            means = [[statistics.mean(values)] if values else [] for values in samples]
            return (means[i][0] - self.centre(i, means)) / self.divisor(i, means) if rewards else 0.0
        if self.spec.rule in ("mean_to_go", "progress", "position"):
            ahead = [self.ahead(k) for k in range(len(samples))]
            return ahead[i][j] / self.divisor(i, [row[: max(1, len(row) - 1)] for row in ahead]) if ahead[i] else 0.0
        chosen = rewards[j:] if self.spec.rule == "return_to_go" else rewards[j : j + 1]
        return sum((reward - self.centre(i, samples)) / self.divisor(i, samples) for reward in chosen)

    def of_token(self, i, t):
        if self.deposit.density == "step":
            return self.of_step(i, sum(at < t for at in self.at[i]))
        counted = [at == t or (at > t and self.spec.tokens == "to_go") for at in self.at[i]]
        rewards = itertools.compress(self.steps[i], counted)
        return sum((reward - self.centre(i, self.steps)) / self.divisor(i, self.steps) for reward in rewards)

    def all_tokens(self, mask):
        """Every token of the mask, at one scale where that is asked for; 0 elsewhere."""
        found = [[self.of_token(i, t) if there else None for t, there in enumerate(row)] for i, row in enumerate(mask)]
        flat = [value for row in found for value in row if value is not None]
        deviation = statistics.stdev(flat) if len(flat) > 1 else 0.0
        divisor = deviation + self.spec.epsilon if self.spec.unit else 1.0
        return [[0.0 if value is None else value / divisor for value in row] for row in found]


@given(cases())
@settings(deadline=None, max_examples=150)
def test_step_and_token_credit_equal_the_loops(case):
    component, group_ids_N, mask_NT = case
    wanted = Loops(component, group_ids_N).all_tokens(mask_NT.tolist())
    wanted_NT = torch.tensor(wanted, dtype=torch.float64).reshape(mask_NT.shape)
    ours = advantages([component], group_ids_N, mask_NT)
    torch.testing.assert_close(ours.parts[0].advantages_NT, wanted_NT, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(ours.advantages_NT, (component.weight * wanted_NT).float(), rtol=1e-6, atol=1e-8)


@given(cases(), st.randoms())
@settings(deadline=None)
def test_order_of_completions_does_not_matter(case, random):
    component, group_ids_N, mask_NT = case
    order = list(range(len(group_ids_N)))
    random.shuffle(order)
    deposit = component.deposit
    shuffled = replace(
        deposit,
        token_rewards_NT=deposit.token_rewards_NT[order],
        deposit_mask_NT=deposit.deposit_mask_NT[order],
        trajectory_rewards_N=deposit.trajectory_rewards_N[order],
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


@pytest.mark.parametrize("rule", RULES)
def test_equal_deposits_far_from_zero_teach_exactly_nothing(rule):
    # The position rule is about sums: there the number of steps must be equal too.
    mask_NT, group_ids_N = length_mask([3] * 8 if rule == "position" else [3, 1, 2, 3] * 2), torch.arange(8) // 4
    deposit = Deposit(torch.full((8, 3), 1e6 + 0.1), mask_NT, torch.zeros(8), "step")
    credit = advantages([Component(deposit, 1.0, CreditSpec(rule=rule))], group_ids_N, mask_NT)
    assert credit.advantages_NT.abs().max() == 0
    assert credit.scale == 0 and credit.zero_variance_groups == 1


def test_components_are_normalised_apart_and_summed():
    mask_NT, group_ids_N = length_mask([2, 1, 2, 2]), torch.tensor([0, 0, 1, 1])
    large = Component(trajectory_deposit([0.0, 1000.0, 1.0, 1.0], mask_NT), 0.5)
    small = Component(trajectory_deposit([0.0, 1e-2, None, 1.0], mask_NT), 2.0, CreditSpec(scale="none"))
    both = advantages([large, small], group_ids_N, mask_NT)
    alone = [advantages([component], group_ids_N, mask_NT) for component in (large, small)]
    torch.testing.assert_close(both.advantages_NT, alone[0].advantages_NT + alone[1].advantages_NT)
    for part, credit in zip(both.parts, alone, strict=True):
        assert torch.equal(part.advantages_NT, credit.parts[0].advantages_NT)
    assert both.zero_variance_groups == 0.5
    assert both.scale == pytest.approx(both.advantages_NT[mask_NT].double().std().item())


def test_a_masked_completion_still_counts_in_its_group():
    sampled_NT, group_ids_N = length_mask([2, 2, 2]), torch.zeros(3, dtype=torch.long)
    deposit = trajectory_deposit([0.0, 0.0, 3.0], sampled_NT)
    loss_NT = sampled_NT & torch.tensor([[True], [True], [False]])
    full, masked = (advantages([Component(deposit)], group_ids_N, mask).advantages_NT for mask in (sampled_NT, loss_NT))
    assert torch.equal(masked, full * loss_NT) and masked[2].abs().max() == 0 and full[2].min() > 0


def test_division_by_zero_is_refused():
    with pytest.raises(ValidationError):
        CreditSpec(epsilon=0.0)
    for scale in ("group", "batch"):
        with pytest.raises(ValidationError, match="set scale=none too"):
            CreditSpec(scale=scale, centre="none")
