"""Sections that every recipe has, whatever its objective, and the recipe that they make.

The ``trainer`` section goes verbatim into the objective's TRL configuration, on top of the vetted value of every
setting that shapes the loss: TRL's own defaults have moved silently before. `TrainerSection` says, for one objective,
which keys those are, which belong to another section, and which the run folder fixes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from transformers import TrainingArguments

from stablerank.adapters.specs import AdapterSpec, LoraSpec
from stablerank.errors import RecipeError
from stablerank.evaluation.specs import EvaluationSpec, LossEvaluationSpec

SECTIONS = (
    "objective",
    "model",
    "adapter",
    "data",
    "reward",
    "credit",
    "optimiser",
    "trainer",
    "geometry",
    "alarms",
    "overfitting",
    "evaluation",
    "seed",
    "output",
)
"""In the order in which a recipe is written; an objective has some of them."""

OWNED_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "learning_rate": "optimiser.learning_rate",
    "lr_scheduler_type": "optimiser.schedule",
    "warmup_steps": "optimiser.warmup_steps",
    "weight_decay": "optimiser.weight_decay",
    "adam_beta1": "optimiser.betas",
    "adam_beta2": "optimiser.betas",
    "adam_epsilon": "optimiser.epsilon",
    "max_grad_norm": "optimiser.max_grad_norm",
    "optim": "optimiser",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "model_init_kwargs": "model",
    "trust_remote_code": "model",
    "eval_strategy": "evaluation",
    "eval_steps": "evaluation.every",
    "resume_from_checkpoint": "the --resume flag",
    "push_to_hub": "the rule that no run leaves the machine",
    "use_cpu": "the machine",
    "dataloader_pin_memory": "the machine",
    "disable_tqdm": "the command line's own progress bar",
}
"""Trainer keys of any objective that something else decides, and what."""

FIXED = {
    "logging_steps": 1,
    "logging_strategy": "steps",
    "save_strategy": "steps",
    "save_only_model": False,
    "ignore_data_skip": False,
    "num_train_epochs": None,
}
"""Trainer keys that the run folder's contract decides: one row a step, whole checkpoints by step, length by
``max_steps``."""

STEPS = ("max_steps", "save_steps", "gradient_accumulation_steps", "per_device_train_batch_size")


class Section(BaseModel):
    """Immutable, and without room for keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Section):
    """Which policy to post-train."""

    path: str
    """``zoo:NAME``, a local Hugging Face folder, or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"


ROUTES = ("hidden", "lora_A", "lora_B", "lora", "condition", "against_condition")
"""Words that ``optimiser.route`` knows; a list of patterns is the other form."""


class OptimiserSpec(Section):
    """AdamW and its schedule, and what takes spectral steps instead (training/routing.py)."""

    kind: Literal["adamw", "muon", "specgd"] = "adamw"
    learning_rate: float = Field(1e-5, ge=0)
    route: str | list[str] | None = None
    """The matrices that take spectral steps: one of `ROUTES`, or regular expressions searched in names."""
    spectral_learning_rate: float | None = Field(None, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    match_rms_adamw: bool = False
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _spectral_steps_are_said_whole(self) -> "OptimiserSpec":
        needed = {"route": self.route, "spectral_learning_rate": self.spectral_learning_rate}
        if self.kind == "adamw":
            if given := [name for name, value in needed.items() if value is not None]:
                raise ValueError(
                    f"optimiser.{given[0]} is set, but optimiser.kind=adamw takes no spectral step; set optimiser.kind"
                    "=muon or specgd, or remove it"
                )
            return self
        if missing := [name for name, value in needed.items() if value is None]:
            raise ValueError(
                f"optimiser.{missing[0]} is missing; optimiser.kind={self.kind} needs a route (one of "
                f"{', '.join(ROUTES)}, or a list of patterns) and a spectral_learning_rate, such as 0.02"
            )
        if self.route == [] or (isinstance(self.route, str) and self.route not in ROUTES):
            raise ValueError(
                f"optimiser.route={self.route!r:.100} is no route; give one of {', '.join(ROUTES)}, or a list of "
                "patterns of names"
            )
        return self


class GeometrySpec(Section):
    """How often the spectral geometry of the update is measured, and against what."""

    every: int = Field(10, ge=0)
    """Optimiser steps between measurements; 0 turns them off."""
    against_base: bool = False
    """Whether to measure where the update lies relative to the weight it changes: decomposes every base weight once."""
    head: int = Field(16, ge=1)
    """Leading directions of the base that this takes."""
    nss: bool = False
    """Whether to measure the shift of the singular values at the last step: two whole spectra a matrix."""
    factors: bool = False
    """Whether to measure the nuclear rank of low-rank updates and the spectra of their factors too."""
    blocks_every: int = Field(0, ge=0)
    """Optimiser steps between measurements of what every block reads and of its gradient; 0 turns them off."""


class LossGeometrySpec(GeometrySpec):
    """Of a run with held-out texts."""

    effects: bool = False
    """Whether to measure the change of every layer's output too, which exists for every adapter (probes/effects.py)."""


@dataclass(frozen=True)
class TrainerSection:
    """What one objective's ``trainer`` section may say."""

    config: type[TrainingArguments]
    settings: Mapping[str, Any]
    """Every value that shapes the loss or the rhythm of a run, with our vetted setting."""
    narrowed: Mapping[str, Any]
    """Types narrower than TRL's own hints: what TRL would trip over only once the run folder exists."""
    owned: Mapping[str, str]
    """Keys of this objective that something else decides, beside `OWNED_ELSEWHERE`."""

    def checked(self, trainer: Mapping[str, Any]) -> dict[str, Any]:
        """The section with TRL's types; raises ValueError, in one clause, for what may not stand there."""
        hints = {**get_type_hints(self.config), **dict.fromkeys(STEPS, PositiveInt), **self.narrowed}
        owners = {**OWNED_ELSEWHERE, **self.owned}
        for key in trainer:
            if owner := owners.get(key):
                raise ValueError(f"trainer.{key} is decided by {owner}; remove it from the trainer section")
            if key in FIXED:
                raise ValueError(f"trainer.{key} is fixed by what a run folder promises; remove it")
            if key not in hints:
                raise ValueError(
                    f"trainer.{key} is no setting of TRL's {self.config.__name__}; remove it or mend the spelling"
                )
        if "max_steps" not in trainer:
            raise ValueError("trainer.max_steps is missing; say how many optimiser steps to train, such as 60")
        return {key: _as_type(hints[key], value, f"trainer.{key}") for key, value in trainer.items()}


class RunRecipe(Section):
    """What recipes of every objective have. Subclasses add their sections and say what their trainer takes."""

    trainer_section: ClassVar[TrainerSection]

    objective: str
    model: ModelSpec
    adapter: AdapterSpec = LoraSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    trainer: dict[str, Any] = Field({}, validate_default=True)
    geometry: GeometrySpec = GeometrySpec()
    evaluation: EvaluationSpec | LossEvaluationSpec
    seed: int = Field(0, ge=0)
    output: str

    @field_validator("trainer")
    @classmethod
    def _trainer_section_is_ours_to_pass_on(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        return cls.trainer_section.checked(trainer)

    @model_validator(mode="after")
    def _weight_decay_means_what_it_says(self) -> "RunRecipe":
        if self.optimiser.weight_decay and (reason := self.adapter.refuses_weight_decay):
            raise ValueError(
                f"optimiser.weight_decay={self.optimiser.weight_decay} does not go with adapter.kind="
                f"{self.adapter.kind}, where {reason}; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _adapter_can_take_spectral_steps(self) -> "RunRecipe":
        if self.optimiser.kind != "adamw" and (reason := self.adapter.refuses_spectral_steps):
            raise ValueError(
                f"optimiser.kind={self.optimiser.kind} does not go with adapter.kind={self.adapter.kind}, where "
                f"{reason}; set optimiser.kind=adamw"
            )
        return self

    @property
    def loss_settings(self) -> dict[str, Any]:
        """The trainer section over the vetted settings: what TRL is really given."""
        return {**self.trainer_section.settings, **self.trainer}

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the run."""
        return int(self.trainer["max_steps"])

    def resolved(self) -> dict[str, Any]:
        """Plain data that loads back to a recipe of the same meaning, with every loss-shaping value written out."""
        plain = {**self.model_dump(mode="json"), "trainer": self.loss_settings}
        return {name: plain[name] for name in SECTIONS if name in plain}


def trl_arguments(recipe: RunRecipe, checkpoints: str, **own: Any) -> Any:
    """The objective's TRL configuration, every loss-shaping value explicit; ``own`` are arguments of the objective.

    Raises:
        RecipeError: TRL refuses a combination of values.
    """
    optimiser, settings = recipe.optimiser, {**recipe.loss_settings}
    settings.setdefault("save_total_limit", 2)
    settings.setdefault("report_to", "none")
    try:
        return recipe.trainer_section.config(
            output_dir=checkpoints,
            seed=recipe.seed,
            learning_rate=optimiser.learning_rate,
            lr_scheduler_type=optimiser.schedule,
            warmup_steps=optimiser.warmup_steps,
            adam_beta1=optimiser.betas[0],
            adam_beta2=optimiser.betas[1],
            adam_epsilon=optimiser.epsilon,
            weight_decay=optimiser.weight_decay,
            max_grad_norm=optimiser.max_grad_norm,
            optim="adamw_torch",
            bf16=recipe.model.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            **{key: value for key, value in FIXED.items() if value is not None},
            **settings,
            **own,
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"TRL refuses the trainer section ({' '.join(str(error).split())}); mend the values it names."
        ) from error


def refusal(place: str, value: Any, message: str) -> str:
    """Why a value is refused, as a clause with its place."""
    return f"{place}={value!r:.100} is refused, {message[0].lower()}{message[1:]}; give such a value"


def _as_type(hint: Any, value: Any, place: str) -> Any:
    """The value as TRL's hint has it (YAML 1.1 reads ``1e-4`` as text; people mean the number)."""
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(refusal(place, value, error.errors()[0]["msg"])) from None
