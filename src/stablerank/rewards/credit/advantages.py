"""Credit: from deposits to per-token advantages, for rewards of any density.

Contract: every component is normalised on its own, by the mean and the unbiased standard deviation of the deposits of
its group; trajectory and step deposits then flow back to every earlier token (reverse cumulative sum, the return to
go), a token deposit stays on its token. Branches on the density only, never on a reward's name.

Numerics: fp64 throughout, the result is fp32. Each completion is summarised by (group, n, mean, M2), M2 the sum of
squares about its own mean, and summaries are merged by Chan, Golub and LeVeque (1979); nothing is subtracted from a
large sum of squares, so equal deposits give a deviation of exactly zero. Only these (N, 4) numbers travel between
processes, so a group may straddle them. Groups are weighted by deposits, not by completions: a long chain of steps
counts more in its group's mean, as in the paper.

Sources: DeepSeekMath (arXiv 2402.03300) 4.1.2 and 4.1.3; one component of trajectory density gives the advantages of
``trl.GRPOTrainer`` (epsilon 1e-4, ``scale_rewards``, unscorable rows left out). With several, TRL's default sums the
rewards and then normalises; this module normalises and then sums.

Left out on purpose: discounting, value baselines, advantages without a group mean.

Legend: N completions here, R completions over all processes, T tokens, G groups; 4 = (group, n, mean, M2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stablerank.rewards.deposits import Deposit


class Normalisation(BaseModel):
    """How a component's deposits become comparable: ``(deposit - group mean) / (deviation + epsilon)``.

    ``scale`` picks the deviation: of the group (GRPO), of the whole batch, or none (Dr. GRPO, division by one).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Literal["group", "batch", "none"] = "group"
    epsilon: float = Field(default=1e-4, gt=0)


@dataclass(frozen=True)
class Component:
    """One reward's share in the credit."""

    deposit: Deposit
    weight: float = 1.0
    normalisation: Normalisation = field(default_factory=Normalisation)


@dataclass(frozen=True)
class Credit:
    """``advantages_NT`` float32, zero outside the completion mask, and two scalars for the log.

    ``scale``: standard deviation of the advantages over the tokens of the mask, all processes together.
    ``zero_variance_groups``: share of the groups that teach nothing, because in no component two deposits differ.
    """

    advantages_NT: Tensor
    scale: float
    zero_variance_groups: float


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased standard deviation of the deposits of G groups; the deviation of a single deposit is 0."""

    mean_G: Tensor
    std_G: Tensor


def advantages(
    components: Sequence[Component],
    group_ids_N: Tensor,
    completion_mask_NT: Tensor,
    gather: Callable[[Tensor], Tensor] = lambda local: local,
) -> Credit:
    """The weighted sum of the components' advantages, on the tokens of ``completion_mask_NT``.

    ``group_ids_N`` are integers that name the prompt's group, the same on every process. ``gather`` concatenates a
    tensor of N rows over processes (``accelerator.gather``); N is the same on each.
    """
    mask_NT = completion_mask_NT.bool()
    groups_G: Tensor = torch.unique(gather(group_ids_N))
    group_N = torch.searchsorted(groups_G, group_ids_N)
    total_NT = torch.zeros(mask_NT.shape, dtype=torch.float64, device=mask_NT.device)
    teaches_G = torch.zeros(len(groups_G), dtype=torch.bool, device=mask_NT.device)
    for component in components:
        moments_R4 = gather(_moments(component.deposit.token_rewards_NT, component.deposit.deposit_mask_NT, group_N))
        statistics = _merged(moments_R4, len(groups_G))
        total_NT += component.weight * _flow(component, statistics, moments_R4, group_N)
        teaches_G |= statistics.std_G > 0
    total_NT *= mask_NT
    scale = _whole(gather(_moments(total_NT, mask_NT, group_N))).std_G.item()
    return Credit(total_NT.float(), scale, 1 - teaches_G.double().mean().item())


def _flow(component: Component, statistics: Statistics, moments_R4: Tensor, group_N: Tensor) -> Tensor:
    """Normalised deposits of one component, moved to the tokens that they credit: ``(N, T)`` float64."""
    deposit, rule = component.deposit, component.normalisation
    mean_N1 = statistics.mean_G[group_N][:, None]
    deviation_N1 = {
        "group": lambda: statistics.std_G[group_N][:, None] + rule.epsilon,
        "batch": lambda: _whole(moments_R4).std_G + rule.epsilon,
        "none": lambda: torch.ones_like(mean_N1),
    }[rule.scale]()
    normalised_NT = (deposit.token_rewards_NT.double() - mean_N1) / deviation_N1
    normalised_NT = torch.where(deposit.deposit_mask_NT, normalised_NT, 0.0)
    return normalised_NT if deposit.density == "token" else normalised_NT.flip(1).cumsum(1).flip(1)


def _moments(values_NT: Tensor, mask_NT: Tensor, group_N: Tensor) -> Tensor:
    """A row's summary (group, n, mean, M2), float64 ``(N, 4)``; a row without values has n = mean = M2 = 0."""
    values_NT = torch.where(mask_NT, values_NT.double(), 0.0)
    count_N = mask_NT.sum(1).double()
    mean_N = values_NT.sum(1) / count_N.clamp(min=1)
    squares_N = torch.where(mask_NT, (values_NT - mean_N[:, None]).square(), 0.0).sum(1)
    return torch.stack([group_N.double(), count_N, mean_N, squares_N], dim=1)


def _merged(moments_R4: Tensor, groups: int) -> Statistics:
    """Statistics of each group from the summaries of its rows (Chan et al., eq. 2.1, all rows at once)."""
    group_R, count_R, mean_R, squares_R = moments_R4.unbind(1)
    index_R, zeros_G = group_R.long(), torch.zeros(groups, dtype=torch.float64, device=moments_R4.device)
    count_G = zeros_G.index_add(0, index_R, count_R)
    mean_G = zeros_G.index_add(0, index_R, count_R * mean_R) / count_G.clamp(min=1)
    squares_G = zeros_G.index_add(0, index_R, squares_R + count_R * (mean_R - mean_G[index_R]).square())
    return Statistics(mean_G, (squares_G / (count_G - 1).clamp(min=1)).sqrt())


def _whole(moments_R4: Tensor) -> Statistics:
    """Statistics of all rows as one group."""
    return _merged(torch.cat([torch.zeros_like(moments_R4[:, :1]), moments_R4[:, 1:]], dim=1), 1)
