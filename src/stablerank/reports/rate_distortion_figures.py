"""Cost over bytes, error over bits, and stable rank over bits between its bounds: a line a method.

``results`` is what ``rate_distortion.json`` holds. Bounds are drawn where both are finite, of the first method.

Legend: P points of a method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from stablerank.reports.svg import FIRST, MUTED, NULL, SECOND, Picture, house_style, render

MARKS: Sequence[tuple[str, str]] = ((FIRST, "o"), (SECOND, "s"), (NULL, "^"), (MUTED, "D"))
"""Colour and marker by place of the method."""

Results = Mapping[str, Any]
Points = Sequence[Mapping[str, Any]]


def pictures(results: Results) -> list[Picture]:
    """Every picture that the results can fill."""
    drawn = [("error", "Error of an update over bits", _errors), ("rank", "Stable rank of an update over bits", _ranks)]
    if results["texts"]:
        drawn.insert(0, ("cost", "Cost over bytes", _costs))
    return [_picture(f"rate-{name}", title, draw, results) for name, title, draw in drawn]


def _picture(name: str, title: str, draw: Any, results: Results) -> Picture:
    alt = f"{title}, one line a method; the table has the numbers"
    with house_style(name):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.subplots()
        draw(axes, results)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, borderaxespad=0.2)
        svg = render(figure, name, alt)
    return Picture(name, title, "", alt, svg)


def _costs(axes: Axes, results: Results) -> None:
    axes.axhspan(-results["tolerance"], results["tolerance"], color=NULL, alpha=0.15, linewidth=0, label="tolerance")
    for method, (colour, marker), own in _lines(results):
        bytes_P = [point["bytes"] for point in own]
        cost_P = [point["cost"]["value"] for point in own]
        below_P = [max(0.0, point["cost"]["value"] - point["cost"]["low"]) for point in own]
        above_P = [max(0.0, point["cost"]["high"] - point["cost"]["value"]) for point in own]
        axes.errorbar(
            bytes_P, cost_P, [below_P, above_P], color=colour, marker=marker, markersize=4, elinewidth=1, label=method
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("symlog", linthresh=max(results["tolerance"], 1e-4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("bytes of the file")
    axes.set_ylabel("nats a token")


def _errors(axes: Axes, results: Results) -> None:
    for method, (colour, marker), own in _lines(results, full=False):
        values_P = [point["lost"]["median_error"] for point in own]
        axes.plot(_bits(own), values_P, color=colour, marker=marker, markersize=4, label=method)
    _dress(axes)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def _ranks(axes: Axes, results: Results) -> None:
    lines = list(_lines(results, full=False))
    bounded = [point for point in lines[0][2] if point["upper"] is not None]
    low_P, high_P = ([point[side] for point in bounded] for side in ("lower", "upper"))
    axes.fill_between(_bits(bounded), low_P, high_P, color=lines[0][1][0], alpha=0.15, linewidth=0, label="bounds")
    for method, (colour, marker), own in lines:
        values_P = [point["lost"]["stable_rank_after"] for point in own]
        axes.plot(_bits(own), values_P, color=colour, marker=marker, markersize=4, label=method)
    before = results["points"][0]["lost"]["stable_rank_before"]
    if before is not None:
        axes.axhline(before, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    _dress(axes)


def _dress(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("bits a value")


def _lines(results: Results, *, full: bool = True) -> list[tuple[str, tuple[str, str], Points]]:
    """Method, its mark, its points by bytes; fp16 has one point and no bits to compare."""
    points = sorted(results["points"], key=lambda point: point["bytes"])
    methods = dict.fromkeys(point["method"] for point in points if full or point["method"] != "fp16")
    order = sorted(methods, key=lambda method: (method == "fp16", method != "kmeans", method))
    return [
        (method, MARKS[place % len(MARKS)], [point for point in points if point["method"] == method])
        for place, method in enumerate(order)
    ]


def _bits(own: Points) -> list[int]:
    return [point["bits"] for point in own]
