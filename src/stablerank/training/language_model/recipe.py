"""The recipe of a language-modelling run: next-token loss on texts, or on completions alone."""

from typing import Any, Literal

from pydantic import PositiveInt
from trl import SFTConfig

from stablerank.tasks.texts import TextSpec
from stablerank.training.loss_recipe import LossRecipe
from stablerank.training.sections import TrainerSection

LOSS_SETTINGS: dict[str, Any] = {
    "loss_type": "nll",
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "eos_token": None,
    "pad_token": None,
    "chat_template_path": None,
    "router_aux_loss_coef": None,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "use_liger_kernel": False,
    "shuffle_dataset": False,
    "save_steps": 10,
}
"""Every TRL value that shapes the loss or the rhythm of a run, with our vetted setting; a recipe's ``trainer`` section
overrides."""

ONE_BY_ONE = "the rule that an example stays one row, whose held-out loss has an interval"

TRAINER = TrainerSection(
    config=SFTConfig,
    settings=LOSS_SETTINGS,
    narrowed={"loss_type": Literal["nll", "dft"], "max_length": PositiveInt},
    owned={
        "packing": ONE_BY_ONE,
        "packing_strategy": ONE_BY_ONE,
        "eval_packing": ONE_BY_ONE,
        "padding_free": ONE_BY_ONE,
        "dataset_text_field": "data",
        "dataset_kwargs": "data",
    },
)


class LanguageModelRecipe(LossRecipe):
    """One run of language modelling, whole."""

    trainer_section = TRAINER

    objective: Literal["clm"]
    data: TextSpec
