"""The rewards a recipe can name: a union on ``kind``, each able to build its reward."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.choice import MultipleChoiceSpec
from stablerank.rewards.code.spec import CodeTestsSpec
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Reward
from stablerank.rewards.distillation.spec import DistillationSpec
from stablerank.rewards.divergence import KLSpec
from stablerank.rewards.geometric import SpectrumSpec
from stablerank.rewards.gym import GymSpec
from stablerank.rewards.intrinsic import IntrinsicSpec
from stablerank.rewards.length import LengthSpec
from stablerank.rewards.outcome import MathVerifyReward
from stablerank.rewards.process.python_steps import PythonStepsSpec
from stablerank.rewards.process.spec import ProcessSpec
from stablerank.rewards.python import PythonReward
from stablerank.rewards.scorers.reward import ScorerRewardSpec


class MathVerifySpec(RewardSpecBase):
    """1.0 for an answer that is mathematically equal to the gold answer, else 0.0."""

    judges: ClassVar[bool] = True

    kind: Literal["math_verify"] = "math_verify"
    answer_column: str = Field(default="answer", min_length=1, description="dataset column with the gold answer")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded before its first call."""
        return MathVerifyReward(self.answer_column)


class PythonSpec(RewardSpecBase):
    """Your own function with the signature of TRL's ``reward_funcs``."""

    judges: ClassVar[bool] = True

    kind: Literal["python"] = "python"
    ref: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$", description="path/to/file.py:function")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; runs the file, and raises RewardError when that fails."""
        return PythonReward(self.ref)


_Single = (
    MathVerifySpec
    | PythonSpec
    | MultipleChoiceSpec
    | CodeTestsSpec
    | GymSpec
    | ProcessSpec
    | PythonStepsSpec
    | DistillationSpec
    | IntrinsicSpec
    | KLSpec
    | LengthSpec
    | SpectrumSpec
    | ScorerRewardSpec
)
SingleRewardSpec = Annotated[_Single, Field(discriminator="kind")]


class ComponentSpec(BaseModel):
    """One reward of a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: SingleRewardSpec
    weight: float = Field(default=1.0, description="factor of its advantages")
    credit: CreditSpec | None = Field(default=None, description="as the section `credit`; unset: the reward's own")

    @property
    def effective_credit(self) -> CreditSpec:
        """What is said here, else the default of the reward."""
        return self.credit or self.reward.default_credit


class MixtureSpec(BaseModel):
    """Several rewards, of any density, in one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mixture"]
    components: tuple[ComponentSpec, ...] = Field(min_length=1, description="see below")


RewardSpec = Annotated[_Single | MixtureSpec, Field(discriminator="kind")]
