"""When a run with a held-out loss began to overfit, and what its spectra did at matched moments, before and after.

Contract: `Course` reads the rows of a run's ``evaluations.jsonl`` and ``geometry`` and nothing else. A *moment* is an
evaluated step; spectra are those of the last measurement at or before it, so give both the same rhythm. Moments that
runs of different objectives share:

- `at_loss`: the first at which the training loss has fallen to a share of what it was before training. CLM's nats a
  token and DPO's nats a pair have no common unit, but both are 1 before training on this scale and 0 once learned by
  heart;
- `at_norm`: the first at which the whole update's Frobenius norm has reached a size;
- `best`: where the held-out loss was lowest, and the end.

`overfits_since` is the one rule of what overfitting is: the last held-out interval lies wholly above the best point,
while the loss of training is lower at the last point than at that one.

A trend is Kendall's tau-b of a quantity with the step: -1 falls all the way, +1 rises, whatever the unit (Kendall
1938); None below `LEAST` moments. Anything that is not defined is None, never 0.

Left out on purpose: interpolation between moments; smoothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import kendalltau

Row = Mapping[str, Any]
Ranks = dict[str, float]
"""Stable rank by matrix, or by layer for effects; without those that are not defined."""

LEAST = 4
"""Moments of a trend."""


@dataclass(frozen=True)
class Moment:
    """An evaluated step of the curve."""

    step: int
    held_out: float
    held_out_low: float
    train: float


@dataclass(frozen=True)
class Course:
    """One run: its curve, and by step the stable ranks of updates and effects and the norm of the whole update."""

    train_before: float
    moments: tuple[Moment, ...]
    updates: Mapping[int, Ranks]
    effects: Mapping[int, Ranks]
    norms: Mapping[int, float]

    @classmethod
    def of(cls, evaluations: Iterable[Row], geometry: Iterable[Row]) -> "Course":
        """From the tables of a run that has a curve and an evaluation before training."""
        evaluations, geometry = list(evaluations), list(geometry)
        curve = sorted((row for row in evaluations if row["phase"] == "curve"), key=lambda row: int(row["step"]))
        return cls(
            next(row["loss_train"] for row in evaluations if row["phase"] == "before"),
            tuple(Moment(r["step"], r["loss"], r["loss_low"], r["loss_train"]) for r in curve),
            _ranks(geometry, "update"),
            _ranks(geometry, "effect"),
            _norms(geometry),
        )

    @property
    def best(self) -> Moment | None:
        """Of the lowest held-out loss, the first of equals."""
        return min(self.moments, key=lambda moment: moment.held_out, default=None)

    @property
    def overfits(self) -> bool | None:
        """By `overfits_since`; None without a curve."""
        return None if not self.moments else overfits_since(self.moments) is not None

    def at_loss(self, share: float) -> int | None:
        """The step of the first moment whose training loss is at most ``share`` of that before training."""
        return next((m.step for m in self.moments if m.train <= share * self.train_before), None)

    def at_norm(self, size: float) -> int | None:
        """The first measured step at which the update's Frobenius norm, all matrices together, is at least ``size``."""
        return next((step for step in sorted(self.norms) if self.norms[step] >= size), None)

    def norm_at(self, step: int) -> float | None:
        """The update's Frobenius norm at the last measurement at or before ``step``."""
        measured = [at for at in self.norms if at <= step]
        return self.norms[max(measured)] if measured else None

    def trend(self, ranks: Mapping[int, Ranks], *, first: int = 0, last: float = math.inf) -> dict[str, float | None]:
        """Kendall's tau with the step, by matrix, of the measurements from ``first`` to ``last``."""
        kept = {step: ranks[step] for step in sorted(ranks) if first <= step <= last}
        return {
            name: _tau([(step, here[name]) for step, here in kept.items() if name in here]) for name in _names(kept)
        }


def ranks_at(ranks: Mapping[int, Ranks], step: int | None) -> Ranks:
    """Those of the last measurement at or before ``step``; none where there is none."""
    measured = [at for at in ranks if step is not None and at <= step]
    return dict(ranks[max(measured)]) if measured else {}


def overfits_since(moments: Sequence[Moment]) -> int | None:
    """The best moment's step where the rule of the module header holds, else None."""
    if not moments:
        return None
    best, last = min(moments, key=lambda moment: moment.held_out), moments[-1]
    return best.step if last.held_out_low > best.held_out and last.train < best.train else None


def _tau(points: Sequence[tuple[int, float]]) -> float | None:
    if len(points) < LEAST:
        return None
    steps, values = zip(*points, strict=True)
    tau = float(kendalltau(steps, values).statistic)
    return None if math.isnan(tau) else tau


def _ranks(geometry: Iterable[Row], kind: str) -> dict[int, Ranks]:
    found: dict[int, Ranks] = {}
    for row in geometry:
        if (row["kind"], row["metric"]) == (kind, "stable_rank") and not math.isnan(row["value"]):
            found.setdefault(int(row["step"]), {})[_name(row)] = float(row["value"])
    return found


def _norms(geometry: Iterable[Row]) -> dict[int, float]:
    squares: dict[int, float] = {}
    for row in geometry:
        if (row["kind"], row["metric"]) == ("update", "frobenius"):
            squares[int(row["step"])] = squares.get(int(row["step"]), 0.0) + float(row["value"]) ** 2
    return {step: math.sqrt(square) for step, square in squares.items()}


def _name(row: Row) -> str:
    return row["module"] if row["layer"] is None else f"{int(row['layer'])}.{row['module']}"


def _names(ranks: Mapping[int, Ranks]) -> list[str]:
    return sorted({name for here in ranks.values() for name in here})
