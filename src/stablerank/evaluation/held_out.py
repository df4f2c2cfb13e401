"""Held-out accuracy of a policy: one greedy completion a problem, scored by a reward.

That is the reward trained on unless the recipe names another judge, as it must where the trained one knows nothing of
the answer.

A problem passes when its reward reaches ``pass_reward``; a problem that cannot be scored is neither right nor wrong
(NaN) and leaves the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import DataError
from stablerank.evaluation.generate import Completion, Progress, greedy_completions
from stablerank.evaluation.statistics import Interval, mean_interval
from stablerank.rewards.deposits import Reward
from stablerank.rewards.rollout import Rollout, length_mask


@dataclass(frozen=True)
class HeldOut:
    """The outcome of one evaluation, problem by problem in the order of the rows.

    ``passes`` holds 1.0, 0.0 or NaN; ``interval`` is its mean, pass@1, with bounds. ``notes``: the reward's counters.
    """

    completions: tuple[Completion, ...]
    rewards: tuple[float, ...]
    passes: tuple[float, ...]
    interval: Interval
    notes: Mapping[str, float]

    @property
    def mean_length(self) -> float:
        """Tokens a completion, the end token included."""
        return fmean(completion.tokens for completion in self.completions)

    @property
    def truncated_share(self) -> float:
        """Share of the completions that hit the token limit."""
        return fmean(completion.truncated for completion in self.completions)


def evaluate_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    reward: Reward,
    *,
    max_new_tokens: int,
    batch_size: int = 256,
    pass_reward: float = 1.0,
    progress: Progress | None = None,
) -> HeldOut:
    """Greedy pass@1 of ``model`` on ``rows``, each with ``prompt`` (text or messages) and the reward's columns.

    Leaves the model's modes and the random state as they were. Raises DataError when there are no rows, a prompt does
    not fit (see ``greedy_completions``) or no problem can be scored, RewardError when the reward fails.
    """
    if not rows:
        raise DataError("evaluation got 0 problems; at least 1 is needed, so choose a split that has rows")
    completions = greedy_completions(
        model,
        tokenizer,
        [row["prompt"] for row in rows],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    deposit = reward(rollout_of(rows, completions))
    rewards = deposit.trajectory_rewards_N.tolist()
    passes = [nan if isnan(value) else float(value >= pass_reward) for value in rewards]
    return HeldOut(tuple(completions), tuple(rewards), tuple(passes), mean_interval(passes), deposit.notes)


def rollout_of(rows: Sequence[Mapping[str, Any]], completions: Sequence[Completion]) -> Rollout:
    """What a judge sees of completions, one of each row."""
    names = [name for name in rows[0] if name != "prompt"]
    return Rollout(
        prompts=[row["prompt"] for row in rows],
        completions=[completion.text for completion in completions],
        completion_ids=[list(completion.ids) for completion in completions],
        completion_mask_NT=length_mask([completion.tokens for completion in completions]),
        columns={name: [row[name] for row in rows] for name in names},
    )
