"""Recorded completions, read back as groups of one prompt: from JSON lines, Parquet, or a run folder.

A row needs ``prompt`` (text, or chat messages) and ``completion`` (text) or ``completion_ids`` (token ids, exact where
they are there). ``truncated: true`` says that the completion did not end by itself. Every other field is a column for
the rewards. Rows of one ``step`` and ``group`` belong together; without these fields, rows of one prompt do.

Left out on purpose: completions as chat messages; evaluation rows of a run folder, which no group compares.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stablerank.errors import DataError
from stablerank.runs.folder import RunFolder

_OF_THE_RUN = {
    "step", "phase", "row", "group", "reward", "rewards", "advantage", "tokens", "prompt", "completion",
    "completion_ids", "truncated",
}  # fmt: skip
"""Fields that say where a row stands or what became of it, and are no columns of the data."""


@dataclass(frozen=True)
class RecordedCompletion:
    """One completion; ``ids`` is None where only its text was kept."""

    text: str
    ids: tuple[int, ...] | None = None
    truncated: bool = False
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedGroup:
    """The completions of one prompt; ``name`` says which, for people."""

    name: str
    prompt: Any
    completions: tuple[RecordedCompletion, ...]


def read_groups(path: Path) -> list[RecordedGroup]:
    """Every group, in order of appearance; those of a run folder in order of its steps.

    Raises:
        DataError: the file is missing, unreadable or empty, or a row lacks what it needs.
        RunFolderError: the folder is none of a run.
    """
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path} holds no rollout; give a file with a row for each completion.")
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        _check(row, f"{path} row {number}")
        groups.setdefault(_key(row), []).append(row)
    return [
        RecordedGroup(_name(members[0], place), members[0]["prompt"], tuple(map(_completion, members)))
        for place, members in enumerate(groups.values())
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        folder = RunFolder(path)
        folder.manifest()  # another folder would look like a run without rollouts
        return [row for row in folder.rollouts.rows() if row["phase"] == "train"]
    try:
        if path.suffix == ".parquet":
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return rows
        # Not splitlines(): a model may have written U+2028, which is no end of a JSON line.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read as rollouts ({' '.join(str(error).split())[:120]}); give JSON lines with prompt "
            "and completion, Parquet, or a run folder."
        ) from error


def _check(row: Any, place: str) -> None:
    if not isinstance(row, dict) or not _is_prompt(row.get("prompt")):
        raise DataError(f"{place} has no prompt; give text, or chat messages with role and content.")
    ids = row.get("completion_ids")
    if ids is not None and not (isinstance(ids, Sequence) and all(type(token) is int for token in ids)):
        raise DataError(f"{place} has completion_ids that are no list of token ids; mend them, or give the text alone.")
    if ids is None and not isinstance(row.get("completion"), str):
        raise DataError(f"{place} has neither completion (text) nor completion_ids; give one of them.")


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and all(isinstance(message, dict) and "role" in message for message in prompt)
    return isinstance(prompt, str)


def _key(row: dict[str, Any]) -> str:
    is_numbered = row.get("group") is not None
    return json.dumps([row.get("step"), row["group"]] if is_numbered else row["prompt"], sort_keys=True)


def _name(row: dict[str, Any], place: int) -> str:
    step = row.get("step")
    return f"group {place}" if step is None else f"group {place} (step {step})"


def _completion(row: dict[str, Any]) -> RecordedCompletion:
    ids, columns = row.get("completion_ids"), {key: value for key, value in row.items() if key not in _OF_THE_RUN}
    return RecordedCompletion(
        text=row.get("completion") or "",
        ids=None if ids is None else tuple(ids),
        truncated=bool(row.get("truncated")),
        columns=columns,
    )
