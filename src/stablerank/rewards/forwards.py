"""What a no-gradient pass of a model over the rollout left for rewards, and what a reward may ask of one.

Legend: N completions, T tokens of the longest completion, B rows of a chunk, L tokens of prompt and completion, D
hidden size, V vocabulary.

Three passes exist. The frozen one runs the reference policy and gives its log-probabilities for the KL term *and* the
readings of every geometric reward: there is never a second. The policy one runs the policy as it stood when it sampled.
The snapshot one runs the policy as it stood when it was last copied (training/snapshot.py); all rewards of a run share
one snapshot. None happens unless a reward, or the loss, needs it.

Contract: hidden states are dropped as soon as the readings of their chunk are taken. Log-probabilities are those of the
trainer: fp32, at the sampling temperature. Prompts are padded on the left, completions on the right.

Left out on purpose: hidden states below the final norm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from stablerank.errors import RewardError

Which = Literal["frozen", "policy", "snapshot"]


@dataclass(frozen=True)
class States:
    """One chunk of a pass. ``hidden_BLD`` comes after the final norm, in the model's dtype."""

    hidden_BLD: Tensor
    attention_mask_BL: Tensor
    """True on every token of prompt and completion."""
    completion_mask_BL: Tensor
    """True on the tokens of the completion."""
    completion_width: int
    """T: the last T of the L positions hold the completions."""
    logits: Callable[[Tensor], Tensor]
    """Head of the model: ``(..., D)`` to fp32 ``(..., V)``, divided by the sampling temperature."""
    ids_BL: Tensor
    """Token ids; where the attention mask is false, of padding."""


class Reading(Protocol):
    """Something that a pass computes from its hidden states."""

    def __call__(self, states: States) -> Tensor:
        """``(B,)`` a completion or ``(B, T)`` a token; every chunk of a pass gives the same form."""


@dataclass(frozen=True)
class Forward:
    """What a pass left."""

    logprobs_NT: Tensor
    """Of the sampled tokens given all before them, fp32; meaningless where the completion has ended."""
    readings: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a reward reads of the passes; readings are named, and equal names mean equal readings."""

    frozen: bool = False
    policy: bool = False
    frozen_readings: Mapping[str, Reading] = field(default_factory=dict)
    policy_readings: Mapping[str, Reading] = field(default_factory=dict)
    snapshot_readings: Mapping[str, Reading] = field(default_factory=dict)
    refresh: int | None = None
    """Optimiser steps between snapshots; None where no snapshot is read."""

    def __or__(self, other: "Needs") -> "Needs":
        """What both need. Raises RewardError for snapshots of two ages, because a run keeps one."""
        if None not in (self.refresh, other.refresh) and self.refresh != other.refresh:
            raise RewardError(
                f"two rewards read snapshots of {self.refresh} and of {other.refresh} steps, but a run keeps one; give "
                "them the same refresh"
            )
        return Needs(
            self.frozen or other.frozen,
            self.policy or other.policy,
            {**self.frozen_readings, **other.frozen_readings},
            {**self.policy_readings, **other.policy_readings},
            {**self.snapshot_readings, **other.snapshot_readings},
            self.refresh or other.refresh,
        )

    def readings(self, which: Which) -> Mapping[str, Reading]:
        """What is read of one pass."""
        return {
            "frozen": self.frozen_readings,
            "policy": self.policy_readings,
            "snapshot": self.snapshot_readings,
        }[which]

    @property
    def any_frozen(self) -> bool:
        """Whether the frozen pass is read at all."""
        return self.frozen or bool(self.frozen_readings)

    @property
    def any_policy(self) -> bool:
        """Whether the policy pass is read at all."""
        return self.policy or bool(self.policy_readings)

    @property
    def any_snapshot(self) -> bool:
        """Whether the snapshot pass is read at all."""
        return bool(self.snapshot_readings)
