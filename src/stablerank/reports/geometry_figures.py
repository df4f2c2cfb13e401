"""Stable ranks over training: heat maps by module type, their shared colour bar, and the mean against the null.

Legend: S steps, L layers.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stablerank.reports.geometry import Curve, Grid, Reading
from stablerank.reports.read import Floats
from stablerank.reports.svg import FIRST, INK, MUTED, NULL, ROUND, Picture, house_style, render

CELL_DPI = 200
"""Cells are embedded as an image: a long run of a deep model has more cells than an SVG should have paths."""

MOST_MARKERS = 40
"""Above so many measurements the dots would touch, so the line goes without."""


def mean_against_null(curve: Curve, best: int | None = None) -> Picture:
    """Mean stable rank over all matrices, the middle four fifths of them, and the band of random updates.

    ``best`` marks the step of the lowest held-out loss.
    """
    alt = f"Mean stable rank over optimiser steps: {curve.mean_S[0]:.2f} at step {curve.step_S[0]:.0f}, "
    alt += f"{curve.mean_S[-1]:.2f} at step {curve.step_S[-1]:.0f}."
    alt += f" Random updates of the same structure: {curve.null_S[-1]:.2f}." if curve.has_null else " No null recorded."
    with house_style("mean-stable-rank"):
        figure = Figure(figsize=(5.0, 3.9), layout="constrained")
        axes = figure.subplots()
        if curve.has_null:
            axes.fill_between(
                curve.step_S, curve.null_low_S, curve.null_high_S, color=NULL, alpha=0.25, linewidth=0,
            )  # fmt: skip
            label = "random updates (null): median and 95 % range"
            axes.plot(curve.step_S, curve.null_S, color=NULL, linestyle=(0, (5, 3)), linewidth=1.6, label=label)
        axes.fill_between(curve.step_S, curve.low_S, curve.high_S, color=FIRST, alpha=0.18, linewidth=0)
        marker = "o" if curve.step_S.size <= MOST_MARKERS else ""
        label = "updates: mean and middle 80 % of matrices"
        axes.plot(curve.step_S, curve.mean_S, color=FIRST, marker=marker, markersize=4, label=label)
        mark_best(axes, best)
        axes.set_ylim(bottom=1)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("stable rank (directions)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND, integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        svg = render(figure, "mean-stable-rank", alt)
    return Picture("mean-stable-rank", "Mean over all matrices", "", alt, svg)


def mark_best(axes: Axes, best: int | None) -> None:
    """A dotted line at the step of the lowest held-out loss, where there is one."""
    if best is not None:
        axes.axvline(best, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label=f"best held-out loss: step {best}")


def heat_maps(grids: Sequence[Grid], readings: Sequence[Reading]) -> list[Picture]:
    """One panel a module type; all panels and `colour_bar` share one scale."""
    scale, null = shared_scale(grids), {reading.module: reading for reading in readings}
    return [_heat_map(place, grid, null.get(grid.module), scale) for place, grid in enumerate(grids)]


def colour_bar(grids: Sequence[Grid], overall: Reading) -> Picture:
    """The scale of every heat map, with the null marked on it or beside it."""
    scale = shared_scale(grids)
    alt = f"Colour scale of the heat maps: stable rank from {scale.vmin:.2f} to {scale.vmax:.2f}."
    with house_style("colour-bar"):
        figure = Figure(figsize=(5.6, 0.9))
        axes = figure.add_axes((0.02, 0.54, 0.95, 0.18))
        bar = figure.colorbar(ScalarMappable(scale, "viridis"), cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        axes.set_xlabel("stable rank of the update (directions)")
        axes.grid(visible=False)
        if overall.has_null:
            _mark_null(axes, overall.null, scale)
        svg = render(figure, "colour-bar", alt)
    return Picture("colour-bar", "Colour scale", "", alt, svg)


def shared_scale(grids: Sequence[Grid]) -> Normalize:
    """From the smallest to the largest stable rank of the run; at least half a direction wide."""
    value = np.concatenate([grid.value_LS.ravel() for grid in grids])
    low, high = float(np.nanmin(value)), float(np.nanmax(value))
    return Normalize(low, max(high, low + 0.5))


def edges(step_S: Floats) -> Floats:
    """Cell borders half way between measured steps; the outer cells are as wide as their neighbours' half."""
    if step_S.size == 1:
        return np.array([step_S[0] - 0.5, step_S[0] + 0.5])
    middle = (step_S[1:] + step_S[:-1]) / 2
    return np.concatenate([[2 * step_S[0] - middle[0]], middle, [2 * step_S[-1] - middle[-1]]])


def _heat_map(place: int, grid: Grid, null: Reading | None, scale: Normalize) -> Picture:
    name, layers = f"heat-map-{place}", grid.layer_L.size
    alt = f"Heat map of {grid.module}: stable rank by layer and step, {layers} layers, {grid.step_S.size} steps. "
    alt += f"Mean at the last step {null.last:.2f}." if null else "No stable rank is defined."
    with house_style(name):
        figure = Figure(figsize=(2.45, float(np.clip(0.65 + 0.17 * layers, 1.1, 3.2))), layout="constrained")
        axes = figure.subplots()
        border_S, border_L = edges(grid.step_S.astype(np.float64)), np.arange(layers + 1) - 0.5
        axes.pcolormesh(border_S, border_L, grid.value_LS, norm=scale, cmap="viridis", rasterized=True)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND, integer=True))
        shown = np.arange(0, layers, max(1, layers // 8))
        axes.set_yticks(shown, [grid.layer_names[layer] for layer in shown])
        figure.set_dpi(CELL_DPI)
        svg = render(figure, name, alt)
    caption = f"random updates: {null.null:.2f}" if null and null.has_null else "no null recorded"
    return Picture(name, grid.module, caption, alt, svg)


def _mark_null(axes: Axes, null: float, scale: Normalize) -> None:
    low, high = float(scale.vmin or 0), float(scale.vmax or 0)
    if low <= null <= high:
        axes.axvline(null, color=INK, linewidth=2)
        axes.annotate(
            f"random updates {null:.2f}", (null, 1), (0, 3), textcoords="offset points", ha="center", va="bottom"
        )
        return
    outside, text = (
        ((1, 1), f"random updates {null:.2f} →") if null > high else ((0, 1), f"← random updates {null:.2f}")
    )
    axes.annotate(
        text, outside, (0, 3), xycoords="axes fraction", textcoords="offset points", color=MUTED,
        ha="right" if null > high else "left", va="bottom",
    )  # fmt: skip
