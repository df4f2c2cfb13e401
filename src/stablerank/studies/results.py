"""Results of a study's cells: sealed JSON files, and all their numbers as one tidy table.

Contract: a cell's result is ``results/CELL.json`` with ``cell, arm, seed, status, error, seconds, values, units``
under a seal (`stablerank.studies.sealing`). `read_results` refuses a file whose seal is broken. An undefined number is
null in the file and NaN in the table; a cell that failed has no numbers.

Left out on purpose: whether a result belongs to its lock (`stablerank.studies.lock`).

Legend: R rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablerank.errors import DataError
from stablerank.studies.sealing import is_sealed

Result = Mapping[str, Any]
Names = NDArray[np.object_]
Rows = NDArray[np.int64]

WHOLE = ""
"""The unit of a value that belongs to the cell as a whole."""
_READ = ("cell", "arm", "seed", "status", "error", "seconds", "values", "units")


@dataclass(frozen=True)
class Table:
    """One number a row: ``value_R[i]`` is ``column_R[i]`` of ``unit_R[i]`` (`WHOLE` for the cell's own) in a cell."""

    cell_R: Names
    arm_R: Names
    seed_R: NDArray[np.int64]
    unit_R: Names
    column_R: Names
    value_R: NDArray[np.float64]

    def rows(self, arm: str, column: str) -> Rows:
        """Where the numbers of one column of one arm stand; empty where there are none."""
        return self._rows_of.get((arm, column), np.empty(0, np.int64))

    def arms(self, column: str) -> Iterator[str]:
        """The arms that have the column."""
        return (arm for arm, other in self._rows_of if other == column)

    @cached_property
    def _rows_of(self) -> dict[tuple[str, str], Rows]:
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row, key in enumerate(zip(self.arm_R.tolist(), self.column_R.tolist(), strict=True)):
            found[key].append(row)
        return {key: np.array(rows, np.int64) for key, rows in found.items()}


def read_results(folder: str | Path, cells: Iterable[str] | None = None) -> dict[str, Result]:
    """The results in ``folder`` by cell, finished and failed: all of them, or those of ``cells`` that are there.

    Raises:
        DataError: a file that is no result of the cell it is named after, or whose seal is broken.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("[!.]*.json")) if cells is None else [folder / f"{cell}.json" for cell in cells]
    return {path.stem: _read(path) for path in paths if cells is None or path.exists()}


def load_results(folder: str | Path) -> Table:
    """The numbers of every finished cell in ``folder``; raises like `read_results`."""
    return tabulate(read_results(folder).values())


def tabulate(results: Iterable[Result]) -> Table:
    """The numbers of results of status ``done`` as a table."""
    cells: list[str] = []
    arms: list[str] = []
    seeds: list[int] = []
    units: list[str] = []
    columns: list[str] = []
    values: list[float | None] = []
    for result in results:
        if result["status"] != "done":
            continue
        whole = {column: {WHOLE: value} for column, value in result["values"].items()}
        for column, of_unit in (*whole.items(), *result["units"].items()):
            count = len(of_unit)
            cells += [result["cell"]] * count
            arms += [result["arm"]] * count
            seeds += [result["seed"]] * count
            units += of_unit.keys()
            columns += [column] * count
            values += of_unit.values()
    return Table(
        _names(cells),
        _names(arms),
        np.array(seeds, np.int64),
        _names(units),
        _names(columns),
        np.array(values, np.float64),  # null becomes NaN
    )


def _names(values: list[str]) -> Names:
    return np.array(values, dtype=object)


def _read(path: Path) -> Result:
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); delete it and run the study again.") from error
    lacks = [key for key in _READ if not isinstance(result, dict) or key not in result]
    if lacks:
        raise DataError(f"{path} is no result of a cell, it lacks {lacks[0]!r}; delete it and run the study again.")
    if not is_sealed(result):
        raise DataError(f"{path} was changed after it was sealed; delete it and run the study again.")
    if result["cell"] != path.stem:
        raise DataError(f"{path} is the result of cell {result['cell']}; delete it and run the study again.")
    return dict(result)
