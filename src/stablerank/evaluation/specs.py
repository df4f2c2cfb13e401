"""What a recipe says about evaluation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stablerank.rewards.specs import SingleRewardSpec
from stablerank.tasks.texts import TextSpec


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LossEvaluationSpec(_Spec):
    """Held-out loss before and after training, and on the way if ``every`` is set."""

    split: Literal["validation", "test"] = Field(
        default="test", description="tune on validation; look at test once, with fresh seeds"
    )
    examples: int = Field(default=256, ge=1, description="held-out examples or pairs before and after training")
    every: int = Field(default=0, ge=0, description="optimiser steps between points of the curve; 0 draws none")
    curve_examples: int = Field(default=128, ge=1, description="examples of a point, held-out and of training")
    batch_size: int = Field(default=16, ge=1, description="examples or pairs read at once")
    forgetting: TextSpec | None = Field(
        default=None, description="a data section of texts about something else, whose loss says what was forgotten"
    )


class EvaluationSpec(_Spec):
    """Greedy held-out accuracy before and after training, and on the way if ``every`` is set."""

    split: Literal["validation", "test"] = Field(
        default="test", description="tune on validation; look at test once, with fresh seeds"
    )
    problems: int = Field(default=600, ge=1, description="held-out problems before and after training")
    every: int = Field(default=0, ge=0, description="optimiser steps between points of the curve; 0 draws none")
    curve_problems: int = Field(default=200, ge=1, description="problems of a point of the curve")
    peak: bool = Field(default=False, description="also score the held-out split wherever the curve is at a new high")
    max_new_tokens: int | None = Field(default=None, ge=1, description="limit of a completion; unset: as in training")
    batch_size: int = Field(default=256, ge=1, description="completions generated at once")
    pass_reward: float = Field(default=1.0, description="a completion passes when its reward reaches this")
    reward: SingleRewardSpec | None = Field(
        default=None, description="what judges held-out completions; unset: the reward that is trained on"
    )

    @model_validator(mode="after")
    def _peak_is_of_a_curve(self) -> "EvaluationSpec":
        if self.peak and not self.every:
            raise ValueError("evaluation.peak reads the curve, which evaluation.every=0 does not draw; set every")
        return self

    @field_validator("reward")
    @classmethod
    def _reward_judges(cls, reward: SingleRewardSpec | None) -> SingleRewardSpec | None:
        if reward is not None and not reward.judges:
            raise ValueError(
                f"evaluation.reward.kind={reward.kind} cannot tell right from wrong by text alone; use math_verify or "
                "another verifier"
            )
        return reward
