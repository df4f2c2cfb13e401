"""Deposits: what a reward leaves on which token, and the one form in which every reward answers.

Legend: N completions, T tokens. A deposit of 0.0 is a verdict, no deposit is silence; the mask tells them apart.
Rewards never normalise and never look at other completions of a group: ``credit`` does.

Source: the deposit contract of gernim/lora-reward-density (``rewards.py``), with the density made explicit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from stablerank.errors import RewardError
from stablerank.rewards.forwards import Needs
from stablerank.rewards.rollout import Rollout

Density = Literal["trajectory", "step", "token"]


@dataclass(frozen=True)
class Deposit:
    """The answer of one reward to one rollout.

    ``token_rewards_NT`` float32 is read only where ``deposit_mask_NT`` is true and must be finite there.
    ``trajectory_rewards_N`` float32 is the one number a completion for logs, evaluation and plain TRL; NaN means not
    scorable. ``density``: one deposit a completion at most, one a step, or one a token. ``notes`` are counters for the
    log, such as parse failures, summed over the N completions.

    Raises RewardError, naming the place and the remedy, for shapes that disagree and numbers that are not finite.
    """

    token_rewards_NT: Tensor
    deposit_mask_NT: Tensor
    trajectory_rewards_N: Tensor
    density: Density
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.token_rewards_NT.shape)
        if tuple(self.deposit_mask_NT.shape) != shape or tuple(self.trajectory_rewards_N.shape) != shape[:1]:
            raise RewardError(
                f"a deposit has token rewards of shape {shape}, a mask {tuple(self.deposit_mask_NT.shape)} and "
                f"trajectory rewards {tuple(self.trajectory_rewards_N.shape)}; make them (N, T), (N, T), (N,)"
            )
        self._refuse(
            self.trajectory_rewards_N.isinf(),
            self.trajectory_rewards_N,
            "give a finite number, or None for a completion that cannot be scored",
        )
        self._refuse(
            self.deposit_mask_NT & ~self.token_rewards_NT.isfinite(),
            self.token_rewards_NT,
            "leave a token without a deposit by clearing its mask",
        )
        if self.density == "trajectory" and bool((self.deposit_mask_NT.sum(1) > 1).any()):
            row = int((self.deposit_mask_NT.sum(1) > 1).nonzero()[0])
            raise RewardError(
                f"a trajectory reward left {int(self.deposit_mask_NT[row].sum())} deposits on completion {row}, where "
                "one is the limit; declare the density 'step' or 'token'"
            )

    @staticmethod
    def _refuse(bad: Tensor, values: Tensor, remedy: str) -> None:
        if not bool(bad.any()):
            return
        place = bad.nonzero()[0].tolist()
        where = " of ".join(
            f"{kind} {at}" for kind, at in zip(("token", "completion")[-len(place) :], place[::-1], strict=True)
        )
        raise RewardError(f"a reward gave {values[tuple(place)].item()} for {where}; {remedy}")


class Reward(Protocol):
    """A named function of a rollout. Subclass it for the defaults; any object of this shape will do."""

    name: str
    density: Density = "trajectory"
    """Of every deposit it makes."""
    needs: Needs = Needs()
    own_forward: str = ""
    """What it runs besides the passes that the trainer shares, in words and with its cost; shown at load."""

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion of ``rollout``."""


def trajectory_deposit(
    rewards_N: Sequence[float | None], completion_mask_NT: Tensor, notes: Mapping[str, float] | None = None
) -> Deposit:
    """One deposit a completion, on its last sampled token.

    A reward of None or NaN deposits nothing. An empty completion (no token in the mask) has nowhere to put its reward:
    it deposits nothing, keeps its entry in ``trajectory_rewards_N`` and is counted in ``notes["empty_completions"]``.
    """
    rewards = [math.nan if reward is None else reward for reward in rewards_N]
    trajectory_rewards_N = torch.tensor(rewards, dtype=torch.float32, device=completion_mask_NT.device)
    tokens_from_here_NT = completion_mask_NT.flip(1).cumsum(1).flip(1)
    last_token_NT = completion_mask_NT & (tokens_from_here_NT == 1)
    empty = int((~completion_mask_NT.any(1)).sum())
    return Deposit(
        token_rewards_NT=trajectory_rewards_N[:, None].expand_as(completion_mask_NT),
        deposit_mask_NT=last_token_NT & ~trajectory_rewards_N.isnan()[:, None],
        trajectory_rewards_N=trajectory_rewards_N,
        density="trajectory",
        notes={**(notes or {}), "empty_completions": empty},
    )
