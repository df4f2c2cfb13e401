"""Which group of completions to score: one that the policy is to sample, or one that was recorded.

Contract: a row a completion, with the prompt and the columns that rewards read; what cannot be scored is refused before
a model runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import DataError
from stablerank.evaluation.prompts import prompt_ids
from stablerank.runs.recorded import RecordedCompletion, RecordedGroup, read_groups
from stablerank.training.recipe import Recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class AskedGroup:
    """What to score: where it comes from, a row a completion, and the completions unless the policy samples them."""

    source: str
    rows: list[Row]
    completions: Sequence[RecordedCompletion] | None = None

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]] | None:
        """The recorded tokens; of a text those that the tokenizer makes of it, and the end token if it ended."""
        if self.completions is None:
            return None
        return [_ids(tokenizer, recorded) for recorded in self.completions]


def prompt_group(recipe: Recipe, prompt: str, columns: Mapping[str, str]) -> AskedGroup:
    """A group for the policy to sample; where the recipe's data are chats, behind their system message."""
    example = recipe.data.train_rows()[0]["prompt"]
    if isinstance(example, str):
        row: Row = {"prompt": prompt, **columns}
    else:
        system = [message for message in example if message["role"] == "system"]
        row = {"prompt": [*system, {"role": "user", "content": prompt}], **columns}
    return AskedGroup(
        "a prompt given by hand, completions sampled now", [row] * recipe.loss_settings["num_generations"]
    )


def row_group(recipe: Recipe, row: int, columns: Mapping[str, str]) -> AskedGroup:
    """A group for the policy to sample, of a row of the recipe's training data."""
    rows = recipe.data.train_rows()
    if not 0 <= row < len(rows):
        raise DataError(f"The recipe's training data have no row {row}; give one from 0 to {len(rows) - 1}.")
    chosen = [{**rows[row], **columns}] * recipe.loss_settings["num_generations"]
    return AskedGroup(f"row {row} of the recipe's data, completions sampled now", chosen)


def recorded_group(recipe: Recipe, path: Path, group: int, columns: Mapping[str, str]) -> AskedGroup:
    """A group of a file or run folder; for a run its rows of the data are found again by their prompts."""
    groups = read_groups(path)
    if not 0 <= group < len(groups):
        raise DataError(f"{path} has no group {group}; give one from 0 to {len(groups) - 1} with --group.")
    chosen = groups[group]
    if len(chosen.completions) < 2:
        raise DataError(
            f"{chosen.name.capitalize()} of {path} has one completion, and a group compares at least two; record more "
            "of its prompt."
        )
    base = _row_of_the_run(recipe, chosen) if path.is_dir() else {"prompt": chosen.prompt}
    rows = [
        {**base, **{name: value for name, value in recorded.columns.items() if value is not None}, **columns}
        for recorded in chosen.completions
    ]
    _require_equal_columns(rows, f"{chosen.name} of {path}")
    return AskedGroup(f"{chosen.name} of {path}", rows, chosen.completions)


def _require_equal_columns(rows: Sequence[Row], place: str) -> None:
    names = {name for row in rows for name in row}
    for number, row in enumerate(rows):
        if lacking := sorted(names - set(row)):
            raise DataError(
                f"Completion {number} of {place} lacks the column {lacking[0]!r} that others of the group have; add it "
                f"to its row, or give all of them `--column {lacking[0]}=VALUE`."
            )


def _row_of_the_run(recipe: Recipe, group: RecordedGroup) -> Row:
    """The row of the data that a run's group came from: the run kept its prompt as text, and the answer alone."""
    known = {str(row["prompt"]): row for row in recipe.data.train_rows()}
    return known.get(str(group.prompt), {"prompt": group.prompt})


def require_columns(recipe: Recipe, asked: AskedGroup) -> None:
    """Refuse a group that lacks a column which a setting of a reward (``answer_column`` and kin) names."""
    for reward in (component.reward for component in recipe.components):
        for column in reward.columns:
            if column not in asked.rows[0]:
                there = ", ".join(sorted(set(asked.rows[0]) - {"prompt"})) or "none"
                raise DataError(
                    f"The reward {reward.kind} reads the column {column!r}, which {asked.source} lacks (columns: "
                    f"{there}); give it with `--column {column}=VALUE`, such as `--column {column}=12`."
                )


def require_fit(
    recipe: Recipe,
    asked: AskedGroup,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]] | None,
) -> None:
    """Refuse what the model cannot read: no token, a token that it lacks, more tokens than its context."""
    context = getattr(model.config, "max_position_embeddings", math.inf)
    known = model.get_input_embeddings().weight.shape[0]
    prompt = len(prompt_ids(tokenizer, asked.rows[0]["prompt"], 0))
    longest = recipe.loss_settings["max_completion_length"]
    for number, tokens in enumerate(ids or []):
        if not tokens or not all(0 <= token < known for token in tokens):
            what = "no token" if not tokens else f"a token outside 0 to {known - 1}"
            raise DataError(f"Completion {number} of {asked.source} has {what}; drop it, or record its own tokens.")
    longest = longest if ids is None else max(map(len, ids))
    if prompt + longest > context:
        raise DataError(
            f"The prompt has {prompt} tokens and the longest completion {longest}, together more than the model's "
            f"context of {context}; shorten the prompt or lower trainer.max_completion_length."
        )


def _ids(tokenizer: PreTrainedTokenizerBase, recorded: RecordedCompletion) -> list[int]:
    if recorded.ids is not None:
        return list(recorded.ids)
    ids = list(tokenizer(recorded.text, add_special_tokens=False)["input_ids"])
    return ids if recorded.truncated else [*ids, tokenizer.eos_token_id]
