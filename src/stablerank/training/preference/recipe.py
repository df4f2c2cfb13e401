"""The recipe of a preference run: DPO and the variants that TRL has of it."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt
from trl import DPOConfig

from stablerank.tasks.pairs import PreferenceDataSpec
from stablerank.training.loss_recipe import LossRecipe
from stablerank.training.sections import TrainerSection

LOSS_SETTINGS: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "beta": 0.1,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "label_smoothing": 0.0,
    "use_weighting": False,
    "discopop_tau": 0.05,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "disable_dropout": True,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "pad_token": None,
    "router_aux_loss_coef": None,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "use_liger_kernel": False,
    "save_steps": 10,
}
"""Every TRL value that shapes the loss or the rhythm of a run, with our vetted setting; a recipe's ``trainer`` section
overrides."""

TRAINER = TrainerSection(
    config=DPOConfig,
    settings=LOSS_SETTINGS,
    narrowed={"beta": Annotated[float, Field(gt=0)], "max_length": PositiveInt},
    owned={
        "padding_free": "the rule that a pair stays two rows, whose held-out margin has an interval",
        "precompute_ref_log_probs": "the check of the reference, which asks it while it trains",
        "precompute_ref_batch_size": "the check of the reference, which asks it while it trains",
    },
)


class PreferenceRecipe(LossRecipe):
    """One run of a preference objective, whole."""

    trainer_section = TRAINER

    objective: Literal["dpo"]
    data: PreferenceDataSpec
