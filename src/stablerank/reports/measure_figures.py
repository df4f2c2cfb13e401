"""Drawings of a measurement: heat maps of module types by layers on one colour scale, and one strip a module type.

A heat map is plain geometry that the template writes as inline SVG, because every cell carries its own words; colours
are classes, so that one drawing serves the light and the dark page. Updates are drawn as the ratio to their null on a
diverging scale centred on 1, everything else by value.

Left out on purpose: clipping the scale. An outlier is what the map is for; a logarithmic scale leaves the rest visible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from stablerank.diagnoses import three_digits
from stablerank.reports import measure, words
from stablerank.reports.measure import Cell, Group, HeatMap, Rows
from stablerank.reports.svg import FIRST, NULL, ROUND, Picture, house_style, render

LEVELS = 25
"""Colours of a scale: an odd number, so that a diverging scale has a middle."""
RATIOS = (
    ("#8f3500", "#c4500c", "#ef9a5f", "#eff0f1", "#6cb0e6", "#0a68b4", "#06437a"),
    ("#ffb98c", "#ff9d57", "#a9582a", "#33383f", "#2f6b9c", "#5cb1f5", "#a9d6ff"),
)
"""Below, at and above the null, in the page's own orange and blue: on the light page, and on the dark one."""
LEAST_SPAN = 1.5
"""A scale reaches at least this factor (from 1 for ratios), so that noise is not painted as contrast."""
LOG_FROM = 4.0
"""Positive values that span this factor are drawn on a logarithmic scale; stable ranks always."""

MAP_WIDTH, ROW_HEIGHT, TOP = 1010, 30, 8
CELL_WIDTHS = (12, 78)
WIDEST_LABEL = 34
LETTER = 7.3
"""Upper estimate of the width of a letter in a row's label, in pixels."""
ROOM_FOR_TEXT = 46
"""Cells at least this wide show their number."""
ROOM_FOR_LAYER = 22

MOST_STRIPS = 24
LEGIBLE = 0.18
"""Relative luminance that separates dark from light backgrounds for white and black text."""


@dataclass(frozen=True)
class Scale:
    """Values to one of `LEVELS` colours."""

    low: float
    high: float
    is_log: bool
    palette: Literal["v", "d"]

    def position(self, value: float) -> float:
        """0 at the low end, 1 at the high end; a zero lies at the low end of a logarithmic scale."""
        at = max(value, self.low)
        low, high, at = map(math.log, (self.low, self.high, at)) if self.is_log else (self.low, self.high, at)
        return (at - low) / (high - low)

    def colour(self, value: float) -> str:
        """CSS class of the value's colour; ``none`` where there is no value."""
        if not math.isfinite(value):
            return "none"
        return f"{self.palette}{min(LEVELS - 1, max(0, int(self.position(value) * LEVELS)))}"

    def ticks(self) -> list[tuple[float, str]]:
        """``(position, label)`` of a few round numbers on the scale."""
        round_numbers = LogLocator(subs=(1, 2, 5), numticks=20).tick_values(self.low, self.high) if self.is_log else ()
        shown = [value for value in round_numbers if self.low <= value <= self.high]
        if len(shown) < 3:
            found = MaxNLocator(nbins=5, steps=ROUND).tick_values(self.low, self.high)
            shown = [value for value in found if self.low <= value <= self.high]
        return [(self.position(value), f"{value:.6g}") for value in shown]


@dataclass(frozen=True)
class Box:
    """One cell as drawn: its corner in pixels, its colour, its number, and everything known about it."""

    x: float
    y: float
    colour: str
    number: str
    words: str


@dataclass(frozen=True)
class Drawing:
    """A heat map ready for the template; lengths in pixels."""

    width: float
    height: float
    cell_width: float
    cell_height: float
    boxes: Sequence[Box]
    modules: Sequence[tuple[float, float, str, str]]
    """``(x, y, label, whole name)``; x is the label's right end."""
    layers: Sequence[tuple[float, float, int]]
    """``(x, y, layer)``; x is the middle of the column."""
    scale: Scale
    has_numbers: bool


def draw(heat_map: HeatMap) -> Drawing | None:
    """Geometry and colours of a heat map; None where no cell has a value."""
    scale = scale_of(heat_map)
    if scale is None:
        return None
    labels = [_clipped(words.plain(module)) for module in heat_map.modules]
    left = 14 + LETTER * max(len(label) for label in labels)
    width = float(np.clip((MAP_WIDTH - left) // len(heat_map.layers), *CELL_WIDTHS))
    bottom = TOP + ROW_HEIGHT * len(labels)
    every = math.ceil(ROOM_FOR_LAYER / width)
    return Drawing(
        width=left + width * len(heat_map.layers) + 8,
        height=bottom + 26,
        cell_width=width - 2,
        cell_height=ROW_HEIGHT - 2,
        boxes=[_box(cell, heat_map, scale, left + cell.column * width) for cell in heat_map.cells],
        modules=[
            (left - 10, TOP + ROW_HEIGHT * (place + 0.5), label, words.plain(heat_map.modules[place]))
            for place, label in enumerate(labels)
        ],
        layers=[
            (left + width * (column + 0.5) - 1, bottom + 16, layer)
            for column, layer in enumerate(heat_map.layers)
            if column % every == 0
        ],
        scale=scale,
        has_numbers=width >= ROOM_FOR_TEXT,
    )


def scale_of(heat_map: HeatMap) -> Scale | None:
    """The colour scale that fits every cell; None without a value."""
    values = [value for cell in heat_map.cells if math.isfinite(value := _shown(cell, heat_map))]
    if not values:
        return None
    low, high = min(values), max(values)
    if heat_map.against_null:
        reach = max(high, 1 / low, LEAST_SPAN)
        return Scale(1 / reach, reach, True, "d")
    least = min((value for value in values if value > 0), default=math.inf)
    if low >= 0 and (heat_map.metric == "stable_rank" or high >= LOG_FROM * least):
        return Scale(least, max(high, LEAST_SPAN * least), True, "v")
    return Scale(low, high if high > low else low + max(1.0, abs(low)), False, "v")


def palette_css() -> str:
    """A class a level and palette: fill, background, and a legible colour for the number drawn over it."""
    light, dark = ("".join(map(_level_css, _levels(page))) for page in (0, 1))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{{dark}}}"


def strips(rows: Rows, metric: str) -> list[Picture]:
    """One small figure a module type with at least two layers: the metric over depth, and the null's band."""
    found = [group for group in measure.groups(rows, metric) if len({row.layer for row in _in_layers(group)}) > 1]
    return [_strip(place, group, metric) for place, group in enumerate(found[:MOST_STRIPS])]


def _box(cell: Cell, heat_map: HeatMap, scale: Scale, x: float) -> Box:
    value = _shown(cell, heat_map)
    return Box(
        x=x,
        y=TOP + ROW_HEIGHT * cell.row,
        colour=scale.colour(value),
        number=three_digits(value) if math.isfinite(value) else "",
        words=_told(cell, heat_map),
    )


def _told(cell: Cell, heat_map: HeatMap) -> str:
    ratio = (
        f", {three_digits(cell.ratio)} times its null" if heat_map.against_null and math.isfinite(cell.ratio) else ""
    )
    if len(cell.members) == 1:
        return words.plain(measure.exactly(cell.members[0])) + ratio
    group = Group(f"{heat_map.modules[cell.row]}, layer {heat_map.layers[cell.column]}", cell.members)
    null = measure.null_range(*group.null)
    told = f"{group.module}: {measure.measured(group)} matrices, median [range] {measure.spread(group)}, null {null}"
    return words.plain(told) + ratio


def _shown(cell: Cell, heat_map: HeatMap) -> float:
    return cell.ratio if heat_map.against_null else cell.value


def _clipped(label: str) -> str:
    """The end of a long label: module paths differ there."""
    return label if len(label) <= WIDEST_LABEL else f"…{label[1 - WIDEST_LABEL :]}"


def _levels(page: int) -> list[tuple[str, str]]:
    """``(class, colour)`` of every level of every palette on the light (0) or the dark (1) page."""
    maps = {"v": matplotlib.colormaps["viridis"], "d": LinearSegmentedColormap.from_list("ratios", RATIOS[page])}
    return [
        (f"{palette}{level}", to_hex(colours(level / (LEVELS - 1))))
        for palette, colours in maps.items()
        for level in range(LEVELS)
    ]


def _level_css(level: tuple[str, str]) -> str:
    name, colour = level
    ink = "#000" if _luminance(colour) > LEGIBLE else "#fff"
    return f".{name}{{fill:{colour};background:{colour}}}.{name}+text{{fill:{ink}}}"


def _luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _in_layers(group: Group) -> Rows:
    return [row for row in group.rows if row.layer is not None and row.has_value]


def _strip(place: int, group: Group, metric: str) -> Picture:
    name, rows = f"strip-{place}", sorted(_in_layers(group), key=lambda row: row.layer or 0)
    layer_R, value_R = [row.layer or 0 for row in rows], np.array([row.value for row in rows])
    null_R = np.array([(row.null_low, row.null_high) for row in rows])
    alt = f"{measure.title(metric)} of {words.plain(group.module)} over {len(set(layer_R))} layers: "
    alt += f"median [range] {measure.spread(group)}."
    with house_style(name):
        figure = Figure(figsize=(2.45, 1.62), layout="constrained")
        axes = figure.subplots()
        has_null = bool(np.isfinite(null_R).all())
        if has_null:
            axes.fill_between(layer_R, *null_R.T, color=NULL, alpha=0.35, linewidth=0)
        axes.plot(*_medians(group, sorted(set(layer_R))), color=FIRST, linewidth=1.4)
        axes.plot(layer_R, value_R, "o", color=FIRST, markersize=2.6)
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND, integer=True))
        _vertical(axes, np.concatenate([value_R, null_R.ravel()]) if has_null else value_R)
        svg = render(figure, name, alt)
    caption = f"random: {measure.null_range(*group.null)}" if math.isfinite(group.null[1]) else "no null"
    return Picture(name, group.module, caption, alt, svg)


def _medians(group: Group, layers: Sequence[int]) -> tuple[Sequence[int], list[float]]:
    return layers, [Group("", [row for row in group.rows if row.layer == layer]).median for layer in layers]


def _vertical(axes: Axes, shown: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> None:
    """Logarithmic where the values and their null span a wide range."""
    low, high = float(shown.min()), float(shown.max())
    if low > 0 and high >= LOG_FROM * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=ROUND))
