"""The recipe: one typed, serialisable object that says all of a run.

Each room keeps the spec of what it builds; this file only composes them, reads YAML, applies ``a.b=c`` overrides and
checks what only the whole can know. The ``trainer`` section goes verbatim into TRL's `GRPOConfig`, on top of
`LOSS_SETTINGS`, which writes out every value that shapes the loss: TRL's own defaults have moved silently before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
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
from trl import GRPOConfig

from stablerank.adapters.specs import AdapterSpec, LoraSpec
from stablerank.errors import RecipeError
from stablerank.evaluation.specs import EvaluationSpec
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.specs import ComponentSpec, MixtureSpec, RewardSpec, SingleRewardSpec
from stablerank.tasks.specs import DataSpec
from stablerank.training.alarms import AlarmsSpec
from stablerank.training.cycle import generation_cycle

LOSS_SETTINGS: dict[str, Any] = {
    "loss_type": "dapo",
    "beta": 0.0,
    "use_bias_correction_kl": False,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "sapo_temperature_neg": 1.05,
    "sapo_temperature_pos": 1.0,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "importance_sampling_level": "token",
    "num_iterations": 1,
    "per_device_train_batch_size": 8,
    "steps_per_generation": None,
    "num_generations": 8,
    "max_completion_length": 256,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "chat_template_kwargs": None,
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "entropy_coef_min": 0.0,
    "entropy_coef_max": 1.0,
    "entropy_coef_delta": 0.005,
    "entropy_target": 0.2,
    "router_aux_loss_coef": None,
    "off_policy_mask_threshold": None,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "disable_dropout": False,
    "cast_lm_head_to_fp32": False,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "use_liger_kernel": False,
    "shuffle_dataset": True,
    "save_steps": 10,
}
"""Every TRL value that shapes the loss or the rhythm of a run, with our vetted setting; a recipe's ``trainer`` section
overrides."""

SEQUENCE_LOSSES = ("luspo", "vespo")
"""Losses whose mathematics is that of a whole sequence."""

_NARROWED: dict[str, Any] = {
    "loss_type": Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"],
    "importance_sampling_level": Literal["token", "sequence"],
    "num_generations": Annotated[int, Field(ge=2)],
    "steps_per_generation": PositiveInt | None,
    **dict.fromkeys(
        (
            "max_steps",
            "save_steps",
            "num_iterations",
            "gradient_accumulation_steps",
            "per_device_train_batch_size",
            "max_completion_length",
        ),
        PositiveInt,
    ),
}
"""Types narrower than TRL's own hints: what TRL would trip over only once the run folder exists."""

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
    "scale_rewards": "credit.scale",
    "reward_weights": "credit",
    "multi_objective_aggregation": "credit",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "model_init_kwargs": "model",
    "trust_remote_code": "model",
    "eval_strategy": "evaluation",
    "eval_steps": "evaluation.every",
    "generation_batch_size": "trainer.steps_per_generation",
    "resume_from_checkpoint": "the --resume flag",
    "push_to_hub": "the rule that no run leaves the machine",
    "log_completions_hub_repo": "the rule that no run leaves the machine",
    "use_cpu": "the machine",
    "dataloader_pin_memory": "the machine",
    "disable_tqdm": "the command line's own progress bar",
}
"""Trainer keys that something else decides, and what."""

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


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Spec):
    """Which policy to post-train."""

    path: str
    """``zoo:NAME``, a local Hugging Face folder, or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class OptimiserSpec(_Spec):
    """AdamW and its schedule."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-5, ge=0)
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class GeometrySpec(_Spec):
    """How often the spectral geometry of the update is measured, and against what."""

    every: int = Field(10, ge=0)
    """Optimiser steps between measurements; 0 turns them off."""
    against_base: bool = False
    """Whether to measure where the update lies relative to the weight it changes: decomposes every base weight once."""
    head: int = Field(16, ge=1)
    """Leading directions of the base that this takes."""
    nss: bool = False
    """Whether to measure the shift of the singular values at the last step: two whole spectra a matrix."""


class Recipe(_Spec):
    """One run, whole."""

    objective: Literal["grpo"] = "grpo"
    model: ModelSpec
    adapter: AdapterSpec = LoraSpec()
    data: DataSpec
    reward: RewardSpec
    credit: CreditSpec | None = None
    """Unset: what suits the reward. A mixture has it with each component."""
    optimiser: OptimiserSpec = OptimiserSpec()
    trainer: dict[str, Any] = {}
    geometry: GeometrySpec = GeometrySpec()
    alarms: AlarmsSpec = AlarmsSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: int = Field(0, ge=0)
    output: str

    @field_validator("trainer")
    @classmethod
    def _trainer_section_is_ours_to_pass_on(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        hints = {**get_type_hints(GRPOConfig), **_NARROWED}
        for key in trainer:
            if owner := OWNED_ELSEWHERE.get(key):
                raise ValueError(f"trainer.{key} is decided by {owner}; remove it from the trainer section")
            if key in FIXED:
                raise ValueError(f"trainer.{key} is fixed by what a run folder promises; remove it")
            if key not in hints:
                raise ValueError(f"trainer.{key} is no setting of TRL's GRPOConfig; remove it or mend the spelling")
        if "max_steps" not in trainer:
            raise ValueError("trainer.max_steps is missing; say how many optimiser steps to train, such as 60")
        return {key: _as_type(hints[key], value, f"trainer.{key}") for key, value in trainer.items()}

    @model_validator(mode="after")
    def _checkpoints_land_on_whole_cycles(self) -> "Recipe":
        """TRL samples afresh when it resumes inside a cycle, so a checkpoint there could not be resumed exactly."""
        settings = self.loss_settings
        for key in ("save_steps", "max_steps"):
            if settings[key] % self.cycle:
                raise ValueError(
                    f"trainer.{key}={settings[key]} is not a multiple of {self.cycle}, the optimiser steps in one "
                    "generation cycle (num_iterations x steps_per_generation / gradient_accumulation_steps); round it"
                )
        return self

    @model_validator(mode="after")
    def _weight_decay_means_what_it_says(self) -> "Recipe":
        if self.optimiser.weight_decay and (reason := self.adapter.refuses_weight_decay):
            raise ValueError(
                f"optimiser.weight_decay={self.optimiser.weight_decay} does not go with adapter.kind="
                f"{self.adapter.kind}, where {reason}; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _credit_has_one_place(self) -> "Recipe":
        if isinstance(self.reward, MixtureSpec) and self.credit is not None:
            raise ValueError("credit is set beside a mixture, whose components have one each; move it into them")
        return self

    @model_validator(mode="after")
    def _somebody_judges(self) -> "Recipe":
        if self._judge is None:
            raise ValueError(
                f"reward.kind={self.reward.kind} cannot tell right from wrong on held-out problems; set "
                "evaluation.reward, such as `evaluation.reward.kind=math_verify`"
            )
        return self

    @property
    def components(self) -> tuple[ComponentSpec, ...]:
        """The rewards of the run with their weights and credit, one for a single reward."""
        if isinstance(self.reward, MixtureSpec):
            return self.reward.components
        return (ComponentSpec(reward=self.reward, credit=self.credit),)

    @property
    def judge(self) -> SingleRewardSpec:
        """What judges held-out completions: the evaluation's reward, else the first of the run's own that can."""
        assert self._judge is not None
        return self._judge

    @property
    def _judge(self) -> SingleRewardSpec | None:
        own = [component.reward for component in self.components if component.reward.judges]
        chosen: SingleRewardSpec | None = self.evaluation.reward or (own[0] if own else None)
        return chosen

    @property
    def loss_settings(self) -> dict[str, Any]:
        """The trainer section over `LOSS_SETTINGS`: what TRL is really given."""
        return {**LOSS_SETTINGS, **self.trainer}

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the run."""
        return int(self.trainer["max_steps"])

    @property
    def cycle(self) -> int:
        """Optimiser steps in one generation cycle."""
        settings = self.loss_settings
        return generation_cycle(
            settings["gradient_accumulation_steps"], settings["steps_per_generation"], settings["num_iterations"]
        )

    def resolved(self) -> dict[str, Any]:
        """Plain data that loads back to a recipe of the same meaning, with every loss-shaping value written out."""
        plain = {**self.model_dump(mode="json"), "trainer": self.loss_settings}
        if not isinstance(self.reward, MixtureSpec):
            plain["credit"] = self.components[0].effective_credit.model_dump(mode="json")
        return plain


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply ``key.sub=value`` overrides, values parsed as YAML.

    Raises:
        RecipeError: missing file, broken YAML, unknown key, wrong type or contradiction, each in one sentence.
    """
    try:
        # Bytes, so that a file that is not text is the parser's to refuse.
        raw = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise RecipeError(f"Recipe {path} cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"Recipe {path} is not YAML ({' '.join(str(error).split())}); mend that line.") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"Recipe {path} holds {type(raw).__name__}, not sections; start from recipes/demo.yaml.")
    for override in overrides:
        _apply_override(raw, override)
    return parse_recipe(raw, str(path))


def parse_recipe(raw: dict[str, Any], place: str = "recipe") -> Recipe:
    """Validate plain data; the first problem becomes one sentence that names the key."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(_sentence(error, place)) from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"Override {override!r} is not KEY=VALUE; write it like `optimiser.learning_rate=1e-4`.")
    *sections, leaf = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"Override {override!r}: {section!r} is a value, not a section; drop what follows it.")
    try:
        raw[leaf] = _override_value(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"Override {override!r}: the value is not YAML; quote it for your shell.") from error


def _override_value(text: str) -> Any:
    """The text as YAML, but a command line has no comments: ``#### (.*)`` is what it says."""
    value = yaml.safe_load(text)
    is_cut = "#" in text and text[:1] not in ("'", '"') and (value is None or isinstance(value, str))
    return text if is_cut else value


def _as_type(hint: Any, value: Any, place: str) -> Any:
    """The value as TRL's hint has it (YAML 1.1 reads ``1e-4`` as text; people mean the number)."""
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(_refusal(place, value, error.errors()[0]["msg"])) from None


def _refusal(place: str, value: Any, message: str) -> str:
    return f"{place}={value!r:.100} is refused, {message[0].lower()}{message[1:]}; give such a value"


def _sentence(error: ValidationError, place: str) -> str:
    first = error.errors(include_url=False)[0]
    # Union members appear in the location by their tag ("adapter.lora.r"); the file has no such level.
    where = ".".join(str(part) for part in first["loc"] if part not in _TAGS)
    given = first.get("input")
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key {where!r}; remove it or mend the spelling (see `stablerank train -h`)."
    if first["type"] in ("missing", "union_tag_not_found"):
        where = where if first["type"] == "missing" else f"{where}.kind"
        return f"{place}: {where!r} is missing; add it (recipes/demo.yaml shows every section)."
    if first["type"] == "value_error":
        return f"{place}: {first['ctx']['error']!s}."
    return f"{place}: {_refusal(where, given, first['msg'])}."


_TAGS = {
    *(
        kind
        for union in (AdapterSpec, RewardSpec, DataSpec)
        for spec in get_args(get_args(union)[0])
        for kind in get_args(spec.model_fields["kind"].annotation)
    ),
    "str",
    "list[str]",
}
