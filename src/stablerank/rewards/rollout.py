"""The rollout: everything a reward may look at, in one typed object.

Legend: N completions, T tokens of the longest completion.

What passes of the frozen reference, the policy and its snapshot left comes as `Forward`s, where a reward said that it
needs them.

Left out on purpose: hidden states and the model itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stablerank.errors import RewardError
from stablerank.rewards.forwards import Forward, Which

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""A plain text, or chat messages with ``role`` and ``content``."""

TRL_EXTRAS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})
"""Keyword arguments that TRL adds to the dataset columns; none of them is a column."""


@dataclass(frozen=True)
class Rollout:
    """N completions with their prompts, in one order.

    ``completion_mask_NT`` is true on the tokens the policy sampled, the end token included; it is the mask of what was
    generated, not the loss mask. ``columns`` holds the dataset columns, each of length N.
    """

    prompts: Sequence[Prompt]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]
    completion_mask_NT: Tensor
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    prompt_ids: Sequence[Sequence[int]] | None = None
    """As the policy read them, without padding; None where the caller has texts only, as plain TRL does."""
    frozen: Forward | None = None
    policy: Forward | None = None
    snapshot: Forward | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def column(self, name: str, reader: str) -> Sequence[Any]:
        """The dataset column ``name``; RewardError, naming the columns there are, when it is missing."""
        if name not in self.columns:
            there = ", ".join(sorted(self.columns)) or "none"
            raise RewardError(
                f"the reward {reader} reads the column {name!r}, which the data lacks (columns: {there}); "
                "add it, or name another column in the reward's settings"
            )
        return self.columns[name]

    def forward(self, which: Which, reader: str) -> Forward:
        """The pass ``which``; RewardError where nobody ran it."""
        found = {"frozen": self.frozen, "policy": self.policy, "snapshot": self.snapshot}[which]
        if found is None:
            raise RewardError(
                f"the reward {reader} reads the {which} forward pass, which only our trainer runs; use it through "
                "`stablerank train`, or choose a reward that reads texts"
            )
        return found


def rollout_from_trl(
    prompts: Sequence[Prompt],
    completions: Sequence[str | Sequence[Message]],
    completion_ids: Sequence[Sequence[int]],
    **columns: Any,
) -> Rollout:
    """The rollout behind the arguments that TRL hands to a reward function; TRL's own extras are dropped."""
    return Rollout(
        prompts=prompts,
        completions=[completion_text(completion) for completion in completions],
        completion_ids=completion_ids,
        completion_mask_NT=length_mask([len(ids) for ids in completion_ids]),
        columns={name: values for name, values in columns.items() if name not in TRL_EXTRAS},
    )


def length_mask(lengths: Sequence[int]) -> Tensor:
    """``(N, T)`` bool, T the largest length: true on the first ``lengths[i]`` positions of row i."""
    lengths_N = torch.tensor(lengths, dtype=torch.long)
    return torch.arange(max(lengths, default=0)) < lengths_N[:, None]


def completion_text(completion: str | Sequence[Message]) -> str:
    """The text of one completion: itself, or what the assistant said in its messages, a line each."""
    if isinstance(completion, str):
        return completion
    return "\n".join(_content_text(message["content"]) for message in completion if message["role"] == "assistant")


def _content_text(content: str | Sequence[Message] | None) -> str:
    """Message content comes as text, as typed parts, or as None beside a tool call."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content)
