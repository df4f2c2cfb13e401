"""Stable rank as a reward: the spectral spread of the frozen reference's hidden states over the text.

Legend: B rows of a chunk, L tokens of prompt and completion, D hidden size.

``st(H) = ||H||_F^2 / ||H||_2^2`` of the states after the final norm, uncentred, one row a token: SR-GRPO (arXiv
2512.02807, equation 1), where adapters are off. Tokens that count:

- ``window``: the first so many of prompt and completion together, padding aside (appendix H; 512 in the main numbers).
- ``scope``: of these ``all`` (appendix E, training) or those of the ``response`` (section 2.2, RewardBench). Tokens of
  the chat template and the beginning of the text belong to the prompt, the end token to the response.

A completion none of whose tokens lies in the window is unscorable (NaN, counted), be it empty or behind a long prompt;
one token that counts gives exactly 1. The value falls with length on real text, so watch lengths.

Numerics: fp64 from the model's dtype, each row cut to its tokens and worked on alone, so that neither padding nor the
batch moves a bit beyond what they move in the states (`spectral.batched`). Cost O(L D min(L, D)) a row, on the device
of the pass; the pass itself is the one that serves the KL term.

Left out on purpose: other layers, centring, other functionals of the spectrum.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.forwards import Needs, States
from stablerank.rewards.rollout import Rollout
from stablerank.spectral.batched import stable_rank_batched

Scope = Literal["all", "response"]


@dataclass(frozen=True)
class StableRankReading:
    """The stable rank of each row's states, ``(B,)`` float64; NaN where no completion token lies in the window."""

    scope: Scope = "all"
    window: int = 512

    @property
    def name(self) -> str:
        """Equal names, equal readings."""
        return f"stable_rank_{self.scope}_{self.window}"

    def __call__(self, states: States) -> Tensor:
        """Read one chunk."""
        within_BL = states.attention_mask_BL & (states.attention_mask_BL.cumsum(1) <= self.window)
        response_BL = within_BL & states.completion_mask_BL
        rank_B = stable_rank_batched(states.hidden_BLD, within_BL if self.scope == "all" else response_BL)
        return rank_B.masked_fill(~response_BL.any(1), math.nan)


class StableRankReward(Reward):
    """The stable rank of the frozen reference's hidden states (module header).

    Notes: ``unscorable`` completions that have tokens, but none in the window, or states that are not finite.
    """

    name = "stable_rank"
    density = "trajectory"

    def __init__(self, scope: Scope = "all", window: int = 512) -> None:
        self.reading = StableRankReading(scope, window)
        self.needs = Needs(frozen_readings={self.reading.name: self.reading})

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError where the frozen pass was not run."""
        rank_N, mask_NT = rollout.forward("frozen", self.name).readings[self.reading.name], rollout.completion_mask_NT
        unscorable = int((rank_N.isnan() & mask_NT.any(1)).sum())
        return trajectory_deposit(rank_N.tolist(), mask_NT, {"unscorable": unscorable})


class StableRankSpec(RewardSpecBase):
    """The stable rank of the frozen reference's last hidden states over the text (SR-GRPO)."""

    kind: Literal["stable_rank"] = "stable_rank"
    scope: Scope = Field(default="all", description="tokens that count: prompt and response, or the response alone")
    window: PositiveInt = Field(default=512, description="of these, the first so many of prompt and response together")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded."""
        return StableRankReward(self.scope, self.window)
