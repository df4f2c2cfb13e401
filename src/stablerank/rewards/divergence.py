"""KL in the reward: every sampled token pays for its distance from the frozen reference.

Legend: N completions, T tokens of the longest.

With ``d = log p(token) - log p_ref(token)``, both at the sampling temperature, the deposit of a token is ``-k`` for an
estimator of J. Schulman ("Approximating KL divergence", 2020; estimators.py):

- ``k1 = d``: its expectation under the policy is the KL divergence of that token's distribution, and the expected
  policy gradient of the deposit is the negative gradient of that divergence (Liu et al., arXiv 2510.01555). Default.
- ``k2 = d^2 / 2``: never negative and less noisy, a good *number* for a log near the reference, but not a pull towards
  it. By ``grad E[g(d)] = E[(g + g') grad log p]``, paying ``-k2`` ascends ``-E[d^2 / 2 - d + 1]``, of which the
  reference is a saddle and not the maximum: its expected gradient vanishes to second order there. As a *loss*, with
  the gradient through d, k2 is right; in the reward it is for comparison with work that put it there.

Contract: one deposit on every sampled token, credited to that token alone. So the pull is that of the divergence at
the places the completion visited; that a token leads to places of more or less divergence is left out, as in on-policy
distillation. ``trajectory_rewards_N`` is the sum over tokens: with k1, minus the log-ratio of the whole completion,
whose expectation is minus the KL divergence of the two models' completions. The coefficient is the component's weight,
which is why its default credit neither centres nor scales.

Numerics: fp64 from fp32 log-probabilities. Cost: both passes.

Left out on purpose: k3, which is TRL's term in the loss (``trainer.beta``).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit, Reward
from stablerank.rewards.estimators import TERMS
from stablerank.rewards.forwards import Needs
from stablerank.rewards.rollout import Rollout

Estimator = Literal["k1", "k2"]


class KLReward(Reward):
    """Minus the sampled KL divergence from the frozen reference, token by token (module header)."""

    name = "kl"
    density = "token"
    needs = Needs(frozen=True, policy=True)

    def __init__(self, estimator: Estimator = "k1") -> None:
        self.estimator = estimator

    def __call__(self, rollout: Rollout) -> Deposit:
        """Deposit on every sampled token. Raises RewardError where a pass was not run."""
        mask_NT = rollout.completion_mask_NT
        policy_NT = rollout.forward("policy", self.name).logprobs_NT.double()
        frozen_NT = rollout.forward("frozen", self.name).logprobs_NT.double()
        estimate_NT = TERMS[self.estimator](policy_NT, frozen_NT)
        deposits_NT = torch.where(mask_NT, -estimate_NT, 0.0)
        return Deposit(deposits_NT.float(), mask_NT, deposits_NT.sum(1).float(), density=self.density)


class KLSpec(RewardSpecBase):
    """KL in the reward: minus an estimate of the divergence from the frozen reference, on every token."""

    default_credit: ClassVar[CreditSpec] = CreditSpec(centre="none", scale="none")

    kind: Literal["kl"] = "kl"
    estimator: Estimator = Field(
        default="k1", description="k1 pulls towards the reference; k2 does not in the reward (see the docs)"
    )

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded."""
        return KLReward(self.estimator)
