"""The curves that a diagnosis is about, with a mark at the first step of each cause.

Legend: S steps, E held-out evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stablerank.dynamics.signals import signals_of_record
from stablerank.reports.diagnosis import Health
from stablerank.reports.figures import running_mean, smoothing_window
from stablerank.reports.read import Floats, number
from stablerank.reports.svg import FIRST, ROUND, SECOND, Picture, house_style, render
from stablerank.runs.record import RunRecord


@dataclass(frozen=True)
class Curve:
    """One signal over steps."""

    title: str
    unit: str
    step_S: Floats
    value_S: Floats
    is_share: bool = False


def marked_curves(health: Health) -> list[Picture]:
    """Held-out pass@1, reward, length and KL where they are on record, with the marks of what was found."""
    marks = [found.first_step for found in health.diagnoses.found if found.first_step is not None]
    steps = health.record.steps
    last = float(steps[-1]["step"]) if steps else 0.0
    return [_drawn(curve, marks, last) for curve in _curves(health.record) if curve.step_S.size]


def _curves(record: RunRecord) -> list[Curve]:
    signals = signals_of_record(record)
    rows = [row for row in record.evaluations if row.get("phase") == "curve"]
    held_out = np.array([[number(row.get(key)) for key in ("step", "pass_at_1")] for row in rows]).reshape(-1, 2)
    step_E, value_E = held_out[np.isfinite(held_out).all(1)].T
    curves = [Curve("Held-out pass@1", "share right", step_E, value_E, is_share=True)]
    for name, title, unit in (
        ("reward", "Reward", "mean of a step"),
        ("length", "Completion length", "tokens"),
        ("kl", "KL to the reference", "nats per token"),
    ):
        kept_S = np.isfinite(signals[name])
        curves.append(Curve(title, unit, signals.step_S[kept_S].astype(np.float64), signals[name][kept_S]))
    return curves


def _drawn(curve: Curve, marks: Sequence[int], last: float) -> Picture:
    name = "health-" + "".join(c if c.isalnum() else "-" for c in curve.title.lower())
    with house_style(name):
        figure = Figure(figsize=(2.45, 1.62), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(curve.unit)
        axes.set_xlim(0, 1.04 * max(last, float(curve.step_S.max())))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=ROUND))
        window = 1 if curve.is_share else smoothing_window(curve.step_S.size)
        if window > 1:
            axes.plot(curve.step_S, curve.value_S, color=FIRST, alpha=0.35, linewidth=0.9)
        marker = "o" if curve.step_S.size == 1 else ""
        axes.plot(curve.step_S, running_mean(curve.value_S, window), color=FIRST, marker=marker)
        for mark in marks:
            axes.axvline(mark, color=SECOND, linewidth=1.2, linestyle=(0, (3, 2)))
        if curve.is_share:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        alt = _spoken(curve, marks)
        return Picture(name, curve.title, "", alt, render(figure, name, alt))


def _spoken(curve: Curve, marks: Sequence[int]) -> str:
    ends = [f"{curve.value_S[at]:.3g} at step {curve.step_S[at]:.0f}" for at in (0, -1)]
    marked = "".join(f" Marked: step {mark}." for mark in marks)
    return f"{curve.title} over optimiser steps: {ends[0]}, {ends[1]}.{marked}"
