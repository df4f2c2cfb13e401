"""Rules that stop a run before it overfits, and what a stop costs.

Contract: a `StopRule` reads one signal (overfitting_signals.py) at every evaluated step and asks for a stop at the
first step at which its *reading* has been past the threshold ``patience`` times in a row. Readings, none of which looks
ahead:

- ``value``: the signal;
- ``ratio``: over its first value;
- ``fall``: ``1 - value / largest so far``, of a signal that is positive;
- ``rise``: ``value / smallest so far - 1``.

A step without a value is passed over. A value or first value that the reading cannot divide by counts as none.

`regret` is what stopping there loses of what the run offered: 0 at the step of the lowest judging loss, 1 at the step
of the highest. It takes stopping too early and too late alike, and a run that never stops is judged by its last step.

Rules chosen on recorded runs stand in stop_rules.json, written by benchmarks/overfitting_detector.py, each beside what
it lost on runs that it was not chosen on. Left out on purpose: rules over several signals at once, whose thresholds a
few runs cannot set.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Reading = Literal["value", "ratio", "fall", "rise"]
Direction = Literal["above", "below"]
Row = Mapping[str, float | None]

RULES = Path(__file__).with_name("stop_rules.json")


@dataclass(frozen=True)
class StopRule:
    """Stop where the reading of ``signal`` is on the named side of ``threshold``, ``patience`` times in a row."""

    signal: str
    reading: Reading
    direction: Direction
    threshold: float
    patience: int = 1

    def is_past(self, reading: float) -> bool:
        """Whether one reading is past the threshold."""
        return reading > self.threshold if self.direction == "above" else reading < self.threshold

    def stops_at(self, rows: Iterable[Row]) -> int | None:
        """The place of the row at which a run stops; None where it goes to its end."""
        in_a_row = 0
        for place, reading in enumerate(readings(self.signal, self.reading, rows)):
            if not math.isnan(reading):
                in_a_row = in_a_row + 1 if self.is_past(reading) else 0
            if in_a_row >= self.patience:
                return place
        return None


def readings(signal: str, reading: Reading, rows: Iterable[Row]) -> list[float]:
    """What a rule reads at each row; NaN where it reads nothing."""
    found, first, most, least = [], math.nan, -math.inf, math.inf
    for row in rows:
        value = row.get(signal)
        if value is None or math.isnan(value):
            found.append(math.nan)
            continue
        first = value if math.isnan(first) else first
        most, least = max(most, value), min(least, value)
        against = {"value": 1.0, "ratio": first, "fall": most, "rise": least}[reading]
        share = value / against if against > 0 else math.nan
        found.append({"value": value, "ratio": share, "fall": 1 - share, "rise": share - 1}[reading])
    return found


def regret(judge: Sequence[float], place: int | None) -> float:
    """Share of the way from the lowest to the highest judging loss; NaN for a run whose loss never moves."""
    stopped = judge[-1] if place is None else judge[place]
    span = max(judge) - min(judge)
    return (stopped - min(judge)) / span if span > 0 else math.nan


def recorded_rules() -> dict[str, Any]:
    """`stop_rules.json` as it is: ``origin``, and ``rules`` by objective and signal."""
    found: dict[str, Any] = json.loads(RULES.read_text(encoding="utf-8"))
    return found


def rule_of(objective: str, signal: str) -> StopRule:
    """The recorded rule of a signal for an objective (``clm`` or ``dpo``)."""
    kept = recorded_rules()["rules"][objective][signal]
    return StopRule(
        **{"signal": signal, **{key: kept[key] for key in ("reading", "direction", "threshold", "patience")}}
    )
