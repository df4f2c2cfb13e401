"""The rewards a recipe can name: a union on ``kind``, each able to build its reward."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from stablerank.rewards.deposits import Reward
from stablerank.rewards.outcome import MathVerifyReward
from stablerank.rewards.python import PythonReward


class MathVerifySpec(BaseModel):
    """1.0 for an answer that is mathematically equal to the gold answer, else 0.0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["math_verify"] = "math_verify"
    answer_column: str = Field(default="answer", min_length=1, description="dataset column with the gold answer")

    def build(self) -> Reward:
        """The reward; nothing is loaded before its first call."""
        return MathVerifyReward(self.answer_column)


class PythonSpec(BaseModel):
    """Your own function with the signature of TRL's ``reward_funcs``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["python"] = "python"
    ref: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$", description="path/to/file.py:function")

    def build(self) -> Reward:
        """The reward; runs the file, and raises RewardError when that fails."""
        return PythonReward(self.ref)


RewardSpec = Annotated[MathVerifySpec | PythonSpec, Field(discriminator="kind")]
