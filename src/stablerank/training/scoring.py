"""The rewards of a run as TRL calls them: one rollout a generation batch, one deposit a reward.

Contract: TRL calls every entry of ``reward_funcs`` with the same completions; the first call of a batch makes the
rollout, with the passes that the rewards need, and all share it. Of a deposit TRL sees its trajectory rewards, so that
its logging, gathering and weighting stay in place; credit reads the whole.

Left out on purpose: asynchronous rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stablerank.errors import RewardError
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit, Reward
from stablerank.rewards.forwards import Needs
from stablerank.rewards.rollout import Rollout, rollout_from_trl


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a run, its weight, and how its deposits become advantages."""

    reward: Reward
    weight: float = 1.0
    credit: CreditSpec = field(default_factory=CreditSpec)


class Scoring:
    """The rewards of a run and what they said of the current batch; ``complete`` adds the passes to a rollout."""

    def __init__(self, rewards: Sequence[WeightedReward], complete: Callable[[Rollout], Rollout]) -> None:
        names = [weighted.reward.name for weighted in rewards]
        # TRL logs by name, and two rewards of one kind may meet.
        self.names = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
        self.rewards = tuple(rewards)
        self.needs = Needs()
        for weighted in rewards:
            self.needs |= weighted.reward.needs
        self.rollout: Rollout | None = None
        self.deposits: dict[str, Deposit] = {}
        self._complete = complete

    def forget(self) -> None:
        """A new batch begins."""
        self.rollout = None
        self.deposits.clear()

    def functions(self) -> list[Callable[..., list[float]]]:
        """Entries for TRL's ``reward_funcs``."""
        return [self._function(name, weighted.reward) for name, weighted in zip(self.names, self.rewards, strict=True)]

    def notes(self) -> dict[str, float]:
        """The counters of all deposits, named after the reward where there are several."""
        return {
            note if len(self.names) == 1 else f"{name}/{note}": value
            for name, deposit in self.deposits.items()
            for note, value in deposit.notes.items()
        }

    def _function(self, name: str, reward: Reward) -> Callable[..., list[float]]:
        def scored(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
            if self.rollout is None:
                self.rollout = self._complete(rollout_from_trl(prompts, completions, completion_ids, **columns))
            deposit = self.deposits[name] = _checked(reward(self.rollout), name, len(self.rollout))
            rewards: list[float] = deposit.trajectory_rewards_N.tolist()
            return rewards

        scored.__name__ = name
        return scored


def _checked(deposit: Deposit, name: str, count: int) -> Deposit:
    if len(deposit.trajectory_rewards_N) != count:
        raise RewardError(
            f"the reward {name} left deposits for {len(deposit.trajectory_rewards_N)} completions, but there are "
            f"{count}; return one row for each"
        )
    return deposit
