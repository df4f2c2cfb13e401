"""Distillation: every sampled token is paid by how much likelier the teacher finds it than the policy did.

``r_t = log pi_T(o_t | o_<t) - log pi_theta(o_t | o_<t)``, so minus the mean of ``r_t`` over the policy's own samples is
the sampled-token estimate of the reverse KL, KL(pi_theta || pi_T), a token. With credit that neither centres nor
scales (the default of this reward) a token's advantage is its own reward, discount 0: plain on-policy distillation.

Both log-probabilities are taken at the sampling temperature: the trainer's are, so the teacher's must be.

Sources: the distillation regime of gernim/lora-reward-density; on-policy distillation by Thinking Machines (2025).

Left out on purpose: the KL over the whole vocabulary (TRL's `DistillationTrainer` has it), forward KL.

Legend: N completions, T tokens.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from stablerank.errors import RewardError
from stablerank.rewards.deposits import Density, Deposit, Reward
from stablerank.rewards.forwards import Needs
from stablerank.rewards.rollout import Rollout


class Teacher(Protocol):
    """What gives the log-probabilities of a policy's tokens under another model."""

    temperature: float
    """That the log-probabilities are at."""
    cost: str
    """What a call runs, in words."""

    def logprobs(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], width: int
    ) -> Tensor:
        """``(N, width)`` fp32 on the CPU; what stands after the end of a completion means nothing."""


class DistillationReward(Reward):
    """``log pi_T - log pi_theta`` on every sampled token, clipped to ``[-clip, clip]`` where ``clip`` is given.

    ``trajectory_rewards_N`` is the mean over a completion's tokens, NaN for an empty one. ``temperature``, the
    teacher's, must be that of sampling. Notes: ``clipped_tokens``, ``empty_completions``.

    Raises RewardError for a reward that is not finite: without a clip, a token that the teacher calls impossible.
    """

    name = "distillation"
    density: Density = "token"
    needs = Needs(policy=True)

    def __init__(self, teacher: Teacher, clip: float | None = None) -> None:
        self.teacher, self.clip = teacher, clip
        self.temperature = teacher.temperature
        self.own_forward = teacher.cost

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every token of every completion."""
        mask_NT = rollout.completion_mask_NT
        width = mask_NT.shape[1]
        # The pass may be padded further than the rollout.
        policy_NT = rollout.forward("policy", self.name).logprobs_NT[:, :width].to(mask_NT.device)
        teacher_NT = self.teacher.logprobs(self._prompt_ids(rollout), rollout.completion_ids, width).to(policy_NT)
        rewards_NT = teacher_NT - policy_NT
        clipped_NT = rewards_NT if self.clip is None else rewards_NT.clamp(-self.clip, self.clip)
        self._refuse_non_finite(clipped_NT, mask_NT, teacher_NT, policy_NT)
        total_N = torch.where(mask_NT, clipped_NT.double(), 0.0).sum(1)
        return Deposit(
            token_rewards_NT=clipped_NT,
            deposit_mask_NT=mask_NT,
            trajectory_rewards_N=(total_N / mask_NT.sum(1)).float(),
            density=self.density,
            notes={
                "clipped_tokens": int(((clipped_NT != rewards_NT) & mask_NT).sum()),
                "empty_completions": int((~mask_NT.any(1)).sum()),
            },
        )

    def _prompt_ids(self, rollout: Rollout) -> Sequence[Sequence[int]]:
        prompt_ids = rollout.prompt_ids or [[]] * len(rollout)
        if empty := [row for row, ids in enumerate(prompt_ids) if not ids]:
            raise RewardError(
                f"the reward {self.name} got no token of prompt {empty[0]}, without which the first token of the "
                "completion has no log-probability; give prompts of one token at least, as ids"
            )
        return prompt_ids

    def _refuse_non_finite(self, rewards_NT: Tensor, mask_NT: Tensor, teacher_NT: Tensor, policy_NT: Tensor) -> None:
        bad_NT = mask_NT & ~rewards_NT.isfinite()
        if bool(bad_NT.any()):
            row, token = bad_NT.nonzero()[0].tolist()
            raise RewardError(
                f"the reward {self.name} is {rewards_NT[row, token].item()} for token {token} of completion {row} "
                f"(log-probability {teacher_NT[row, token].item():.4g} by the teacher, "
                f"{policy_NT[row, token].item():.4g} by the policy); set reward.clip, or mend the model that gives NaN"
            )
