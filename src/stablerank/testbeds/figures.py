"""Figures of the testbeds: lines on logarithmic axes, as files.

Left out on purpose: pyplot, whose global state would meddle with a notebook's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

Line = tuple[Sequence[float], Sequence[float]]


def save_panels(panels: Mapping[str, Mapping[str, Line]], x_label: str, path: Path, *, log_y: bool = False) -> None:
    """One panel a title, in each the named lines ``(x, y)``, x logarithmic; the kind of file is the path's suffix."""
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name)
        axes.set(title=title, xlabel=x_label, xscale="log", yscale="log" if log_y else "linear")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110, metadata={})
