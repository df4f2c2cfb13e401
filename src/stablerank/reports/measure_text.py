"""A measurement as plain text for the terminal: a line a module type, the outliers, the findings, the problems.

Contract: no escape codes, no colour, at most 100 columns; names from the files lose every control character.

Left out on purpose: paging and colour. Every metric of every matrix is in ``rows.csv``.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stablerank.diagnoses import diagnose
from stablerank.reports import measure, words
from stablerank.reports.measure import MeasuredRow, Rows

WIDTH = 100
METRICS_A_TABLE = 5
"""Further metrics side by side; more would not fit the width."""
MOST_PROBLEMS = 10
MOST_NAMES = 4


def text(rows: Iterable[MeasuredRow], meta: Mapping[str, Any], *, all_matrices: bool = False) -> str:
    """The measurement as text; with ``all_matrices`` a line a matrix instead of a line a module type."""
    rows = tuple(rows)
    first, others = measure.metrics(rows)[:1], measure.metrics(rows)[1:]
    blocks = [_opening(rows, meta)]
    for metric in first:
        blocks += [_every_matrix(rows, metric)] if all_matrices else [_modules(rows, metric), _outliers(rows, metric)]
    blocks += [_medians(rows, others[at : at + METRICS_A_TABLE]) for at in range(0, len(others), METRICS_A_TABLE)]
    blocks += [*_findings(rows), _problems(meta), _passed_over(meta)]
    return "\n\n".join(block for block in blocks if block)


def _opening(rows: Rows, meta: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{name.lower()} {value}" for name, value, _ in measure.facts(meta))
    sentences = measure.subject(meta), f"{measure.headline(rows, meta)}.", facts, *measure.notes(meta)
    return "\n".join(map(_wrapped, sentences))


def _modules(rows: Rows, metric: str) -> str:
    name = measure.title(metric)
    table = _table(f"{name} by module type", "module", "matrices", "median [range]", "null", "over null")
    for group in measure.groups(rows, metric):
        null = measure.null_range(*group.null)
        cells = measure.measured(group), measure.spread(group), null, measure.optional(group.ratio)
        table.add_row(_plain(group.module), *cells)
    return _rendered(table)


def _outliers(rows: Rows, metric: str) -> str:
    far = measure.outliers(rows, metric)
    if not far:
        return ""
    table = _table("Farthest from the median of their module type", "matrix", "value", "over median", "null")
    for row, factor in far:
        table.add_row(_plain(row.name), measure.bounded(row), measure.optional(factor), measure.null(row))
    return _rendered(table)


def _every_matrix(rows: Rows, metric: str) -> str:
    name = measure.title(metric).lower()
    table = _table(f"Every matrix: {name}", "layer", "module", "shape", name, "null", "status")
    for row in rows:
        if row.metric == metric:
            layer, shape = "-" if row.layer is None else str(row.layer), f"{row.rows}x{row.columns}"
            value, null = measure.bounded(row), measure.null(row)
            table.add_row(layer, _plain(row.module), shape, value, null, measure.status(row))
    return _rendered(table)


def _medians(rows: Rows, metrics: Sequence[str]) -> str:
    table = _table("Medians of the other metrics", "module", *(measure.title(metric).lower() for metric in metrics))
    columns = [{group.module: group.median for group in measure.groups(rows, metric)} for metric in metrics]
    for module in dict.fromkeys(module for column in columns for module in column):
        table.add_row(_plain(module), *(measure.optional(column.get(module, math.nan)) for column in columns))
    return _rendered(table)


def _findings(rows: Rows) -> list[str]:
    return [
        "\n".join(
            [
                *(_wrapped(finding.sentence, "* ") for finding in together),
                _wrapped(f"Rule: {together[0].rule}", "  "),
                _wrapped(f"But: {together[0].caveat}", "  "),
            ]
        )
        for together in measure.by_rule(diagnose(rows))
    ]


def _problems(meta: Mapping[str, Any]) -> str:
    found = measure.problems(meta)
    if not found:
        return ""
    lines = [f"{len(found):,} problem{'s' * (len(found) > 1)}; the rest was measured:"]
    lines += [_wrapped(problem, "! ") for problem in found[:MOST_PROBLEMS]]
    return "\n".join(lines + [f"and {len(found) - MOST_PROBLEMS:,} more"] * (len(found) > MOST_PROBLEMS))


def _passed_over(meta: Mapping[str, Any]) -> str:
    lines = [_wrapped(f"Skipped: {count:,} ({reason})") for reason, count in measure.skipped(meta).items()]
    for heading, names in measure.unmatched(meta):
        shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
        lines.append(_wrapped(f"{heading}: {len(names):,} ({shown})"))
    return "\n".join(lines)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        is_name = column in ("module", "matrix", "status")
        table.add_column(Text(column), justify="left" if is_name or not place else "right", overflow="fold")
    return table


def _rendered(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _plain(name: str) -> Text:
    """A name from a file: no control characters, and no markup for rich to read."""
    return Text(words.plain(name))


def _wrapped(sentence: str, lead: str = "") -> str:
    # A path is there to be copied: it is never broken, however long.
    wrapper = textwrap.TextWrapper(WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return "\n".join(wrapper.wrap(words.plain(sentence)))
