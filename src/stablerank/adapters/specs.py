"""The recipe's ``adapter`` section: which weights train, as a union on ``kind``."""

from typing import Annotated, Literal

import peft
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, PretrainedConfig


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSpec(_Spec):
    """Low-rank adaptation through PEFT: the update is ``alpha / r * B @ A`` (Hu et al. 2021), factors in fp32."""

    kind: Literal["lora"] = "lora"
    r: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"

    def peft_config(self) -> peft.LoraConfig:
        """The PEFT configuration that TRL wraps the model with."""
        return peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )


class FullSpec(_Spec):
    """Every weight trains, with fp32 masters: bf16 ones swallow small steps, so ``bfloat16`` means autocast."""

    kind: Literal["full"]

    def peft_config(self) -> None:
        """No adapter."""
        return None


def parameter_counts(spec: LoraSpec | FullSpec, config: PretrainedConfig) -> tuple[int, int]:
    """``(trainable, of the model itself)``, counted on a weightless copy of the architecture."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        total = model.num_parameters()
        adapter = spec.peft_config()
        trained = model if adapter is None else peft.get_peft_model(model, adapter)
    return sum(p.numel() for p in trained.parameters() if p.requires_grad), total


AdapterSpec = Annotated[LoraSpec | FullSpec, Field(discriminator="kind")]
