"""What is asked and who judges, from a few words on a command line.

A word such as ``arithmetic`` or ``arithmetic:level=hard,problems=8`` is a recipe's ``data`` section on one line:
``KIND:KEY=VALUE,KEY=VALUE``, values parsed as YAML. Anything else is a file of prompts and answers, asked as a whole.
Rewards are written the same way: ``python:ref=score.py:score``.

Left out on purpose: values that hold a comma; they belong into a recipe.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from stablerank.errors import DataError, RecipeError
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.specs import SingleRewardSpec
from stablerank.tasks import files
from stablerank.tasks.specs import DataSpec

Row = dict[str, Any]
Split = Literal["validation", "test"]
_WORDS = re.compile(r"([a-z_0-9]+)(?::([a-z_]+=.*))?")
_DATA: TypeAdapter[Any] = TypeAdapter(DataSpec)
_REWARDS: TypeAdapter[Any] = TypeAdapter(SingleRewardSpec)


class WholeFile(BaseModel):
    """Every row of a file with the columns ``prompt`` and ``answer``: JSONL, JSON, CSV, Parquet, or a hub data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["whole_file"] = "whole_file"
    path: str
    chat: bool = False
    """Wrap each prompt as a user message, so that the model's chat template applies."""

    def held_out_rows(self, split: Split, count: int) -> list[Row]:
        """The first ``count`` rows; all are held out, so the split says nothing."""
        rows = files.load_rows(self.path, {}, None)[:count]
        if not self.chat:
            return rows
        return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


Task = DataSpec | WholeFile
"""A source of held-out problems."""


def parse_task(text: str, chat: bool = False) -> Task:
    """The source behind ``KIND:KEY=VALUE,...`` or behind the name of a file.

    Raises:
        RecipeError: an unknown kind or setting, or ``chat`` where the task has settings of its own for that.
    """
    if _WORDS.fullmatch(text) is None:
        return WholeFile(path=text, chat=chat)
    if chat:
        raise RecipeError(f"`--chat` is for files of prompts; write the task as `{text.partition(':')[0]}:chat=true`.")
    return _parsed(_DATA, text, "task")


def parse_reward(text: str) -> RewardSpecBase:
    """The judge behind ``KIND:KEY=VALUE,...``.

    Raises:
        RecipeError: an unknown kind or setting, or a reward that does not tell right from wrong.
    """
    if _WORDS.fullmatch(text) is None:
        raise RecipeError(f"Reward {text!r} is not KIND:KEY=VALUE,...; write it like `math_verify`.")
    spec: RewardSpecBase = _parsed(_REWARDS, text, "reward")
    if not spec.judges:
        raise RecipeError(
            f"Reward {text!r} cannot tell right from wrong by text alone; use math_verify or another verifier."
        )
    return spec


def check_columns(rows: Sequence[Row], reward: RewardSpecBase) -> None:
    """DataError where a row lacks the column that the judge reads."""
    column = getattr(reward, "answer_column", "prompt")
    lacking = [index for index, row in enumerate(rows) if column not in row]
    if lacking:
        there = ", ".join(sorted(rows[lacking[0]]))
        raise DataError(
            f"The reward reads the column {column!r}, which problem {lacking[0]} lacks (columns: {there}); rename the "
            "column, or name it in a recipe's `data.columns`."
        )


def fingerprint_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the problems themselves: a file that changed holds other problems."""
    text = json.dumps([dict(row) for row in rows], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(adapter: TypeAdapter[Any], text: str, what: str) -> Any:
    match = _WORDS.fullmatch(text)
    assert match is not None
    raw = {"kind": match[1], **_settings(match[2], text)}
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        raise RecipeError(_sentence(error, text, what)) from error


def _settings(listed: str | None, text: str) -> dict[str, Any]:
    found = {}
    for setting in listed.split(",") if listed else []:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"{text!r}: {setting!r} is not KEY=VALUE; write it like `arithmetic:level=hard`.")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"{text!r}: the value of {key!r} is not YAML; quote it for your shell.") from error
        # GSM8K's `#### (.*)` would be a comment.
        found[key] = value if read is None and value.startswith("#") else read
    return found


def _sentence(error: ValidationError, text: str, what: str) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_invalid":
        kinds = first["ctx"]["expected_tags"].replace("'", "")
        rest = ", or a file such as rows.jsonl" if what == "task" else ""
        return f"There is no {what} {text.partition(':')[0]!r}; give one of {kinds}{rest}."
    where = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "missing":
        return f"{what} {text!r} needs {where!r}; add `{where}=VALUE`."
    if first["type"] == "extra_forbidden":
        return f"{what} {text!r} has no setting {where!r}; remove it or mend the spelling."
    return f"{what} {text!r}: {where}={first['input']!r:.100} is refused ({first['msg']}); give such a value."
