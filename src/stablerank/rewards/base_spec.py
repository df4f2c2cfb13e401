"""What every entry of the recipe's ``reward`` section shares."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Reward


class RewardSpecBase(BaseModel, ABC):
    """Plain data that builds one reward. A spec lives beside its reward and has a ``kind`` of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judges: ClassVar[bool] = False
    """Whether it reads texts and columns alone and says right or wrong, so that it can judge held-out completions."""
    default_credit: ClassVar[CreditSpec] = CreditSpec()
    """Where the recipe says nothing."""

    @property
    def columns(self) -> list[str]:
        """Dataset columns that it reads beside the prompt: those that its settings ``*_column`` name."""
        return [value for setting, value in self if setting.endswith("_column") and value]

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward for a policy with this tokenizer. Loads and checks whatever it runs.

        Raises:
            StablerankError: a file, model or setting is unusable.
        """
