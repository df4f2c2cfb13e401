"""Rules for step rewards: which advantage the tokens of each step get.

Contract: a rule takes the rewards ``r_1 .. r_S`` of each completion's steps and answers ``(deposits_NJ,
advantages_NK)``: each step's normalised reward, and the advantage of the tokens of step j in column j. Tokens after the
last deposit (an end token, an unscored rest) belong to column S. Completions without a deposit get 0, except that
`position` knows a completion of no steps, whose sum is 0, from one that could not be scored.

With primes for means over the other completions of the group (0 for ``centre: none``), m and d the mean and the divisor
of `CreditSpec` (``d = deviation + epsilon``, or 1):

    mean_to_go        (mean_k r_k - m' - sum_{k<j} (r_k - m') / max(S', j-1)) / d    m' of the means, S' of the numbers
    trajectory_mean   (mean_k r_k - m) / d                                           m, d over the means
    progress          (r_S - r_{j-1}) / d                                            r_0 = r_S'
    position          (sum_{k>=j} r_k - m'_j) / d                                    m'_j of the sums from step j on
    return_to_go      sum_{k>=j} (r_k - m) / d                                       m, d over the deposits
    per_deposit       (r_j - m) / d                                                  m, d over the deposits

where no place is given, d is over the advantages of all steps. S' is no centre: it is the others' under any spec. A
completion alone in its group stands for the others.

Bias: take the expected sum of ``advantage * grad log pi`` over tokens, d = 1. What depends on the tokens before and on
the other completions alone adds nothing to it. So `mean_to_go` is the gradient of E[mean r], `progress` of E[r_S] and
`position` of E[sum r]; `trajectory_mean`, whose m has an own share, is (G-1)/G times that of E[mean r]. An own share
would shrink the first step of the others and not the rest. Of the objectives only E[sum r] pays for length.
`return_to_go` comes near a multiple of the gradient of E[sum r] / E[S] as G grows; `per_deposit` ignores what a step
leads to. Division by a deviation that a completion shares in biases all. docs/credit.md has numbers.

Sources: `mean_to_go` is ours: a return to go of r / S in which S, which later tokens decide, is replaced by the others'
S in what is taken off. `return_to_go` is DeepSeekMath (arXiv 2402.03300) 4.1.3, and with epsilon 1e-8 the rule of
gernim/lora-reward-density. `progress` is potential-based shaping (Ng et al. 1999), the step reward being the potential.

Left out on purpose: the plain return to go of r / S, which is of no objective's gradient; a baseline for `progress` at
every step, which the reward before it already is.

Legend: N completions, J steps of the longest completion over all processes, K = J + 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.rewards.credit.moments import Groups
from stablerank.rewards.credit.specs import CreditSpec, StepRule


@dataclass(frozen=True)
class Steps:
    """``rewards_NJ`` float64, 0 where ``present_NJ`` is false; ``scored_N``: whether the completion could be scored."""

    rewards_NJ: Tensor
    present_NJ: Tensor
    scored_N: Tensor

    @property
    def any_N1(self) -> Tensor:
        """Whether a completion has a step at all."""
        return self.present_NJ.any(1, keepdim=True)

    @property
    def count_N1(self) -> Tensor:
        """The number S of steps."""
        return self.present_NJ.sum(1, keepdim=True)

    @property
    def mean_N1(self) -> Tensor:
        """The mean of the step rewards, 0 where there is none."""
        return self.rewards_NJ.sum(1, keepdim=True) / self.count_N1.clamp(min=1)


Rule = Callable[[Steps, Groups, CreditSpec], tuple[Tensor, Tensor]]


def mean_to_go(steps: Steps, groups: Groups, spec: CreditSpec) -> tuple[Tensor, Tensor]:
    """The mean of the step rewards over the others' mean, less what the steps before have brought of it."""
    mean_N1 = steps.mean_N1
    others_N2 = groups.others_mean(torch.cat([mean_N1, steps.count_N1], dim=1), steps.any_N1[:, 0])
    centre_N1, count_N1 = others_N2[:, :1] * (spec.centre == "group"), others_N2[:, 1:]
    excess_NJ = torch.where(steps.present_NJ, steps.rewards_NJ - centre_N1, 0.0)
    before_NK = torch.nn.functional.pad(excess_NJ.cumsum(1), (1, 0))
    steps_before_K = torch.arange(before_NK.shape[1], device=before_NK.device)
    ahead_NK = mean_N1 - centre_N1 - before_NK / torch.maximum(count_N1, steps_before_K).clamp(min=1)
    return _divided(torch.where(steps.any_N1, ahead_NK, 0.0), steps.any_N1, steps, groups, spec)


def trajectory_mean(steps: Steps, groups: Groups, spec: CreditSpec) -> tuple[Tensor, Tensor]:
    """All tokens get the mean of the step rewards; a trajectory reward is the case S = 1."""
    standard = groups.standard(steps.mean_N1, steps.any_N1, spec)
    advantage_N1 = torch.where(steps.any_N1, standard(steps.mean_N1), 0.0)
    columns = steps.rewards_NJ.shape[1] + 1
    return torch.where(steps.present_NJ, standard(steps.rewards_NJ), 0.0), advantage_N1.expand(-1, columns)


def progress(steps: Steps, groups: Groups, spec: CreditSpec) -> tuple[Tensor, Tensor]:
    """A step is worth what it adds to the reward before it; the first starts from what the others ended with."""
    last_N1 = with_tail(steps.rewards_NJ).gather(1, (steps.count_N1 - 1).clamp(min=0))
    start_N1 = groups.others_mean(last_N1, steps.any_N1[:, 0]) if spec.centre == "group" else torch.zeros_like(last_N1)
    before_NJ = torch.cat([start_N1, steps.rewards_NJ], dim=1)[:, :-1]
    ahead_NJ = torch.where(steps.present_NJ, last_N1 - before_NJ, 0.0)
    return _divided(with_tail(ahead_NJ), steps.any_N1, steps, groups, spec)


def position(steps: Steps, groups: Groups, spec: CreditSpec) -> tuple[Tensor, Tensor]:
    """The sum of the rewards to come, over what the others had to come at the same step; 0 for those that had ended."""
    sum_NK = with_tail(to_go(steps.rewards_NJ))
    others_NK = groups.others_mean(sum_NK, steps.scored_N) if spec.centre == "group" else torch.zeros_like(sum_NK)
    scored_N1 = steps.scored_N[:, None]
    return _divided(torch.where(scored_N1, sum_NK - others_NK, 0.0), scored_N1, steps, groups, spec)


def return_to_go(steps: Steps, groups: Groups, spec: CreditSpec) -> tuple[Tensor, Tensor]:
    """The sum of the normalised rewards to come."""
    normalised_NJ = _normalised(steps, groups, spec)
    return normalised_NJ, with_tail(to_go(normalised_NJ))


def per_deposit(steps: Steps, groups: Groups, spec: CreditSpec) -> tuple[Tensor, Tensor]:
    """Each step's tokens get its own normalised reward."""
    normalised_NJ = _normalised(steps, groups, spec)
    return normalised_NJ, with_tail(normalised_NJ)


RULES: Mapping[StepRule, Rule] = {
    "mean_to_go": mean_to_go,
    "trajectory_mean": trajectory_mean,
    "progress": progress,
    "position": position,
    "return_to_go": return_to_go,
    "per_deposit": per_deposit,
}


def _normalised(steps: Steps, groups: Groups, spec: CreditSpec) -> Tensor:
    standard = groups.standard(steps.rewards_NJ, steps.present_NJ, spec)
    return torch.where(steps.present_NJ, standard(steps.rewards_NJ), 0.0)


def _divided(
    ahead_NK: Tensor, counted_N1: Tensor, steps: Steps, groups: Groups, spec: CreditSpec
) -> tuple[Tensor, Tensor]:
    """Divided by the deviation over all steps; a deposit is what its step takes from the advantage.

    Not by the deviation of returns: where all end with the same, it is 0, and the steps on the way still differ. The
    first steps of a group add up to 0, so that this one is 0 only where there is nothing to divide.
    """
    reached_NK = torch.arange(ahead_NK.shape[1], device=ahead_NK.device) < steps.count_N1.clamp(min=1)
    advantages_NK = ahead_NK / groups.standard(ahead_NK, reached_NK & counted_N1, spec).divisor_N1
    return torch.where(steps.present_NJ, -advantages_NK.diff(dim=1), 0.0), advantages_NK


def to_go(values_NJ: Tensor) -> Tensor:
    """Sum over this and all later columns."""
    return values_NJ.flip(1).cumsum(1).flip(1)


def with_tail(values_NJ: Tensor) -> Tensor:
    """One more column of zeros, for the tokens after the last deposit."""
    return torch.nn.functional.pad(values_NJ, (0, 1))
