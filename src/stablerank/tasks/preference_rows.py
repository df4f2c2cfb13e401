"""Rows of preference data as they stand in a file or on the hub: nothing is checked, so that bad rows can be named.

JSON and JSON lines (``.gz`` too) are read by the standard library, because `datasets` gives a column one type and
drops a whole file for one broken line. A line that is no JSON object becomes a row without columns.
"""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stablerank.errors import DataError
from stablerank.tasks.files import data_folder

Row = dict[str, Any]
_DATA_SCHEME = "data:"
_SPLITS = {"allenai/reward-bench": "filtered", "allenai/reward-bench-2": "test"}


def read_rows(path: str, split: str | None = None) -> list[Row]:
    """Every row of a local JSONL, JSON or Parquet file, of ``data:NAME`` in the data folder, or of a hub id.

    Args:
        path: where the rows are.
        split: of a hub data set; by default ``filtered`` for RewardBench, ``test`` for RewardBench 2, else ``train``.

    Raises:
        DataError: nothing is there, or it cannot be read as rows.
    """
    local = data_folder() / path.removeprefix(_DATA_SCHEME) if path.startswith(_DATA_SCHEME) else Path(path)
    try:
        return _local_rows(local) if local.is_file() else _hub_rows(path, split)
    except DataError:
        raise
    except Exception as error:  # pyarrow and `datasets` raise many unrelated types for one bad file
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} cannot be read as rows ({type(error).__name__}: {reason}); check its format."
        ) from error


def _local_rows(path: Path) -> list[Row]:
    if ".parquet" in path.suffixes:
        import pyarrow.parquet as pq

        rows: list[Row] = pq.read_table(path).to_pylist()
        return rows
    if not {".json", ".jsonl"} & set(path.suffixes):
        raise DataError(f"{path} is none of .jsonl, .json, .parquet; convert it to JSON lines.")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        text = file.read().decode("utf-8")
    if ".jsonl" in path.suffixes:
        return [_object(line) for line in text.split("\n") if line.strip()]
    whole = json.loads(text)
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {type(whole).__name__}, not a list of rows; write it as JSON lines.")
    return _objects(whole)


def _object(line: str) -> Row:
    try:
        return _objects([json.loads(line)])[0]
    except ValueError:
        return {}


def _objects(values: Iterable[Any]) -> list[Row]:
    return [value if isinstance(value, dict) else {} for value in values]


def _hub_rows(path: str, split: str | None) -> list[Row]:
    if path.startswith(_DATA_SCHEME):
        raise DataError(f"{path} is not in the data folder {data_folder()}; set STABLERANK_DATA to the folder with it.")
    if Path(path).suffix or Path(path).is_absolute() or path.count("/") != 1:
        raise DataError(
            f"{path} is no file; give an existing one, data:NAME, or a hub id such as allenai/reward-bench."
        )
    # Imported here: `datasets` takes seconds, and local files never need it.
    from datasets import load_dataset

    rows: list[Row] = load_dataset(path, split=split or _SPLITS.get(path, "train")).to_list()
    return rows
