"""What differs between the results of two studies: cells, states, columns and values.

Contract: numbers agree where they differ by at most ``tolerance``, relative to the larger one or in their own units,
whichever is more (`math.isclose`); 0 asks for equal numbers. An undefined number agrees with an undefined one. Columns
that measure the machine (`MACHINE`) always differ and are not compared; neither are seconds, seals and provenance.

Left out on purpose: whether a difference matters; that is a rule's to say.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stablerank.errors import DataError, RecipeError
from stablerank.studies.layout import StudyFolder
from stablerank.studies.results import WHOLE, Result, read_results

MACHINE = frozenset({"train_seconds", "peak_memory_bytes", "seconds"})
"""Columns that depend on the machine and its load."""

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Unlike:
    """One difference; ``count`` numbers of a column differ, and the furthest apart is told. ``column`` "": the cell."""

    cell: str
    column: str
    count: int
    unit: str
    first: Any
    second: Any

    def __str__(self) -> str:
        if not self.column:
            return f"{self.cell}: {self.first} | {self.second}"
        where = f"{self.cell} {self.column}"
        if self.unit:
            where += f", {self.count} unit{'s' if self.count > 1 else ''}, the furthest {self.unit}"
        return f"{where}: {self.first} | {self.second}"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def differences(first: str | Path, second: str | Path, tolerance: float = 0.0) -> list[Unlike]:
    """Every difference, in the order of cells and columns.

    Raises:
        DataError: a folder without results, or one whose seal is broken.
        RecipeError: a tolerance below zero.
    """
    if not tolerance >= 0:
        raise RecipeError(f"tolerance is {tolerance:g}, but numbers cannot differ by less than 0; give 0 or more.")
    ours, theirs = _results(first), _results(second)
    return [unlike for cell in sorted({*ours, *theirs}) for unlike in _of_cell(cell, ours, theirs, tolerance)]


def _results(folder: str | Path) -> dict[str, Result]:
    study = StudyFolder(Path(folder))
    found = read_results(study.results_path)
    if not found:
        raise DataError(f"{study.results_path} holds no result; give the folder of a study that was run.")
    return found


def _of_cell(cell: str, ours: Mapping[str, Result], theirs: Mapping[str, Result], tolerance: float) -> Iterator[Unlike]:
    states = [results[cell]["status"] if cell in results else "no result" for results in (ours, theirs)]
    if states[0] != states[1]:
        yield Unlike(cell, "", 1, WHOLE, *states)
        return
    one, other = _columns(ours[cell]), _columns(theirs[cell])
    for column in sorted({*one, *other} - MACHINE):
        if column not in one or column not in other:
            has = ["a column" if column in columns else "no column" for columns in (one, other)]
            yield Unlike(cell, column, 1, WHOLE, *has)
        else:
            yield from _of_column(cell, column, one[column], other[column], tolerance)


def _columns(result: Result) -> dict[str, dict[str, float | None]]:
    """Numbers by unit, by column; the cell's own stand under `WHOLE`."""
    columns: dict[str, dict[str, float | None]] = {}
    for column, value in result["values"].items():
        columns.setdefault(column, {})[WHOLE] = value
    for column, of_unit in result["units"].items():
        columns.setdefault(column, {}).update(of_unit)
    return columns


def _of_column(cell: str, column: str, one: Numbers, other: Numbers, tolerance: float) -> Iterator[Unlike]:
    """The cell's own number apart from those of its units."""
    lone = [unit for unit in {**one, **other} if (unit in one) != (unit in other)]
    if lone:
        has = ["a number" if lone[0] in numbers else "no number" for numbers in (one, other)]
        yield Unlike(cell, column, len(lone), lone[0], *has)
    unlike = [unit for unit in one if unit in other and not _agree(one[unit], other[unit], tolerance)]
    for units in ([unit for unit in unlike if unit == WHOLE], [unit for unit in unlike if unit != WHOLE]):
        if units:
            furthest = max(units, key=lambda unit: _distance(one[unit], other[unit]))
            yield Unlike(cell, column, len(units), furthest, one[furthest], other[furthest])


def _agree(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def _distance(one: float | None, other: float | None) -> float:
    return math.inf if one is None or other is None else abs(one - other)
