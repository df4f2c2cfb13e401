"""Load the policy to train, and check that the data fit it before anything is written.

Left out on purpose: ``trust_remote_code``. A model that needs its own code is loaded by its owner and passed to TRL
beside our pieces.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stablerank.adapters.counts import parameter_counts
from stablerank.adapters.prepare import NEEDS_DATA, prepare_adapter
from stablerank.adapters.specs import AdapterSpec, SavedSpec
from stablerank.errors import DataError, ModelError, RecipeError
from stablerank.evaluation.prompts import prompt_ids
from stablerank.rewards.specs import SingleRewardSpec
from stablerank.training.recipe import Recipe
from stablerank.training.routing import planned
from stablerank.training.sections import RunRecipe
from stablerank.zoo.resolve import resolve

Row = dict[str, Any]

CALIBRATION = 256
"""Training prompts that a data-driven initialiser reads."""


def load_policy(recipe: RunRecipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The untouched policy and its left-padding tokenizer.

    What trains in place has fp32 masters whatever the dtype, and its masks or added biases from the start; a saved
    adapter is on the model, because it is part of the policy that the run begins with.
    """
    place = resolve(recipe.model.path)
    dtype = torch.float32 if recipe.adapter.in_place else getattr(torch, recipe.model.dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
    except Exception as error:  # transformers raises many unrelated types for one bad folder
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model.path {recipe.model.path!r} cannot be loaded ({type(error).__name__}: {reason}); "
            "give `zoo:NAME` (see `stablerank zoo list`) or a folder that save_pretrained wrote."
        ) from error
    # Without its files, transformers makes one that knows special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"model.path {recipe.model.path!r} holds no tokenizer; write it beside the weights with "
            "`tokenizer.save_pretrained`."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _check_adapter_fits(recipe, model)
    planned(recipe, model.config)
    if recipe.adapter.in_place or isinstance(recipe.adapter, SavedSpec):
        model = prepare_adapter(model, recipe.adapter)
    return model, tokenizer


def calibrated(
    adapter: AdapterSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> PreTrainedModel:
    """The model, with the adapter on it where its first factors are drawn from what the model reads."""
    if adapter.kind not in NEEDS_DATA:
        return model
    ids = (prompt_ids(tokenizer, row["prompt"], index) for index, row in enumerate(rows[:CALIBRATION]))
    return prepare_adapter(model, adapter, calibration=[{"input_ids": torch.tensor([row])} for row in ids])


def _check_adapter_fits(recipe: RunRecipe, model: PreTrainedModel) -> None:
    """Build the adapter on a weightless copy: a target that the model lacks must not show up half-way into a run."""
    try:
        parameter_counts(recipe.adapter, model.config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"The adapter does not fit the model ({reason}); set `adapter.targets=all-linear` or names of its layers."
        ) from error


def check_rows(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    held_out: Sequence[Row],
) -> None:
    """Refuse rows that the run would trip over: no column for the reward, no token, or no room for a completion.

    Training rows need what the rewards read, held-out rows what the judge reads: prompts alone can train. A prompt and
    the longest completion of training or evaluation must fit the model's context together.
    """
    for component in recipe.components:
        _check_columns(component.reward, rows, "training")
    _check_columns(recipe.judge, held_out, "held-out")
    context = getattr(model.config, "max_position_embeddings", math.inf)
    longest = max(recipe.loss_settings["max_completion_length"], recipe.evaluation.max_new_tokens or 0)
    for index, row in enumerate([*rows, *held_out]):
        length = len(prompt_ids(tokenizer, row["prompt"], index))
        if length > context - longest:
            raise DataError(
                f"Prompt {index} has {length} tokens, but the context of {context} less {longest} for the completion "
                f"leaves {context - longest}; shorten the prompt, drop the row, or lower trainer.max_completion_length "
                "or evaluation.max_new_tokens."
            )


def _check_columns(reward: SingleRewardSpec, rows: Sequence[Row], which: str) -> None:
    for column in reward.columns:
        if lacking := [index for index, row in enumerate(rows) if column not in row]:
            there = ", ".join(sorted(rows[lacking[0]]))
            raise DataError(
                f"The reward {reward.kind} reads the column {column!r}, which {which} row {lacking[0]} lacks (columns: "
                f"{there}); name the file's column with `data.columns.{column}=COLUMN`."
            )
