"""The folder that a measurement leaves: resumable while it grows, tables when it is whole.

::

    tensors.jsonl   one line a measured tensor, appended as it finishes
    measure.json    what was measured and how, counts, problems; "complete" once everything is in
    rows.parquet    the geometry rows with the name, shape and dtype of each matrix
    rows.csv        the same

Contract: a start on a folder with the same question goes on where it stopped; with another question, or on a folder
that holds something else, it is refused and nothing is overwritten. The question includes size and time of every file
that is read, so a checkpoint that changed is another question.

Left out on purpose: the report (reports/measure_html.py), which reads this folder.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stablerank.errors import RunFolderError
from stablerank.probes.measure import MeasuredMatrix, MeasuredTensor
from stablerank.probes.sources.stored import Problem
from stablerank.runs.atomic import write_json, write_text
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.runs.tables import JsonlTable

META, PARTS = "measure.json", "tensors.jsonl"
COLUMNS = ("name", *(field.name for field in fields(GeometryRow)), "rows", "columns", "dtype")


@dataclass(frozen=True)
class MeasureFolder:
    """One measurement on disk."""

    path: Path

    def claim(self, question: dict[str, Any]) -> list[MeasuredTensor]:
        """Begin here, or go on: what was measured before.

        Raises:
            RunFolderError: the folder holds another measurement, a damaged one or something else, or cannot be written.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if all(path.name.startswith(".") for path in self.path.iterdir()):  # what a killed write leaves is hidden
                write_json(self.path / META, {"question": question, "complete": False})
                return []
            self._require_same(json.loads(json.dumps(question)))
            return self._measured_before()

    def keep(self, measured: MeasuredTensor) -> None:
        """Append one tensor; a kill leaves it whole or absent."""
        with _writing(self.path):
            self._parts.append(_line(measured))

    def complete(self, meta: dict[str, Any], tensors: Iterable[MeasuredTensor]) -> None:
        """Write the tables and the summary."""
        table = rows_table(tensors)
        temporary = self.path / ".rows.parquet.tmp"
        with _writing(self.path):
            pq.write_table(table, temporary)
            os.replace(temporary, self.path / "rows.parquet")
            write_text(self.path / "rows.csv", csv_text(table.to_pylist()))
            write_json(self.path / META, {"question": self._state().get("question"), "complete": True, **meta})

    def finished(self) -> dict[str, Any] | None:
        """The summary of a measurement that ended, else None."""
        state = self._state()
        if state.get("complete") is not True:
            return None
        return {key: value for key, value in state.items() if key not in ("question", "complete")}

    @property
    def _parts(self) -> JsonlTable:
        return JsonlTable(self.path / PARTS)

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.path / META).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _require_same(self, question: dict[str, Any]) -> None:
        held = self._state().get("question")
        if held == question:
            return
        what = "something else than a measurement"
        if isinstance(held, dict):
            differing = [key for key in {**held, **question} if held.get(key) != question.get(key)]
            what = f"a measurement that differs in {', '.join(differing)}"
        raise RunFolderError(f"{self.path} holds {what}: give another --out, or delete the folder.")

    def _measured_before(self) -> list[MeasuredTensor]:
        try:
            if self.finished() is None:
                # A kill may have cut the last line short, and the next one must not be glued to it.
                self._parts.truncate(0)
            return [_measured(line) for line in self._parts.rows()]
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{self.path / PARTS} is damaged: delete {self.path} and measure again.") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one sentence."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written ({error.strerror or error}): give an --out where you may write and there is "
            "room."
        ) from error


def fingerprint(files: Iterable[str]) -> str:
    """A hash over name, size and time of files: cheap, and another one as soon as a checkpoint is written again."""
    states = sorted((file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in set(files))
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def table_rows(tensors: Iterable[MeasuredTensor]) -> Iterator[dict[str, Any]]:
    """The tidy table: a geometry row and the matrix it belongs to."""
    for tensor in tensors:
        for matrix in tensor.matrices:
            for row in matrix.rows:
                cells = {"name": matrix.name, **asdict(row), "dtype": tensor.dtype}
                cells["rows"], cells["columns"] = matrix.shape
                yield {column: cells[column] for column in COLUMNS}


def rows_table(tensors: Iterable[MeasuredTensor]) -> pa.Table:
    """The tidy table with its column types, whatever the rows hold."""
    return pa.Table.from_pylist(list(table_rows(tensors)), schema=_schema())


def csv_text(rows: Iterable[dict[str, Any]]) -> str:
    """The table as CSV, NaN and None as empty cells."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    return buffer.getvalue()


def _schema() -> pa.Schema:
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), int | None: pa.int64()}
    columns = {field.name: types[field.type] for field in fields(GeometryRow)}  # type: ignore[index]
    columns |= {"name": pa.string(), "rows": pa.int64(), "columns": pa.int64(), "dtype": pa.string()}
    return pa.schema([(name, columns[name]) for name in COLUMNS])


def _line(measured: MeasuredTensor) -> dict[str, Any]:
    return {**asdict(measured), "step": 0}


def _measured(line: dict[str, Any]) -> MeasuredTensor:
    matrices = tuple(
        MeasuredMatrix(matrix["name"], tuple(matrix["shape"]), tuple(GeometryRow(**row) for row in matrix["rows"]))
        for matrix in line["matrices"]
    )
    problems = tuple(Problem(**problem) for problem in line["problems"])
    return MeasuredTensor(line["tensor"], line["dtype"], line["nbytes"], matrices, problems)
