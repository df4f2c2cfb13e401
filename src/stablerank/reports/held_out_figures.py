"""What else is read beside the held-out loss: margin and accuracy of pairs, KL, and the loss of other texts.

Legend: E evaluations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stablerank.reports.losses import Loss, LossEvaluation, nats
from stablerank.reports.svg import FIRST, NULL, ROUND, Picture, house_style, render


@dataclass(frozen=True)
class Panel:
    """One small multiple: a column of ``evaluations.jsonl``."""

    column: str
    title: str
    unit: str


PANELS = (
    Panel("margin", "Margin", "nats a pair"),
    Panel("accuracy", "Preferred answers ranked first", "share of pairs"),
    Panel("kl", "KL from the untouched model", "nats a token"),
    Panel("loss_forgetting", "Loss of other texts", "nats a token"),
)


def held_out_panels(evaluations: Sequence[LossEvaluation]) -> Picture | None:
    """A panel a column that the curve has; None where it has none."""
    curve = [e for e in evaluations if e.phase == "curve"]
    shown = [panel for panel in PANELS if any(panel.column in e.others for e in curve)]
    if not shown:
        return None
    alt = " ".join(_spoken(panel, curve) for panel in shown)
    with house_style("held-out"):
        figure = Figure(figsize=(9.4, 2.6), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _panel(axes, panel, curve)
        svg = render(figure, "held-out", alt)
    return Picture("held-out", "Beside the loss", "", alt, svg)


def _panel(axes: Axes, panel: Panel, curve: Sequence[LossEvaluation]) -> None:
    for column, colour, label in ((panel.column, FIRST, "held out"), (f"{panel.column}_train", NULL, "training")):
        found = _series(column, curve)
        if found:
            axes.plot([*found], [loss.value for loss in found.values()], color=colour, linewidth=1.6, label=label)
            low_E, high_E = [loss.low for loss in found.values()], [loss.high for loss in found.values()]
            axes.fill_between([*found], low_E, high_E, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=ROUND, integer=True))
    if len(axes.lines) > 1:
        axes.legend(loc="best")


def _series(column: str, curve: Sequence[LossEvaluation]) -> Mapping[int, Loss]:
    return {e.step: e.others[column] for e in curve if column in e.others}


def _spoken(panel: Panel, curve: Sequence[LossEvaluation]) -> str:
    found = _series(panel.column, curve)
    first, last = next(iter(found)), [*found][-1]
    return (
        f"{panel.title}, {panel.unit}: {nats(found[first].value)} at step {first}, {nats(found[last].value)} at {last}."
    )
