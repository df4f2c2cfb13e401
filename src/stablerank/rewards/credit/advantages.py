"""Credit: from deposits to per-token advantages, for rewards of any density.

Contract: every component is normalised on its own, by the statistics of the deposits of its group, then weighted and
summed. A trajectory reward goes to all tokens of its completion, a token reward stays on its token (or goes to all
before it as well, ``tokens="to_go"``), step rewards follow the component's rule (rules.py). ``unit`` brings a
component's advantages to one scale, whatever its rule. Branches on the density only, never on a reward's name.

Numerics: fp64 throughout, the summed advantages are fp32. Groups may straddle processes (moments.py).

Sources: DeepSeekMath (arXiv 2402.03300) 4.1.2 and 4.1.3; one component of trajectory density gives the advantages of
``trl.GRPOTrainer`` (epsilon 1e-4, ``scale_rewards``, unscorable rows left out). With several, TRL's default sums the
rewards and then normalises; this module normalises and then sums.

Left out on purpose: discounting, learned value baselines.

Legend: N completions, T tokens, J steps of the longest completion over all processes, K = J + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stablerank.rewards.credit.moments import Gather, Groups
from stablerank.rewards.credit.rules import RULES, Steps, to_go, with_tail
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit


@dataclass(frozen=True)
class Component:
    """One reward's share in the credit."""

    deposit: Deposit
    weight: float = 1.0
    credit: CreditSpec = field(default_factory=CreditSpec)


@dataclass(frozen=True)
class Part:
    """What one component gave before its weight, ``(N, T)`` float64.

    ``deposits_NT``: normalised, 0 where there is no deposit. ``advantages_NT``: what its rule made of them, 0 outside
    the completion mask.
    """

    deposits_NT: Tensor
    advantages_NT: Tensor


@dataclass(frozen=True)
class Credit:
    """``advantages_NT`` float32, zero outside the completion mask, two scalars for the log, and the parts of the sum.

    ``scale``: standard deviation of the advantages over the tokens of the mask, all processes together.
    ``zero_variance_groups``: share of the groups that teach nothing: no component gives a token any advantage.
    """

    advantages_NT: Tensor
    scale: float
    zero_variance_groups: float
    parts: tuple[Part, ...]


def advantages(
    components: Sequence[Component],
    group_ids_N: Tensor,
    completion_mask_NT: Tensor,
    gather: Gather = lambda local: local,
) -> Credit:
    """The weighted sum of the components' advantages, on the tokens of ``completion_mask_NT``.

    ``group_ids_N`` are integers that name the prompt's group, the same on every process. ``gather`` concatenates a
    tensor of N rows over processes (``accelerator.gather``); N is the same on each.
    """
    mask_NT = completion_mask_NT.bool()
    groups = Groups.of(group_ids_N, gather)
    parts = tuple(_part(component, groups, mask_NT) for component in components)
    total_NT = torch.zeros(mask_NT.shape, dtype=torch.float64, device=mask_NT.device)
    teaches_N1 = torch.zeros(len(mask_NT), 1, dtype=torch.bool, device=mask_NT.device)
    for component, part in zip(components, parts, strict=True):
        total_NT += component.weight * part.advantages_NT
        teaches_N1 |= (part.advantages_NT != 0).any(1, keepdim=True)
    silent = (groups.sums(teaches_N1) == 0).double().mean().item()
    return Credit(total_NT.float(), groups.whole_deviation(total_NT, mask_NT), silent, parts)


def _part(component: Component, groups: Groups, mask_NT: Tensor) -> Part:
    deposit, spec = component.deposit, component.credit
    part = (_of_tokens if deposit.density == "token" else _of_steps)(deposit, spec, groups, mask_NT)
    if not spec.unit:
        return part
    deviation = groups.whole_deviation(part.advantages_NT, mask_NT)
    return replace(part, advantages_NT=part.advantages_NT / (deviation + spec.epsilon))


def _of_tokens(deposit: Deposit, spec: CreditSpec, groups: Groups, mask_NT: Tensor) -> Part:
    placed_NT = deposit.deposit_mask_NT
    normalised_NT = groups.standard(deposit.token_rewards_NT, placed_NT, spec)(deposit.token_rewards_NT.double())
    normalised_NT = torch.where(placed_NT, normalised_NT, 0.0)
    advantages_NT = to_go(normalised_NT) if spec.tokens == "to_go" else normalised_NT
    return Part(normalised_NT, advantages_NT * mask_NT)


def _of_steps(deposit: Deposit, spec: CreditSpec, groups: Groups, mask_NT: Tensor) -> Part:
    placed_NT = deposit.deposit_mask_NT
    rule = RULES["trajectory_mean" if deposit.density == "trajectory" else spec.rule]
    deposits_NJ, advantages_NK = rule(_steps(deposit, groups), groups, spec)
    # The step that a token belongs to: as many deposits as came before it.
    step_NT = placed_NT.cumsum(1) - placed_NT.long()
    deposits_NT = torch.where(placed_NT, with_tail(deposits_NJ).gather(1, step_NT), 0.0)
    return Part(deposits_NT, advantages_NK.gather(1, step_NT) * mask_NT)


def _steps(deposit: Deposit, groups: Groups) -> Steps:
    """The deposits without the tokens between them."""
    placed_NT = deposit.deposit_mask_NT
    count_N = placed_NT.sum(1)
    longest = int(groups.gather(count_N).max())
    present_NJ = torch.arange(longest, device=count_N.device) < count_N[:, None]
    rewards_NJ = torch.zeros(present_NJ.shape, dtype=torch.float64, device=count_N.device)
    rewards_NJ[present_NJ] = deposit.token_rewards_NT[placed_NT].double()
    return Steps(rewards_NJ, present_NJ, ~deposit.trajectory_rewards_N.isnan() | (count_N > 0))
