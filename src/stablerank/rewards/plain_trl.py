"""Our rewards in anybody's trainer: a reward as an entry of TRL's ``reward_funcs``."""

from collections.abc import Callable
from math import isnan
from typing import Any

from stablerank.rewards.deposits import Reward
from stablerank.rewards.rollout import rollout_from_trl


def as_trl_reward(reward: Reward) -> Callable[..., list[float | None]]:
    """A function with TRL's reward signature, named after the reward, that returns one float or None a completion.

    TRL reads one number a completion, so of a step or token reward only ``trajectory_rewards_N`` gets through. The
    deposit's notes reach TRL's log as ``<reward>/<note>``.
    """

    def trl_reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        deposit = reward(rollout_from_trl(prompts, completions, completion_ids, **columns))
        if log_metric := columns.get("log_metric"):
            for note, value in deposit.notes.items():
                log_metric(f"{reward.name}/{note}", value)
        return [None if isnan(value) else value for value in deposit.trajectory_rewards_N.tolist()]

    trl_reward.__name__ = reward.name
    return trl_reward
