"""Intrinsic rewards: how sure a model is of a completion, by its own next-token distributions and nothing else.

Legend: N completions, T completion tokens, B rows of a chunk, L tokens of prompt and completion, D hidden size, V width
of the model's head, K tokens that count.

One number a completion, the mean over its n tokens, the end token included, of what the model says where it predicts
that token:

- ``self_certainty``: ``KL(U || p) = -(1/V) sum_v log(V p_v)``, U uniform over the vocabulary; 0 for a uniform model.
  Kang et al. (arXiv 2502.18581), the reward of INTUITOR (arXiv 2505.19590). The code of the latter leaves out the
  constant ``-log V``, which no advantage sees.
- ``entropy``: the reward is *minus* the entropy of p in nats, so that a higher reward is a surer model: RENT (arXiv
  2505.22660). To keep a policy exploring, give the reward a negative weight.
- ``likelihood``: ``log p`` of the sampled token, minus the log of the perplexity.

p is at the sampling temperature, as all of a trainer's log-probabilities are.

Why one deposit a trajectory and not one a token: self-certainty and entropy are known before the token is sampled, so
that as the token's own reward they would be a baseline, whose expected gradient is zero. What can be credited is
having led to places where the model is sure, and that is the whole completion's.

These rewards know nothing of the answer. A policy that is paid for being sure can become sure of anything: watch
held-out accuracy and length.

Numerics: a token's value in fp32 from fp32 logits, `TOKENS` rows of them at a time, whatever the batch; the mean in
fp64. Cost: one more product with the head a token. An empty completion is unscorable (NaN). Rows of the head that no
token uses, as in a padded vocabulary, count in V.

Left out on purpose: sums over tokens (they pay for length), parts of a completion, voting over answers.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.forwards import Needs, Reading, States
from stablerank.rewards.rollout import Rollout

Distribution = Literal["self_certainty", "entropy"]
Measure = Literal["self_certainty", "entropy", "likelihood"]
Which = Literal["policy", "frozen"]

TOKENS = 128
"""Rows of logits that exist at a time: 78 MB of fp32 for a vocabulary of 152,000."""


@dataclass(frozen=True)
class DistributionReading:
    """The mean of ``measure`` over each completion's tokens: ``(B,)`` float64, NaN where there are none."""

    measure: Distribution

    def __call__(self, states: States) -> Tensor:
        """Read one chunk."""
        first = states.hidden_BLD.shape[1] - states.completion_width
        mask_BT = states.completion_mask_BL[:, first:]
        predicting_KD = states.hidden_BLD[:, first - 1 : -1][mask_BT]
        measured = self_certainty if self.measure == "self_certainty" else entropy
        values_K = torch.cat([measured(states.logits(rows)) for rows in torch.split(predicting_KD, TOKENS)])
        return mean_over_tokens(values_K.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_K), mask_BT)


def self_certainty(logits: Tensor) -> Tensor:
    """``KL(U || softmax(logits))`` in nats, ``(..., V)`` to ``(...)``."""
    return logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of ``softmax(logits)`` in nats, ``(..., V)`` to ``(...)``."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def mean_over_tokens(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """The mean of each row's live values, float64 ``(N,)``; NaN for a row without any."""
    return torch.where(mask_NT, values_NT.double(), 0.0).sum(1) / mask_NT.sum(1)


class IntrinsicReward(Reward):
    """How sure the policy, or its frozen reference, is of a completion (module header)."""

    density = "trajectory"

    def __init__(self, measure: Measure = "self_certainty", of: Which = "policy") -> None:
        self.measure, self.of = measure, of
        self.name = ("frozen_" if of == "frozen" else "") + ("negative_" if measure == "entropy" else "") + measure
        self.needs = _needs(measure, of)

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError where the pass was not run."""
        forward, mask_NT = rollout.forward(self.of, self.name), rollout.completion_mask_NT
        if self.measure == "likelihood":
            # A pass may be padded further than the longest completion.
            rewards_N = mean_over_tokens(forward.logprobs_NT, mask_NT)
        else:
            sign = -1 if self.measure == "entropy" else 1
            rewards_N = sign * forward.readings[self.measure]
        return trajectory_deposit(rewards_N.tolist(), mask_NT)


def _needs(measure: Measure, of: Which) -> Needs:
    if measure == "likelihood":
        return Needs(frozen=of == "frozen", policy=of == "policy")
    readings: dict[str, Reading] = {measure: DistributionReading(measure)}
    return Needs(frozen_readings=readings) if of == "frozen" else Needs(policy_readings=readings)


class IntrinsicSpec(RewardSpecBase):
    """How sure a model is of the completion, by its own distributions; no gold answer."""

    kind: Literal["intrinsic"] = "intrinsic"
    measure: Measure = Field(
        default="self_certainty",
        description="mean over tokens of KL(uniform || p), of minus the entropy, or of the log-probability",
    )
    of: Which = Field(
        default="policy", description="whose distributions: the policy's when it sampled, or the reference's"
    )

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded."""
        return IntrinsicReward(self.measure, self.of)
