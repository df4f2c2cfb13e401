"""Length penalty: what a completion pays for its n sampled tokens, the end token included.

0 up to ``limit - buffer`` tokens, from there falling on a line to -1 at ``limit``, and -1 beyond: DAPO's soft overlong
punishment (arXiv 2503.14476, equation 13; TRL's ``get_soft_overlong_punishment``, verl's ``overlong_buffer``). A
buffer as long as the limit makes every token cost the same, ``1 / limit``.

One deposit a trajectory. Why the price of a token is not a deposit on that token: a token reward credits its own token
alone, and the same number on every token is a baseline, whose expected gradient is zero. What makes a completion long
is that none of its tokens ended it.

The default credit centres and does not scale: divided by the group's deviation, a penalty of a hundredth that one
completion of a group pays would weigh as much as a wrong answer. The component's weight is the price.

Left out on purpose: prices relative to the group (credit centres), rewards for length, prices for wrong answers only.
"""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout


def length_penalty(tokens_N: Tensor, limit: int, buffer: int) -> Tensor:
    """The reward of completions of so many tokens: float64 from -1 to 0 (module header)."""
    return ((limit - buffer - tokens_N.double()) / buffer).clamp(-1, 0)


class LengthReward(Reward):
    """Minus the price of a completion's length (module header)."""

    name = "length"
    density = "trajectory"

    def __init__(self, limit: int, buffer: int) -> None:
        self.limit, self.buffer = limit, buffer

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion."""
        mask_NT = rollout.completion_mask_NT
        return trajectory_deposit(length_penalty(mask_NT.sum(1), self.limit, self.buffer).tolist(), mask_NT)


class LengthSpec(RewardSpecBase):
    """A penalty for the last ``buffer`` tokens before ``limit``: DAPO's soft overlong punishment."""

    default_credit: ClassVar[CreditSpec] = CreditSpec(scale="none")

    kind: Literal["length"] = "length"
    limit: PositiveInt = Field(description="tokens at which the penalty is 1; usually trainer.max_completion_length")
    buffer: PositiveInt = Field(description="tokens before it that cost; as many as limit: every token costs the same")

    @model_validator(mode="after")
    def _buffer_fits_below_the_limit(self) -> "LengthSpec":
        if self.buffer > self.limit:
            raise ValueError(f"buffer={self.buffer} is longer than limit={self.limit}; set it to {self.limit} or less")
        return self

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded."""
        return LengthReward(self.limit, self.buffer)
