"""A panel a kind of block: the nuclear rank of its gradient beside the stable rank of what it reads, over steps."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from stablerank.reports.blocks import BlockSides
from stablerank.reports.figures import chart_axes
from stablerank.reports.svg import FIRST, SECOND, Picture, house_style, render

MOST_MARKERS = 20


def block_panels(sides: Sequence[BlockSides]) -> list[Picture]:
    """All panels share one logarithmic axis, so that blocks compare."""
    if not sides:
        return []
    values = [value for each in sides for value in (*each.nuclear_S, *each.stable_S)]
    limits = min(values) / 1.25, max(values) * 1.25
    return [_panel(place, each, limits) for place, each in enumerate(sides)]


def _panel(place: int, sides: BlockSides, limits: tuple[float, float]) -> Picture:
    name = f"block-{place}"
    alt = (
        f"{sides.module} over optimiser steps: nuclear rank of the gradient {sides.nuclear_S[0]:.2f} at step "
        f"{sides.step_S[0]}, {sides.nuclear_S[-1]:.2f} at step {sides.step_S[-1]}; stable rank of the input "
        f"{sides.stable_S[0]:.2f} and {sides.stable_S[-1]:.2f}."
    )
    with house_style(name):
        figure = Figure(figsize=(2.45, 1.75), layout="constrained")
        axes = chart_axes(figure, "rank (directions)")
        size = 3 if len(sides.step_S) <= MOST_MARKERS else 0
        axes.plot(sides.step_S, sides.nuclear_S, color=FIRST, marker="o", markersize=size)
        axes.plot(sides.step_S, sides.stable_S, color=SECOND, marker="s", markersize=size, linestyle=(0, (4, 3)))
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        svg = render(figure, name, alt)
    return Picture(name, sides.module, _caption(sides.ratio_last), alt, svg)


def _caption(ratio: float) -> str:
    promised, step = (ratio, "spectral") if ratio >= 1 else (1 / ratio, "Euclidean")
    return f"at the last measurement a {step} step promises {promised:.2g} times as much"
