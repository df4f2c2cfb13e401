"""Matplotlib figure to inline SVG that follows the page: its fonts, its light and dark colours, its width.

A figure is drawn with stand-in colours, one hex code a role; the finished SVG gets ``var(--role)`` in their place, so
one drawing serves both colour schemes. Ids carry the figure's name, because a page holds many figures. Byte for byte
repeatable: fixed hash salt, no date, no metadata, Matplotlib's defaults whatever the user's matplotlibrc says.

Left out on purpose: pyplot, whose global state would outlive the call.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.style
from markupsafe import Markup, escape
from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE = "#00000a", "#00000b", "#00000c", "#00000d"
FIRST, SECOND, NULL = "#00000e", "#00000f", "#000010"

ROUND = (1, 2, 5, 10)
"""Axis ticks step by these, times a power of ten."""

ROLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SURFACE: "surface",
    FIRST: "first",
    SECOND: "second",
    NULL: "null",
}
"""Stand-in colour to the name of the page's CSS variable."""

STYLE = {
    "svg.fonttype": "none",  # real text: the page's font, selectable, small
    "text.parse_math": False,  # a module may be called anything, ``$`` included
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "image.cmap": "viridis",
}


@dataclass(frozen=True)
class Picture:
    """One finished figure: the drawing, its title and caption, and what it shows for somebody who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    svg: Markup


@contextmanager
def house_style(name: str) -> Iterator[None]:
    """Draw and render figure ``name`` inside this; Matplotlib's settings are as before afterwards."""
    with matplotlib.style.context(["default", STYLE, {"svg.hashsalt": name}], after_reset=True):
        yield


def render(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as one ``<svg>`` element that is as wide as its parent."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style type.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", drawing)
    for stand_in, role in ROLES.items():
        drawing = drawing.replace(stand_in, f"var(--{role})")
    drawing = re.sub(r'(<svg\b.*?) width="[^"]*" height="[^"]*"', r"\g<1>", drawing, count=1)
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))
