"""The page of a measurement: one HTML file that needs no network; its only script sorts the table.

Names, paths and messages come from files and are untrusted: they reach the page through the escaping of
``reports/html.py``, and the Content-Security-Policy allows the one script by its hash and no request at all. Without
scripts everything but sorting works; the metric is chosen by radio buttons and CSS. The same folder gives the same
bytes.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from stablerank.diagnoses import diagnose
from stablerank.reports import html, measure, measure_figures, words
from stablerank.reports.measure import HeatMap, MeasuredRow, Measurement, Rows
from stablerank.reports.measure_figures import Drawing
from stablerank.runs.atomic import write_text

LONGEST_TABLE = 2000
"""Matrices that the page lists; a model of experts has more than a browser should lay out."""
MOST_NAMES = 50

SORT_SCRIPT = """
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const sign = head.ariaSort === "ascending" ? -1 : 1, body = head.closest("table").tBodies[0];
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = sign > 0 ? "ascending" : "descending";
    const key = row => row.cells[head.cellIndex].dataset.key ?? row.cells[head.cellIndex].textContent;
    const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en") : a - b;
    const missingLast = (a, b) => (a === "") - (b === "") || sign * compare(a, b);
    body.append(...[...body.rows].sort((a, b) => missingLast(key(a), key(b))));
  });
}
"""


@dataclass(frozen=True)
class Panel:
    """One metric: its heat map, drawn or not, and the matrices outside the layers."""

    metric: str
    heat_map: HeatMap
    drawing: Drawing | None


@dataclass(frozen=True)
class TableCell:
    """A number as shown, as sorted (empty for none), and in full."""

    shown: str
    key: str
    words: str


@dataclass(frozen=True)
class TableLine:
    """One matrix with a cell a metric; `row` is the first metric's."""

    row: MeasuredRow
    cells: Sequence[TableCell]


def write_measure_report(out_folder: Path) -> Path:
    """Write ``report.html`` from ``measure.json`` and ``rows.parquet`` and return its path.

    Raises:
        DataError: one of the two is missing or is not what it should be.
    """
    path = out_folder / "report.html"
    write_text(path, page(measure.read_measurement(out_folder)))
    return path


def page(measurement: Measurement) -> str:
    """The whole page as text."""
    rows, found = measurement.rows, measure.metrics(measurement.rows)
    matrices = by_matrix(rows)
    template = html.environment().get_template("measure.html.j2")
    return template.render(
        name=measurement.folder.resolve().name,
        meta=measurement.meta,
        rows=rows,
        measure=measure,
        words=words,
        findings=measure.by_rule(diagnose(rows)),
        panels=[_panel(rows, metric) for metric in found],
        strips=measure_figures.strips(rows, found[0]) if found else [],
        metrics=found,
        lines=[_line(matrix, found) for matrix in matrices[:LONGEST_TABLE]],
        matrices=len(matrices),
        most_names=MOST_NAMES,
        levels=measure_figures.LEVELS,
        palette=Markup(measure_figures.palette_css()),
        script=Markup(SORT_SCRIPT),
        script_hash=Markup(_policy_hash(SORT_SCRIPT)),
    )


def by_matrix(rows: Rows) -> list[dict[str, MeasuredRow]]:
    """The rows of each matrix by metric, matrices in order of appearance."""
    matrices: dict[tuple[str, str], dict[str, MeasuredRow]] = {}
    for row in rows:
        matrices.setdefault((row.name, row.module), {})[row.metric] = row
    return list(matrices.values())


def _line(found: Mapping[str, MeasuredRow], metrics: Sequence[str]) -> TableLine:
    cells = [_cell(found[metric]) if metric in found else TableCell("", "", "") for metric in metrics]
    return TableLine(next(found[metric] for metric in metrics if metric in found), cells)


def _cell(row: MeasuredRow) -> TableCell:
    key = "" if math.isnan(row.value) else repr(row.value).replace("inf", "Infinity")
    return TableCell(measure.bounded(row), key, words.plain(measure.exactly(row)))


def _panel(rows: Rows, metric: str) -> Panel:
    heat_map = measure.heat_map(rows, metric)
    return Panel(metric, heat_map, measure_figures.draw(heat_map))


def _policy_hash(script: str) -> str:
    """The source expression that lets a Content-Security-Policy admit this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
