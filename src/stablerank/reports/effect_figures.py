"""The stable rank of what training changed in every layer's output, layer by layer over steps."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stablerank.reports.geometry import Grid, Reading
from stablerank.reports.geometry_figures import mark_best
from stablerank.reports.svg import ROUND, Picture, house_style, render

NAMED = 6
"""Layers in the legend at most; the colour says where the others lie between them."""


def effect_curves(grid: Grid, overall: Reading, best: int | None) -> Picture:
    """A line a layer, from dark (first) to light (last); ``best`` marks the step of the lowest held-out loss."""
    layers = grid.layer_L.size
    named = {int(at) for at in np.linspace(0, layers - 1, min(layers, NAMED)).round()}
    alt = (
        f"Stable rank of the change of {layers} layers' outputs over optimiser steps: mean {overall.first:.2f} at the "
    )
    alt += f"first measurement, {overall.last:.2f} at the last. Random changes of the same shape: {overall.null:.2f}."
    with house_style("effects"):
        figure = Figure(figsize=(9.4, 3.5), layout="constrained")
        axes = figure.subplots()
        for at, value_S in enumerate(grid.value_LS):
            colour = colormaps["viridis"](0.9 * at / max(1, layers - 1))
            label = f"layer {grid.layer_names[at]}" if at in named else None
            axes.plot(grid.step_S, value_S, color=colour, linewidth=1.6, label=label)
        mark_best(axes, best)
        axes.set_ylim(bottom=1)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("stable rank (directions)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=ROUND, integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=NAMED + 1, borderaxespad=0.2)
        svg = render(figure, "effects", alt)
    return Picture(
        "effects",
        "Change of every layer's output",
        f"random changes of the same shape have {overall.null:.2f}",
        alt,
        svg,
    )
