"""Accuracy against N: one small panel a scorer, the same controls in each.

The scorer's line has its 95 % band; the controls have none, since the differences to them are paired and stand in the
table. ``results`` is what ``evaluation.json`` of a best-of-n folder holds.

Legend: R lines of one chooser, one an N.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from stablerank.reports import words
from stablerank.reports.svg import FIRST, NULL, SECOND, Picture, house_style, render

CONTROLS: Mapping[str, tuple[str, Any]] = {
    "oracle": (NULL, (0, (1, 1.5))),
    "majority": (SECOND, "-"),
    "random": (NULL, "-"),
    "shortest": (SECOND, (0, (4, 2))),
    "longest": (SECOND, (0, (1, 1.5))),
}
"""Colour and dashes of the controls that are drawn; the table has the others too."""

Lines = Sequence[Mapping[str, Any]]


def panels(results: Mapping[str, Any]) -> list[Picture]:
    """One picture a scorer; without headroom, one of the controls alone."""
    rows = results["lines"]
    scorers = list(dict.fromkeys(row["chooser"] for row in rows if row["kind"] == "scorer"))
    return [_panel(f"bestofn-{place}", scorer, rows) for place, scorer in enumerate(scorers or [None])]


def _panel(name: str, scorer: str | None, rows: Lines) -> Picture:
    own = _of(rows, "scorer", scorer)
    last = own[-1] if own else None
    alt = "Accuracy of the picked answer against N"
    if last is not None:
        alt += f": {words.plain(str(scorer))} at N = {last['n']} {words.percent(last['accuracy']['value'])}"
    with house_style(name):
        figure = Figure(figsize=(3.1, 2.4), layout="constrained")
        axes = figure.subplots()
        for control, (colour, dashes) in CONTROLS.items():
            _draw(axes, _of(rows, "control", control), colour, dashes, control)
        if own:
            low_R, high_R = ([row["accuracy"][bound] for row in own] for bound in ("low", "high"))
            axes.fill_between([row["n"] for row in own], low_R, high_R, color=FIRST, alpha=0.18, linewidth=0)
            _draw(axes, own, FIRST, "-", "this scorer")
        _dress(axes, sorted({row["n"] for row in rows}))
        svg = render(figure, name, alt)
    return Picture(name, "controls" if scorer is None else scorer, "", alt, svg)


def _draw(axes: Axes, own: Lines, colour: str, dashes: Any, label: str) -> None:
    values_R = [row["accuracy"]["value"] for row in own]
    axes.plot(
        [row["n"] for row in own], values_R, color=colour, linestyle=dashes, linewidth=1.4, marker="o",
        markersize=2.6, label=label,
    )  # fmt: skip


def _dress(axes: Axes, ns: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(ns)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("answers to choose from (N)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=7, borderaxespad=0.2, handlelength=1.8)


def _of(rows: Lines, kind: str, chooser: str | None) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["kind"], row["chooser"]) == (kind, chooser)]
