"""Rows from files: JSON lines, JSON, CSV, Parquet, local or on the hub, read by `datasets`.

Left out on purpose: streaming. Reinforcement on verifiable prompts needs thousands of rows, not terabytes.
"""

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stablerank.errors import DataError
from stablerank.tasks.messages import conversation

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_DATA_SCHEME = "data:"
_HUB = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]*))?(:(?P<split>[\w.-]+))?")
"""``OWNER/NAME``, ``OWNER/NAME:CONFIG``, ``OWNER/NAME:CONFIG:SPLIT``; an empty CONFIG is the default one."""
_NO_ROW = ("corresponds to no data", "No columns to parse from file", "BatchSize must be greater than 0")
"""How `datasets` says that a file has no row: most formats, empty CSV, Parquet; for empty JSON, ``StopIteration``."""


def data_folder() -> Path:
    """The folder of real data: ``STABLERANK_DATA``, else ``../shared/data`` beside the working directory."""
    return Path(os.environ.get("STABLERANK_DATA", "../shared/data"))


def load_rows(
    path: str, columns: dict[str, str], answer_pattern: str | None, *, conversations: bool = False
) -> list[dict[str, Any]]:
    """Every row with our column names; raises `DataError` for what is missing, empty or not text.

    With ``conversations`` a prompt may also be a list of messages, which messages.py reads.
    """
    needed = {"prompt", *columns, *(["answer"] if answer_pattern else [])}
    rows = [_renamed(row, columns) for row in _read(path, columns, needed)]
    for index, row in enumerate(rows):
        if conversations and isinstance(row["prompt"], list):
            row["prompt"] = conversation(row["prompt"], f"{path} row {index}")
        elif not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise DataError(f"{path} row {index}: the prompt is {row['prompt']!r}, not text; mend or drop the row.")
        if answer_pattern is not None:
            row["answer"] = _extracted(str(row["answer"]), answer_pattern, f"{path} row {index}")
    return rows


IN_A_RECIPE = "data.columns.{}=COLUMN"


def load_texts(
    path: str, columns: dict[str, str], names: Sequence[str], remedy: str = IN_A_RECIPE
) -> list[dict[str, Any]]:
    """The columns ``names`` of every row; raises `DataError` for what is missing, empty or not text.

    ``remedy``: how to name another column where this is asked, ``{}`` being our name.
    """
    rows = [_renamed(row, columns) for row in _read(path, columns, {*names, *columns}, remedy)]
    for index, row in enumerate(rows):
        for name in names:
            if not isinstance(row[name], str) or not row[name].strip():
                raise DataError(
                    f"{path} row {index}: the {name} is {row[name]!r:.100}, not text; mend or drop the row."
                )
    return [{name: row[name] for name in names} for row in rows]


def split_of(prompt: str, whole_file_is_held_out: bool | None) -> str:
    """Split by the SHA-256 of the prompt: stable under reordering, appending and seeds."""
    bucket = hashlib.sha256(prompt.encode()).digest()[0]
    if whole_file_is_held_out is None:
        return "validation" if bucket < 26 else "test" if bucket < 52 else "train"
    return ("validation" if bucket % 2 else "test") if whole_file_is_held_out else "train"


def _read(path: str, columns: dict[str, str], needed: set[str], remedy: str = IN_A_RECIPE) -> list[dict[str, Any]]:
    try:
        dataset = _open(path)
        rows: list[dict[str, Any]] = dataset.to_list()
    except DataError:
        raise
    except Exception as error:  # `datasets` raises many unrelated types for one bad file
        raise DataError(_unreadable(path, error)) from error
    for ours in sorted(needed):
        theirs = columns.get(ours, ours)
        if theirs not in dataset.column_names:
            raise DataError(
                f"{path} has no column {theirs!r} for {ours!r}, it has {', '.join(dataset.column_names)}; "
                f"name the right one with `{remedy.format(ours)}`."
            )
    return rows


def _open(path: str) -> Any:
    # Imported here: `datasets` takes seconds, and a recipe on generated data never needs it.
    from datasets import Dataset, load_dataset

    local = data_folder() / path.removeprefix(_DATA_SCHEME) if path.startswith(_DATA_SCHEME) else Path(path)
    if local.is_file():
        suffixes = [s for s in local.suffixes if s in _READERS]
        if not suffixes:
            raise DataError(f"{path} is none of {', '.join(_READERS)}; convert it to JSON lines.")
        # Not `load_dataset`, which reports each use of a reader to a server. Escaped, because the path is a pattern.
        return getattr(Dataset, f"from_{_READERS[suffixes[-1]]}")(glob.escape(str(local)))
    if path.startswith(_DATA_SCHEME):
        raise DataError(f"{path} is not in the data folder {data_folder()}; set STABLERANK_DATA to the folder with it.")
    hub = _HUB.fullmatch(path)
    if hub is None or Path(hub["id"]).suffix[1:].isalpha():  # a version in a name has digits, a file's ending has none
        raise DataError(f"{path} is no file; give an existing one, data:NAME, or a hub id such as openai/gsm8k:main.")
    return load_dataset(hub["id"], hub["config"] or None, split=hub["split"] or "train")


def _unreadable(path: str, error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, StopIteration) or any(words in str(cause) for words in _NO_ROW):
        return f"{path} holds no row; give a file with at least one."
    reason = " ".join(str(cause).split())[:200]
    return f"{path} cannot be read as data ({type(cause).__name__}: {reason}); check its format."


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    ours = {name: row[theirs] for name, theirs in columns.items()}
    taken = {*columns.values(), *columns}
    return {**{key: value for key, value in row.items() if key not in taken}, **ours}


def _extracted(text: str, pattern: str, place: str) -> str:
    match = re.search(pattern, text)
    if match is None or match[1] is None:
        raise DataError(f"{place}: data.answer_pattern {pattern!r} finds nothing in {text[-60:]!r}; mend either.")
    return match[1].strip()
