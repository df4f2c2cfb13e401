"""How one component's deposits become advantages: the recipe's ``credit`` section, or that of a mixture's component."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

StepRule = Literal["mean_to_go", "trajectory_mean", "progress", "position", "return_to_go", "per_deposit"]
"""Rules for step rewards, see rules.py. A trajectory reward leaves no choice."""


class CreditSpec(BaseModel):
    """``(deposit - group mean) / (deviation + epsilon)``, and for step rewards the rule that moves it to the tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Literal["group", "batch", "none"] = Field(
        default="group", description="deviation to divide by: of the group (GRPO), the whole batch, or none (Dr. GRPO)"
    )
    epsilon: float = Field(default=1e-4, gt=0, description="added to the deviation")
    centre: Literal["group", "none"] = Field(default="group", description="whether the group's mean is subtracted")
    statistics: Literal["deposit", "trajectory"] = Field(
        default="deposit", description="what counts once in a group's mean and deviation: a deposit, or a completion"
    )
    rule: StepRule = Field(default="mean_to_go", description="how step rewards reach the tokens")
    tokens: Literal["own", "to_go"] = Field(
        default="own", description="of token rewards, what a token gets: its own, or the sum from it on"
    )
    unit: bool = Field(
        default=False, description="divide the advantages by their deviation over all tokens of the batch"
    )

    @model_validator(mode="after")
    def _divides_what_is_centred(self) -> Self:
        if self.centre == "none" and self.scale != "none":
            raise ValueError(
                f"scale={self.scale} with centre=none divides equal rewards by a deviation of 0; set scale=none too, "
                "or centre=group"
            )
        return self
