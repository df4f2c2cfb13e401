"""Means and deviations of groups whose completions may sit on several processes.

Contract: a completion is summarised by (group, n, mean, M2), M2 the sum of squares about its own mean, and summaries
are merged by Chan, Golub and LeVeque (1979, eq. 2.1), all rows at once. Only such rows travel: no token does.

Numerics: fp64. Nothing is subtracted from a large sum of squares, so equal deposits give a deviation of exactly zero.
The deviation is the unbiased one, 0 for a single deposit.

Legend: N completions here, R over all processes, G groups, T values of a completion, K columns; 4 = (group, n, mean,
M2); N1 a column.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.rewards.credit.specs import CreditSpec

Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor of N rows over all processes, as ``accelerator.gather`` does; N is the same on each."""


@dataclass(frozen=True)
class Standard:
    """What values are measured by: each completion's centre and divisor, ``(N, 1)`` float64."""

    centre_N1: Tensor
    divisor_N1: Tensor

    def __call__(self, values_NT: Tensor) -> Tensor:
        """``(values - centre) / divisor``."""
        return (values_NT - self.centre_N1) / self.divisor_N1


@dataclass(frozen=True)
class Groups:
    """The groups of a batch: ``index_N`` numbers each completion's from 0 on, the same on every process."""

    index_N: Tensor
    count: int
    gather: Gather

    @classmethod
    def of(cls, group_ids_N: Tensor, gather: Gather) -> "Groups":
        """From any integers that name the groups."""
        ids_G: Tensor = torch.unique(gather(group_ids_N))
        return cls(torch.searchsorted(ids_G, group_ids_N), len(ids_G), gather)

    def standard(self, values_NT: Tensor, mask_NT: Tensor, spec: CreditSpec) -> Standard:
        """Centre and divisor that ``spec`` asks for, from the values under the mask.

        With ``statistics="trajectory"`` every completion weighs 1, spread evenly over its values: the mean is that of
        the completions' means, the variance ``sum_i (M2_i / n_i + (mean_i - mean)^2) / (completions - 1)``.
        """
        rows_R4 = self.gather(_summaries(values_NT, mask_NT, self.index_N))
        if spec.statistics == "trajectory":
            rows_R4 = _each_row_once(rows_R4)
        mean_G, deviation_G = _merged(rows_R4, self.count)
        mean_N1 = mean_G[self.index_N][:, None]
        one_N1 = torch.ones_like(mean_N1)
        divisor_N1 = {
            "group": lambda: deviation_G[self.index_N][:, None] + spec.epsilon,
            "batch": lambda: one_N1 * (_whole_deviation(rows_R4) + spec.epsilon),
            "none": lambda: one_N1,
        }[spec.scale]()
        return Standard(mean_N1 if spec.centre == "group" else torch.zeros_like(mean_N1), divisor_N1)

    def others_mean(self, values_NK: Tensor, counted_N: Tensor) -> Tensor:
        """Each column's mean over the other counted completions of the group, the own value where there are none."""
        own_NK = torch.cat([counted_N[:, None].double(), torch.where(counted_N[:, None], values_NK, 0.0)], dim=1)
        others_NK = self.sums(own_NK)[self.index_N] - own_NK
        count_N1, total_NK = others_NK[:, :1], others_NK[:, 1:]
        return torch.where(count_N1 > 0, total_NK / count_N1.clamp(min=1), values_NK)

    def sums(self, values_NK: Tensor) -> Tensor:
        """Sum of each column over each group: ``(G, K)`` float64."""
        rows_R = self.gather(torch.cat([self.index_N[:, None].double(), values_NK.double()], dim=1))
        zeros_GK = rows_R.new_zeros(self.count, values_NK.shape[1])
        return zeros_GK.index_add(0, rows_R[:, 0].long(), rows_R[:, 1:])

    def whole_deviation(self, values_NT: Tensor, mask_NT: Tensor) -> float:
        """Standard deviation of all values under the mask, all processes together."""
        return _whole_deviation(self.gather(_summaries(values_NT, mask_NT, self.index_N))).item()


def _summaries(values_NT: Tensor, mask_NT: Tensor, group_N: Tensor) -> Tensor:
    """A row's (group, n, mean, M2), float64 ``(N, 4)``; a row without values has n = mean = M2 = 0."""
    values_NT = torch.where(mask_NT, values_NT.double(), 0.0)
    count_N = mask_NT.sum(1).double()
    mean_N = values_NT.sum(1) / count_N.clamp(min=1)
    squares_N = torch.where(mask_NT, (values_NT - mean_N[:, None]).square(), 0.0).sum(1)
    return torch.stack([group_N.double(), count_N, mean_N, squares_N], dim=1)


def _each_row_once(rows_R4: Tensor) -> Tensor:
    """The summaries of rows that weigh 1, however many values they hold."""
    group_R, count_R, mean_R, squares_R = rows_R4.unbind(1)
    return torch.stack([group_R, count_R.clamp(max=1), mean_R, squares_R / count_R.clamp(min=1)], dim=1)


def _merged(rows_R4: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation of each group, ``(G,)`` each."""
    group_R, count_R, mean_R, squares_R = rows_R4.unbind(1)
    index_R, zeros_G = group_R.long(), rows_R4.new_zeros(groups)
    count_G = zeros_G.index_add(0, index_R, count_R)
    mean_G = zeros_G.index_add(0, index_R, count_R * mean_R) / count_G.clamp(min=1)
    squares_G = zeros_G.index_add(0, index_R, squares_R + count_R * (mean_R - mean_G[index_R]).square())
    return mean_G, (squares_G / (count_G - 1).clamp(min=1)).sqrt()


def _whole_deviation(rows_R4: Tensor) -> Tensor:
    """Deviation of all rows as one group, a scalar."""
    one_group_R4 = torch.cat([torch.zeros_like(rows_R4[:, :1]), rows_R4[:, 1:]], dim=1)
    return _merged(one_group_R4, 1)[1][0]
