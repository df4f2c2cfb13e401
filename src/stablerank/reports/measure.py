"""A measurement's output folder, read and turned into what the terminal and the page show: groups, heat maps, words.

Contract: reads ``measure.json`` and ``rows.parquet`` only. A cell of a heat map is one module type in one layer; where
several matrices share it (experts), it shows their median and says so. Nothing is averaged over a status that is not a
number: matrices without a value are counted.

Legend: a row is one metric of one matrix; a module type is a module with its numbers replaced by ``*``.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stablerank.diagnoses import Finding, module_type, three_digits
from stablerank.errors import DataError
from stablerank.reports import words
from stablerank.runs.geometry_rows import GeometryRow

MOST_OUTLIERS = 5
LEAST_OUTLYING = 1.25
"""Factor from the median of its module type that makes a matrix worth naming."""

METRICS = {
    "stable_rank": (
        "Stable rank",
        "How many directions carry the matrix: all squared singular values over the top one.",
    ),
    "frobenius": ("Frobenius norm", "The size of the whole matrix: root of the sum of squared entries."),
    "spectral_norm": ("Spectral norm", "The largest singular value: the most that the matrix can stretch a vector."),
    "nuclear_rank": ("Nuclear rank", "Squared sum of singular values over the sum of their squares."),
    "participation_ratio": ("Participation ratio", "How many singular directions share the energy."),
    "effective_rank": ("Effective rank", "Exponential of the entropy of the singular values."),
    "numerical_rank": ("Numerical rank", "How many singular values stand above rounding."),
    "spectral_entropy": ("Spectral entropy", "Entropy of the singular values."),
    "condition_number": ("Condition number", "Largest over smallest singular value."),
    "tail_exponent": ("Tail exponent", "Power-law exponent of the eigenvalue tail; a contested reading of training."),
    "nss": ("Spectrum shift", "NSS: how far the sorted singular values moved, relative to the weight's."),
    "head_energy": ("Head energy", "Share of the update in the weight's leading right singular directions."),
    "head_energy_two_sided": ("Head energy, two-sided", "Share of the update in the weight's leading directions."),
    "principal_angle": ("Principal angle", "Largest angle by which the weight's leading subspace turned."),
    "intruder_dimensions": ("Intruder dimensions", "Leading directions that no direction of the base resembles."),
    "sparsity": ("Sparsity", "Share of entries that did not change beyond the storage tolerance."),
    "representable_fraction": (
        "Representable fraction",
        "Squared cosine of the update intended and the one stored, estimated.",
    ),
    "principal_overlap": ("Principal overlap", "Share of moved entries among the larger half of the weight's head."),
    "low_magnitude_overlap": ("Low-magnitude overlap", "Share of moved entries in the smaller half of the weight's."),
    "relative_norm": ("Relative norm", "Frobenius norm of the update over that of the weight."),
}
"""Title and one sentence of every metric."""


@dataclass(frozen=True)
class MeasuredRow(GeometryRow):
    """A geometry row and the stored tensor it belongs to."""

    name: str
    rows: int
    columns: int
    dtype: str

    @property
    def has_value(self) -> bool:
        """Whether the metric is defined for this matrix."""
        return math.isfinite(self.value)

    @property
    def ratio(self) -> float:
        """Value over null; NaN without either."""
        return self.value / self.null if self.null > 0 else math.nan


Rows = Sequence[MeasuredRow]


@dataclass(frozen=True)
class Measurement:
    """One output folder: what was asked and found (``measure.json``), and the rows."""

    folder: Path
    meta: Mapping[str, Any]
    rows: tuple[MeasuredRow, ...]


@dataclass(frozen=True)
class Group:
    """One module type under one metric."""

    module: str
    rows: Rows

    @property
    def values(self) -> list[float]:
        """Values of the matrices that have one."""
        return [row.value for row in self.rows if row.has_value]

    @property
    def median(self) -> float:
        """Median of the defined values, NaN when none is."""
        return _median(self.values)

    @property
    def ratio(self) -> float:
        """Median of value over null; NaN without a null."""
        return _median(row.ratio for row in self.rows)

    @property
    def null(self) -> tuple[float, float, float]:
        """``(low, median, high)``: the lowest low end, the median null and the highest high end; NaN without a null."""
        known = [row for row in self.rows if math.isfinite(row.null)]
        if not known:
            return math.nan, math.nan, math.nan
        low, high = min(row.null_low for row in known), max(row.null_high for row in known)
        return low, median(row.null for row in known), high


@dataclass(frozen=True)
class Cell:
    """One module type in one layer: its place in the map and the rows behind it."""

    row: int
    column: int
    members: Rows

    @property
    def value(self) -> float:
        """Median of the defined values, NaN when none is."""
        return _median(member.value for member in self.members)

    @property
    def ratio(self) -> float:
        """Median of value over null."""
        return _median(member.ratio for member in self.members)


@dataclass(frozen=True)
class HeatMap:
    """One metric, module types by layers; `outside` are the matrices that belong to no layer."""

    metric: str
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    cells: tuple[Cell, ...]
    outside: Rows

    @cached_property
    def against_null(self) -> bool:
        """Whether cells are read as a ratio to their null: updates whose every value has one."""
        members = [member for cell in self.cells for member in cell.members if member.has_value]
        return bool(members) and all(row.kind == "update" and row.ratio > 0 for row in members)


def read_measurement(folder: Path) -> Measurement:
    """Read what ``stablerank measure --out`` wrote.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    try:
        meta = json.loads((folder / "measure.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "rows.parquet")
        return Measurement(folder, {**meta}, measured_rows(table.to_pylist()))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{folder} does not hold a whole measurement ({error}): write it with `stablerank measure PATH --out OUT`."
        ) from error


def measured_rows(table: Iterable[Mapping[str, Any]]) -> tuple[MeasuredRow, ...]:
    """Rows of the table as records; a missing number is NaN, columns of no interest are left out.

    Raises:
        KeyError: a column is absent.
    """
    return tuple(MeasuredRow(**{name: _cell_value(name, row[name]) for name in COLUMNS}) for row in table)


def metrics(rows: Rows) -> list[str]:
    """The metrics of the rows in order of appearance, stable rank first where it was measured."""
    found = list(dict.fromkeys(row.metric for row in rows))
    return sorted(found, key=lambda metric: metric != "stable_rank")


def title(metric: str) -> str:
    """The metric's name for people."""
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ").capitalize()


def meaning(metric: str) -> str:
    """One sentence about the metric; empty for a metric of a later version."""
    return METRICS[metric][1] if metric in METRICS else ""


def groups(rows: Rows, metric: str) -> list[Group]:
    """One group a module type, in order of appearance; matrices outside the layers last."""
    found: dict[str, list[MeasuredRow]] = {}
    for row in sorted((row for row in rows if row.metric == metric), key=lambda row: row.layer is None):
        found.setdefault(module_type(row.module), []).append(row)
    return [Group(module, tuple(members)) for module, members in found.items()]


def outliers(rows: Rows, metric: str) -> list[tuple[MeasuredRow, float]]:
    """The matrices farthest, as a factor, from the median of their module type, with that factor; farthest first."""
    far = []
    for group in groups(rows, metric):
        centre = group.median
        for row in group.rows:
            if row.has_value and row.value > 0 and centre > 0:
                far.append((row, row.value / centre))
    far = [pair for pair in far if abs(math.log(pair[1])) >= math.log(LEAST_OUTLYING)]
    return sorted(far, key=lambda pair: -abs(math.log(pair[1])))[:MOST_OUTLIERS]


def heat_map(rows: Rows, metric: str) -> HeatMap:
    """Module types by layers for one metric; cells in reading order."""
    inside = [(row.layer, row) for row in rows if row.metric == metric and row.layer is not None]
    modules = {name: place for place, name in enumerate(dict.fromkeys(module_type(row.module) for _, row in inside))}
    layers = {layer: place for place, layer in enumerate(sorted({layer for layer, _ in inside}))}
    members: dict[tuple[int, int], list[MeasuredRow]] = {}
    for layer, row in inside:
        members.setdefault((modules[module_type(row.module)], layers[layer]), []).append(row)
    return HeatMap(
        metric,
        tuple(modules),
        tuple(layers),
        tuple(Cell(*place, tuple(found)) for place, found in sorted(members.items())),
        tuple(row for row in rows if row.metric == metric and row.layer is None),
    )


def by_rule(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that share rule and caveat side by side, in order, so that both are told once."""
    together: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.rule, finding.caveat), []).append(finding)
    return list(together.values())


def headline(rows: Rows, meta: Mapping[str, Any]) -> str:
    """One line for somebody who reads nothing else."""
    metric = next(iter(metrics(rows)), "stable_rank")
    known = [row for row in rows if row.metric == metric and row.has_value]
    what = "updates" if meta.get("kind") == "update" else "weights"
    if not known:
        return f"No {what} could be measured"
    found = (
        f"Median {title(metric).lower()} of {len(known):,} {what}: {three_digits(median(row.value for row in known))}"
    )
    share = _median(row.ratio for row in known)
    return found if what == "weights" or math.isnan(share) else f"{found}, {three_digits(share)} times its null"


def subject(meta: Mapping[str, Any]) -> str:
    """What was measured: a path, and what it was compared with."""
    base = f" against {meta['against']}" if meta.get("against") else ""
    return f"{'adapter ' if meta.get('adapter') else ''}{meta.get('path', words.MISSING)}{base}"


def facts(meta: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """``(name, value, remark)`` of what was read, how fast and how surely."""
    read, seconds = float(meta.get("bytes", math.nan)), float(meta.get("seconds", math.nan))
    rate = f"{size(read / seconds)} a second" if seconds > 0 and math.isfinite(read) else words.MISSING
    return [
        ("Matrices", f"{int(meta.get('matrices', 0)):,}", f"{sum(skipped(meta).values()):,} tensors skipped"),
        ("Read", size(read), "from the stored tensors"),
        ("Time", words.duration(seconds), rate),
        ("Tolerance", f"{float(meta.get('rtol', math.nan)):g}", "relative width of a bound (rtol)"),
        ("Miss rate", f"{float(meta.get('delta', math.nan)):g}", "chance that a certified bound misses (delta)"),
    ]


def problems(meta: Mapping[str, Any]) -> list[str]:
    """One line a problem: where, and what is wrong."""
    return [": ".join(str(part[key]) for key in ("file", "tensor", "reason") if part.get(key)) for part in _parts(meta)]


def notes(meta: Mapping[str, Any]) -> list[str]:
    """Sentences about the input that a reader of the numbers needs."""
    return [str(note) for note in meta.get("notes") or []]


def skipped(meta: Mapping[str, Any]) -> dict[str, int]:
    """How many tensors were passed over, by reason."""
    return {str(reason): int(count) for reason, count in dict(meta.get("skipped") or {}).items()}


def unmatched(meta: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Names that only one of two checkpoints has, with a heading; none where the two agree."""
    sides = ("missing", "Only in the base"), ("extra", "Only in the measured checkpoint")
    return [(heading, [str(name) for name in meta[key]]) for key, heading in sides if meta.get(key)]


def number(value: float) -> str:
    """Four significant digits, whole numbers whole; as a power of ten above 100,000 and below 0.0001."""
    if not math.isfinite(value):
        return words.MISSING if math.isnan(value) else "∞"
    whole = abs(value) < 1e5 and (abs(value) >= 1000 or value.is_integer())
    return f"{value:.0f}" if whole else f"{value:#.4g}"


def optional(value: float) -> str:
    """Three digits, or a dash where there is no number to be expected."""
    return "-" if math.isnan(value) else three_digits(value)


def bounded(row: MeasuredRow) -> str:
    """``13.42 ±0.007``: the bound rounded up, absent where it could change no digit; ``~3.21`` without one.

    ``≥1.2e+05`` where there is no upper bound, the status where there is no number.
    """
    if math.isnan(row.value):
        return status(row)
    if math.isinf(row.upper):
        return f"≥{number(row.lower)}"
    shown = f"{'~' if row.status == 'estimated' else ''}{number(row.value)}"
    half = max(row.upper - row.value, row.value - row.lower)
    return f"{shown} ±{_rounded_up(half)}" if half > _last_digit(row.value) / 2 else shown


def status(row: MeasuredRow) -> str:
    """The status in words."""
    if row.status == "zero":
        return "unchanged" if row.kind == "update" else "all zero"
    return row.status.replace("_", " ")


def null(row: MeasuredRow) -> str:
    """``5.32 (5.01 to 5.6)``; a dash without a null."""
    return null_range(row.null_low, row.null, row.null_high)


def measured(group: Group) -> str:
    """How many matrices have a value: ``30``, or ``28 of 30``."""
    return str(len(group.rows)) if len(group.values) == len(group.rows) else f"{len(group.values)} of {len(group.rows)}"


def spread(group: Group) -> str:
    """``13.4 [9.81 .. 17.2]``: the median and the range over the group; a dash without a value."""
    if not group.values:
        return "-"
    return f"{number(group.median)} [{number(min(group.values))} .. {number(max(group.values))}]"


def null_range(low: float, middle: float, high: float) -> str:
    """The median of a null and its central 95 %; a dash without one."""
    return f"{three_digits(middle)} ({three_digits(low)} to {three_digits(high)})" if math.isfinite(middle) else "-"


def exactly(row: MeasuredRow) -> str:
    """Everything known about one number, on one line."""
    shape = f"{row.name}, {row.rows} × {row.columns} {row.dtype}"
    if math.isnan(row.value):
        return f"{shape}: {status(row)}"
    bound = f", bound {row.lower:.6g} to {row.upper:.6g}" if math.isfinite(row.lower) else ", no bound"
    floor = f", null {null(row)}" if math.isfinite(row.null) else ""
    return f"{shape}: {row.value:.6g}{bound}{floor}, {status(row)}"


def size(count: float) -> str:
    """Bytes in decimal units: ``269 MB``."""
    if not math.isfinite(count):
        return words.MISSING
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return words.memory(count * 1e9)


def _last_digit(value: float) -> float:
    """The place value of the fourth significant digit."""
    return 10.0 ** (math.floor(math.log10(abs(value))) - 3) if value else 0.0


def _rounded_up(half: float) -> str:
    """One significant digit, never less than the bound."""
    unit = 10.0 ** math.floor(math.log10(half))
    return f"{math.ceil(half / unit - 1e-9) * unit:.1g}"


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else math.nan


def _parts(meta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(meta.get("problems") or [])


def _cell_value(name: str, value: Any) -> Any:
    return math.nan if value is None and name in NUMBERS else value


COLUMNS = tuple(field.name for field in fields(MeasuredRow))
NUMBERS = {field.name for field in fields(MeasuredRow) if field.type is float}
