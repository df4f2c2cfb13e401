"""Rows of text by what somebody types: the embedded models' problems, or a file.

Left out on purpose: splits; a recipe's ``data`` section has them (`stablerank.tasks.texts`).
"""

from typing import Any

from stablerank.tasks import arithmetic, files

ARITHMETIC = "arithmetic"
"""The name of generated problems of the embedded models, with their worked solutions."""


def named_rows(texts: str, columns: dict[str, str], limit: int, split: arithmetic.Split) -> list[dict[str, Any]]:
    """The first rows, of ``text`` or of ``prompt`` and ``completion``.

    Args:
        texts: ``arithmetic``, or JSONL, JSON, CSV, Parquet, ``data:NAME`` or a hub id.
        columns: our name to the file's: ``{"text": ...}``, or ``{"prompt": ..., "completion": ...}``.
        limit: at most so many.
        split: of the generated problems; a file is taken as it is.

    Raises:
        DataError: the file is missing, or a row is not text.
    """
    if texts == ARITHMETIC:
        return [{"prompt": each.prompt, "completion": each.solution} for each in arithmetic.problems(split, limit)]
    names = ("prompt", "completion") if {"prompt", "completion"} & columns.keys() else ("text",)
    return files.load_texts(texts, columns, names, remedy="--{}-column COLUMN")[:limit]
