"""What the rules read of a run: series of its signals, its held-out curves, its parts of the reward, its settings.

Contract: pure; everything may be missing, and what is missing is None, empty or NaN. Held-out evaluations of the
validation curve and those before and after training are two curves: they are of two sets of problems.

Legend: S logged steps, E held-out evaluations, G groups of completions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablerank.dynamics.causes.series import Floats, Series, series
from stablerank.dynamics.overfitting import Moment
from stablerank.dynamics.overfitting_signals import signals_of_history
from stablerank.dynamics.signals import SIGNALS, signals_of_record
from stablerank.runs.record import Row, RunRecord, TrainingCompletion

FEWEST_ROWS = 6
"""Logged steps below which nothing is said about a course: two windows of two rows, and two between them."""

_LOGGED = {
    "learning_rate": "learning_rate",
    "shortest": "completions/min_length",
    "longest": "completions/max_length",
    "duplicates": "duplicate_share",
    "near_duplicates": "near_duplicate_share",
}
_WINDOW = "cut_by_window"
_OF_STATES = {_WINDOW: _WINDOW, "sigma1_first": "sigma1_first_token", "sigma1_special": "sigma1_special_tokens"}
"""What a reward on hidden states logs, under its name where there are several rewards."""
_COUNTED = ("loss", "grad_norm", "kl", "entropy")
"""Columns in which NaN or infinity is no missing value: the trainer computed it."""


@dataclass(frozen=True)
class Curve:
    """Held-out pass@1 with its 95 % interval; entries without an interval are left out."""

    step_E: NDArray[np.int64]
    value_E: Floats
    low_E: Floats
    high_E: Floats


@dataclass(frozen=True)
class Facts:
    """Everything that a rule may ask."""

    columns: Mapping[str, Series]
    """Signals (`SIGNALS`), ``learning_rate``, ``shortest`` and ``longest`` completion, shares of ``duplicates`` and
    ``near_duplicates``, and of a reward on hidden states its ``spread``, ``cut_by_window``, ``sigma1_first`` and
    ``sigma1_special``, where they have a value."""
    parts: Mapping[str, Series]
    """The mean of each reward function by its name, where the run had several."""
    curves: tuple[Curve, ...]
    """The longest first."""
    lone: float
    """Share of groups with one scorable completion at most; NaN where completions were not kept."""
    broken: tuple[str, int] | None
    """The first number of the log that is not finite: its column and step."""
    settings: Row
    first_step: int
    rows: int
    losses: tuple[Moment, ...] = ()
    """The curve of the held-out loss; its lower end is NaN where the writer keeps no interval."""

    def get(self, name: str) -> Series | None:
        """The series of a column, None where it was not recorded."""
        return self.columns.get(name)

    def knows(self, name: str) -> bool:
        """Whether something is on record: a column, or one of the names below."""
        special = {
            "held_out": bool(self.curves),
            "parts": bool(self.parts),
            "groups": math.isfinite(self.lone),
            "rows": self.rows > 0,
            "losses": len(self.losses) > 1,
            "course": self.rows >= FEWEST_ROWS,
        }
        return special.get(name, name in self.columns)

    def setting(self, section: str, key: str) -> Any:
        """A value of the recipe, None where it is not known."""
        found = self.settings.get(section)
        return found.get(key) if isinstance(found, Mapping) else None


def facts_of(record: RunRecord) -> Facts:
    """Read a record once, for all rules."""
    signals = signals_of_record(record)
    columns = {name: series(signals.step_S, signals[name]) for name in SIGNALS}
    logged = {**_LOGGED, **_of_states(record.steps)}
    columns |= {name: _column(record.steps, key) for name, key in logged.items()}
    return Facts(
        columns={name: found for name, found in columns.items() if found is not None},
        parts=_parts(record.steps),
        curves=_curves(record.evaluations),
        lone=_lone(record.completions),
        broken=_broken(record.steps),
        settings=record.settings,
        first_step=int(record.steps[0]["step"]) if record.steps else 0,
        rows=len(record.steps),
        losses=tuple(_losses(record)),
    )


def _column(steps: Sequence[Row], key: str) -> Series | None:
    return series([int(row["step"]) for row in steps], [_number(row.get(key)) for row in steps])


def _of_states(steps: Sequence[Row]) -> dict[str, str]:
    """Keys of what the first reward on hidden states logged; none without one."""
    keys = list(dict.fromkeys(key for row in steps for key in row))
    of = next((key.removesuffix(_WINDOW) for key in keys if key.rpartition("/")[2] == _WINDOW), None)
    if of is None:
        return {}
    spread = next((key for key in keys if key.startswith(f"rewards/{of}") and key.endswith("/relative_spread")), "")
    return {"spread": spread, **{name: of + key for name, key in _OF_STATES.items()}}


def _parts(steps: Sequence[Row]) -> dict[str, Series]:
    keys = dict.fromkeys(key for row in steps for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    found = {key.removeprefix("rewards/").removesuffix("/mean"): _column(steps, key) for key in keys}
    known = {name: part for name, part in found.items() if part is not None}
    return known if len(known) > 1 else {}


def _curves(evaluations: Sequence[Row]) -> tuple[Curve, ...]:
    curves = []
    for is_curve in (True, False):
        rows = [row for row in evaluations if (row.get("phase") == "curve") == is_curve]
        numbers = [[_number(row.get(key)) for key in ("step", "pass_at_1", "low", "high")] for row in rows]
        kept_E4 = np.array(sorted(row for row in numbers if np.isfinite(row).all()), np.float64).reshape(-1, 4)
        if len(kept_E4) > 1:
            curves.append(Curve(kept_E4[:, 0].astype(np.int64), *kept_E4[:, 1:].T))
    return tuple(sorted(curves, key=lambda curve: -curve.step_E.size))


def _losses(record: RunRecord) -> Iterator[Moment]:
    if record.writer == "trl":
        for seen in signals_of_history(record.losses):
            step, held_out, train = (_number(seen[name]) for name in ("step", "held_out", "train"))
            yield Moment(int(step), held_out, math.nan, train)
    else:
        for row in record.losses:
            yield Moment(row["step"], row["loss"], row["loss_low"], row["loss_train"])


def _lone(completions: Sequence[TrainingCompletion]) -> float:
    scorable_G = [
        sum(math.isfinite(one.reward) for one in group)
        for _, group in groupby(completions, lambda one: (one.step, one.group))
    ]
    return float(np.mean([count <= 1 for count in scorable_G])) if scorable_G else math.nan


def _broken(steps: Sequence[Row]) -> tuple[str, int] | None:
    for row in steps:
        for key in _COUNTED:
            if isinstance(row.get(key), float) and not math.isfinite(row[key]):
                return key, int(row["step"])
    return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
