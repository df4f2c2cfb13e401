"""Preference pairs, and choices among several responses, from files, the hub and the data folder.

A pair is a prompt with a chosen and a rejected response. Its ``group`` names what makes pairs dependent: pairs of one
prompt share it, so intervals are taken over groups. A choice (RewardBench 2) has one prompt and lists of both.

Schema of a row: ``prompt`` (text, or chat messages for several turns), ``chosen``, ``rejected``, and where they are
there ``subset``, ``id``, ``group``; other names through ``columns``. A response is text, or the conversation that ends
with it; a conversation's earlier turns are then the prompt. RewardBench's two schemas are of this kind.

A row without a response, or with an empty one or one that is not text, is left out, counted, and named with its reason.

Left out on purpose: strengths of preference, and ties among the labels.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stablerank.errors import DataError
from stablerank.tasks.preference_rows import Row, read_rows

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
COLUMNS = ("prompt", "chosen", "rejected", "subset", "id", "group")
_STYLES = 3


@dataclass(frozen=True)
class Pair:
    """One preference: ``chosen`` over ``rejected``."""

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    subset: str
    group: str


@dataclass(frozen=True)
class Choice:
    """A prompt with every right and every wrong response."""

    id: str
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    subset: str
    group: str


@dataclass(frozen=True)
class Refused:
    """A row that could not be used; ``row`` counts from 0."""

    row: int
    id: str
    reason: str


_Item = TypeVar("_Item", Pair, Choice)


@dataclass(frozen=True)
class Preferences(Generic[_Item]):
    """What could be used of a data set, in its order, and what could not."""

    name: str
    items: tuple[_Item, ...]
    refused: tuple[Refused, ...]


def load_pairs(path: str, columns: Mapping[str, str] | None = None, split: str | None = None) -> list[Pair]:
    """The usable pairs of `read_pairs`."""
    return list(read_pairs(path, columns, split).items)


def spread(items: Sequence[_Item], limit: int | None) -> tuple[_Item, ...]:
    """At most ``limit`` items, evenly spread: files stand in the order of their subsets."""
    count = len(items) if limit is None else min(limit, len(items))
    return tuple(items[at * len(items) // count] for at in range(count))


def read_pairs(path: str, columns: Mapping[str, str] | None = None, split: str | None = None) -> Preferences[Pair]:
    """Pairs with one chosen and one rejected response each.

    Args:
        path: a set of the data folder (``llmbar``, ``judgebench``, ``rmbench``, ``gsm8k_solutions``), a JSONL, JSON or
            Parquet file, ``data:NAME``, or a hub id such as ``allenai/reward-bench``.
        columns: our name to the file's, such as ``{"prompt": "question"}``.
        split: of a hub data set; see `read_rows`.

    Raises:
        DataError: nothing there, a column missing in every row, or no row that can be used.
    """
    return _usable(path, _rows(path, split), columns or {}, _pair)


def read_choices(path: str, columns: Mapping[str, str] | None = None, split: str | None = None) -> Preferences[Choice]:
    """Rows of RewardBench 2: lists of right and wrong responses. Arguments and errors are those of `read_pairs`."""
    return _usable(path, _rows(path, split), columns or {}, _choice)


def read_preferences(
    path: str, columns: Mapping[str, str] | None = None, split: str | None = None
) -> Preferences[Pair] | Preferences[Choice]:
    """Choices where the first row has a list of texts for its chosen response, else pairs; see `read_pairs`."""
    rows, columns = _rows(path, split), columns or {}
    first: Any = rows[0].get(columns.get("chosen", "chosen")) if rows else None
    if isinstance(first, list) and all(isinstance(text, str) for text in first):
        return _usable(path, rows, columns, _choice)
    return _usable(path, rows, columns, _pair)


def _rows(path: str, split: str | None) -> list[Row]:
    if path not in SETS:
        return read_rows(path, split)
    file, pairs_of = SETS[path]
    return [pair for row in read_rows(f"data:{file}") for pair in pairs_of(row)]


def _usable(
    path: str, rows: Sequence[Row], columns: Mapping[str, str], item_of: Callable[[Row, str], _Item]
) -> Preferences[_Item]:
    _check_columns(path, rows, columns)
    items: list[_Item] = []
    refused: list[Refused] = []
    for index, raw in enumerate(rows):
        row = {ours: raw.get(columns.get(ours, ours)) for ours in COLUMNS}
        name = str(index if row["id"] is None else row["id"])
        try:
            items.append(item_of(row, name))
        except _UnusableError as error:
            refused.append(Refused(index, name, str(error)))
    if not items:
        reason = f": row {refused[0].row}: {refused[0].reason}" if refused else ""
        raise DataError(f"{path} holds no pair that can be used{reason}; give a file with at least one.")
    return Preferences(path, tuple(items), tuple(refused))


def _check_columns(path: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise DataError(f"There is no column {unknown[0]!r} to rename; choose one of {', '.join(COLUMNS)}.")
    there = list(dict.fromkeys(name for row in rows for name in row))
    for ours in ["chosen", "rejected", *columns]:
        theirs = columns.get(ours, ours)
        if rows and theirs not in there:
            raise DataError(
                f"{path} has no column {theirs!r} for {ours!r}, it has {', '.join(there) or 'none'}; name the right "
                f"one as {ours}=COLUMN."
            )


class _UnusableError(Exception):
    """Why a row cannot be used."""


def _pair(row: Row, name: str) -> Pair:
    (before, chosen), (before_rejected, rejected) = (_response(row[side], side) for side in ("chosen", "rejected"))
    if before != before_rejected:
        raise _UnusableError("the chosen and the rejected conversation differ before their last turn")
    prompt = _prompt(before or row["prompt"])
    return Pair(name, prompt, chosen, rejected, _subset(row), _group(row, prompt))


def _choice(row: Row, name: str) -> Choice:
    prompt = _prompt(row["prompt"])
    chosen, rejected = (_responses(row[side], side) for side in ("chosen", "rejected"))
    return Choice(name, prompt, chosen, rejected, _subset(row), _group(row, prompt))


def _responses(values: Any, side: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise _UnusableError(f"there is no list of {side} responses")
    return tuple(_response(value, side)[1] for value in values)


def _response(value: Any, side: str) -> tuple[list[Message], str]:
    """The turns before a response, and its text."""
    before: list[Message] = []
    if _is_chat(value):
        *before, last = value
        value = last.get("content") if last.get("role") == "assistant" else None
    if value is None:
        raise _UnusableError(f"there is no {side} response")
    if not isinstance(value, str):
        raise _UnusableError(f"the {side} response is {type(value).__name__}, not text")
    if not value.strip():
        raise _UnusableError(f"the {side} response is empty")
    return before, value


def _prompt(value: Any) -> Prompt:
    if _is_chat(value) and all(isinstance(turn.get("content"), str) and turn.get("role") for turn in value):
        return [dict(turn) for turn in value]
    if not isinstance(value, str):
        raise _UnusableError("the prompt is missing" if value is None else "the prompt is neither text nor messages")
    if not value.strip():
        raise _UnusableError("the prompt is empty")
    return value


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _subset(row: Row) -> str:
    return "all" if row["subset"] is None else str(row["subset"])


def _group(row: Row, prompt: Prompt) -> str:
    if row["group"] is not None:
        return str(row["group"])
    return _digest(json.dumps(prompt, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- the sets of the data folder --------------------------------------------------------------------------------


def _llmbar(row: Row) -> Iterator[Row]:
    """RewardBench's own names for the five subsets."""
    yield {**row, "subset": row["subset"].replace("Neighbor", "neighbor").replace("Manual", "manual")}


def _judgebench(row: Row) -> Iterator[Row]:
    """The four categories of arXiv 2410.12784; the label says which response is right."""
    kinds = {"livebench-reasoning": "reasoning", "livebench-math": "math", "livecodebench": "coding"}
    right, wrong = ("response_A", "response_B") if row["label"] == "A>B" else ("response_B", "response_A")
    yield {
        "id": row["pair_id"],
        "prompt": row["question"],
        "chosen": row[right],
        "rejected": row[wrong],
        "subset": kinds.get(row["source"], "knowledge"),
    }


def _rmbench(row: Row) -> Iterator[Row]:
    """All 9 pairs of 3 styles, plain to fancy; ``hard`` where the wrong one is fancier (arXiv 2410.16184)."""
    for right in range(_STYLES):
        for wrong in range(_STYLES):
            level = "normal" if right == wrong else "hard" if right < wrong else "easy"
            yield {
                "id": f"{row['id']}-{row['language']}-{right}-{wrong}",
                "prompt": row["prompt"],
                "chosen": row["chosen"][right],
                "rejected": row["rejected"][wrong],
                "subset": f"code-{level}",
            }


def _gsm8k_solutions(row: Row) -> Iterator[Row]:
    """Every right solution with every wrong one of the same question; none where all four agree."""
    solved = {name: value for name, value in row.items() if isinstance(value, dict)}
    for right in (name for name, value in solved.items() if value["is_correct"]):
        for wrong in (name for name, value in solved.items() if not value["is_correct"]):
            yield {
                "id": f"{_digest(row['question'])}-{right}>{wrong}",
                "prompt": row["question"],
                "chosen": solved[right]["solution"],
                "rejected": solved[wrong]["solution"],
                "subset": "gsm8k",
            }


SETS: Mapping[str, tuple[str, Callable[[Row], Iterator[Row]]]] = {
    "llmbar": ("llmbar_pairs.jsonl", _llmbar),
    "judgebench": ("judgebench.jsonl.gz", _judgebench),
    "rmbench": ("rmbench_code.json.gz", _rmbench),
    "gsm8k_solutions": ("gsm8k_example_model_solutions.jsonl.gz", _gsm8k_solutions),
}
"""The file and the pairs of a row, for each set in the data folder."""
