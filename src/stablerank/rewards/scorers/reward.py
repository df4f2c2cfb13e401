"""A scorer as a reward of our trainer: one deposit a completion, and a count of what could not be scored.

It runs a model of its own beside the trainer's passes, so a recipe that wants the stable rank of the run's own
reference takes the kind ``stable_rank``, which costs no pass. This one is for every other scorer, model and template.

Left out on purpose: gold answers; no scorer knows right from wrong.
"""

from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from stablerank.errors import RewardError
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout
from stablerank.rewards.scorers.answers import Answer, Scorer
from stablerank.rewards.scorers.specs import build_scorers, parse


class ScorerReward(Reward):
    """The one score of a scorer, under its name.

    Notes: how many completions have each status but ``scored``.

    Raises:
        RewardError: the scorer gives several scores.
    """

    density = "trajectory"

    def __init__(self, scorer: Scorer, own_forward: str = "") -> None:
        if len(scorer.names) != 1:
            raise RewardError(
                f"a reward is one score, and the scorer gives {', '.join(scorer.names)}; build it with one name."
            )
        self.name, self.own_forward = scorer.names[0], own_forward
        self._scorer = scorer

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion."""
        answers = [Answer(*row) for row in zip(rollout.prompts, rollout.completions, strict=True)]
        table = self._scorer.score(answers)
        reasons = Counter[str](status for status in table.statuses if status != "scored")
        return trajectory_deposit(table.values_NS[:, 0].tolist(), rollout.completion_mask_NT, dict(reasons))


class ScorerRewardSpec(RewardSpecBase):
    """Any scorer by its name, read from a frozen model of its own."""

    kind: Literal["scorer"] = "scorer"
    name: str = Field(min_length=1, description="as `stablerank score` takes it: KIND or KIND:key=value,...")
    model: str | None = Field(default=None, min_length=1, description="whose states: zoo:NAME, a folder or a hub id")

    @model_validator(mode="after")
    def _name_means_a_scorer(self) -> Self:
        parse(self.name)
        return self

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """Load what it runs; raises RecipeError or ModelError where that cannot be."""
        (scorer,) = build_scorers([self.name], self.model)
        return ScorerReward(scorer, f"one pass of {self.model} over every completion" if self.model else "")
