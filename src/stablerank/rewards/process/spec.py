"""The recipe's process reward: which model, how it reads steps, and where it runs."""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stablerank.errors import ModelError
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Reward
from stablerank.rewards.process.math_shepherd import MathShepherd
from stablerank.rewards.process.reward import ProcessReward
from stablerank.rewards.process.scoring import StepScorer, limits
from stablerank.rewards.process.segmentation import Segmenter
from stablerank.rewards.process.token_classification import TokenClassification
from stablerank.zoo.resolve import resolve

Convention = Literal["math_shepherd", "token_classification"]
_CLASSES = {"math_shepherd": AutoModelForCausalLM, "token_classification": AutoModelForTokenClassification}


class ProcessSpec(RewardSpecBase):
    """P(step right) of a process reward model, on the token that closes each step."""

    kind: Literal["process"] = "process"
    model: str = Field(min_length=1, description="the process reward model: zoo:NAME, a folder or a hub id")
    convention: Convention = Field(
        default="math_shepherd", description="how it reads steps: tags and signs, or TRL's PRMTrainer"
    )
    separator: str = Field(default="\n", min_length=1, description="what ends a step in the policy's text")
    prm_separator: str | None = Field(
        default=None, min_length=1, description='what ended a step in training (token_classification only: "\\n")'
    )
    question_column: str | None = Field(
        default=None, min_length=1, description="dataset column with the bare question, where the prompt holds more"
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: the GPU if there is one"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of its weights")
    batch_size: int = Field(default=8, ge=1, description="solutions a forward")
    max_tokens: int | None = Field(default=None, ge=1, description="longest input; the model's context by default")

    @model_validator(mode="after")
    def _separator_belongs_to_the_convention(self) -> Self:
        if self.prm_separator is not None and self.convention == "math_shepherd":
            raise ValueError(
                f"prm_separator is {self.prm_separator!r}, but the convention math_shepherd joins steps by a line "
                "break; leave it out, or set convention=token_classification"
            )
        return self

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """Load the model and check that it is one of its convention; raises ModelError or RewardError otherwise."""
        return ProcessReward(self.scorer(), Segmenter(tokenizer, self.separator), self.question_column)

    def scorer(self) -> StepScorer:
        """The loaded model; see `build`."""
        model, tokenizer = self._load()
        bounds = limits(model, self.batch_size, self.max_tokens)
        if self.convention == "math_shepherd":
            return MathShepherd(model, tokenizer, bounds)
        return TokenClassification(model, tokenizer, bounds, self.prm_separator or "\n")

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        place = resolve(self.model)
        try:
            model, report = _CLASSES[self.convention].from_pretrained(
                place, dtype=getattr(torch, self.dtype), output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(place)
        except Exception as error:  # transformers raises many unrelated types for one bad folder
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"reward.model {self.model!r} cannot be loaded ({type(error).__name__}: {reason}); give `zoo:NAME` or "
                "a folder that save_pretrained wrote."
            ) from error
        self._refuse_partial(report, tokenizer)
        return model.eval().requires_grad_(False).to(self._device()), tokenizer

    def _refuse_partial(self, report: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        """Missing weights would be drawn at random, and score without complaint."""
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"reward.model {self.model!r} lacks {len(missing)} weights of a {self.convention} model "
                f"({missing[0]}), which would be random; choose the reward.convention that it was trained with."
            )
        # Without its files, transformers makes one that knows special tokens alone.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ModelError(
                f"reward.model {self.model!r} holds no tokenizer; write it beside the weights with "
                "`tokenizer.save_pretrained`."
            )

    def _device(self) -> torch.device:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(auto if self.device == "auto" else self.device)
