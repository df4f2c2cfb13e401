"""A run watched step by step: which alarms are raised, and when.

Contract: `Watch.see` takes the signals of one logged step, in order, and keeps nothing but the last few values of each;
`replay` is the same over a recorded run, so a run that is resumed, or read years later, gives the same alarms. A step
without a value leaves an alarm as it is. An alarm is raised when it comes up and again only after it was down.

Numerics: infinities are values (an infinite KL divergence is above every threshold), NaN is none. The median is over an
odd number of values, so it is one of them.

Left out on purpose: actions, see training/alarms.py.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from stablerank.dynamics.alarms import BASELINE, Against, Alarm, Rule
from stablerank.dynamics.signals import SIGNALS, Signals

Values = Mapping[str, float]


@dataclass(frozen=True)
class Raised:
    """An alarm that came up: the ``value`` read of the signal, what it means, and what to change."""

    step: int
    alarm: str
    signal: str
    value: float
    threshold: float
    sentence: str
    remedy: str


class Watch:
    """The alarms of one run. ``cap`` is the longest completion in tokens; without it alarms on length are off."""

    def __init__(self, rules: Iterable[Rule], cap: float | None = None) -> None:
        self._cap = cap
        self._gauges = [(rule, Gauge(rule.alarm, rule.window, rule.hold)) for rule in rules]
        self._up: set[str] = set()

    def see(self, step: int, signals: Values) -> list[Raised]:
        """The alarms that this step raises, in the order of the rules."""
        values = with_share_of_cap(signals, self._cap)
        found = [self._see(step, rule, gauge, values) for rule, gauge in self._gauges]
        return [raised for raised in found if raised is not None]

    def off(self) -> dict[str, str]:
        """The alarms that could not have been raised so far, each with the reason."""
        reasons = {rule.alarm.name: gauge.off() for rule, gauge in self._gauges}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _see(self, step: int, rule: Rule, gauge: "Gauge", values: Values) -> Raised | None:
        name = rule.alarm.name
        level = gauge.see(values)
        if math.isnan(level):
            return None
        if level <= rule.alarm.sign * rule.threshold:
            self._up.discard(name)
            return None
        if name in self._up:
            return None
        self._up.add(name)
        return Raised(
            step, name, rule.alarm.signal, gauge.value, rule.threshold, _sentence(rule, gauge.value), rule.alarm.remedy
        )


def replay(rules: Iterable[Rule], signals: Signals, cap: float | None = None) -> list[Raised]:
    """The alarms of a recorded run, in order of their steps."""
    watch = Watch(rules, cap)
    return [raised for step, values in rows_of(signals) for raised in watch.see(step, values)]


def rows_of(signals: Signals) -> Iterator[tuple[int, dict[str, float]]]:
    """A recorded run step by step, each with the signals it has."""
    for place, step in enumerate(signals.step_S):
        yield int(step), {name: float(signals[name][place]) for name in SIGNALS if not np.isnan(signals[name][place])}


def with_share_of_cap(signals: Values, cap: float | None) -> dict[str, float]:
    """The signals, and ``length_of_cap``: the mean length as a share of the longest completion allowed."""
    share = {"length_of_cap": signals["length"] / cap} if cap and "length" in signals else {}
    return {**signals, **share}


class Gauge:
    """How far one alarm's signal has gone and stayed: the alarm is up while the level is above its threshold."""

    def __init__(self, alarm: Alarm, window: int, hold: int) -> None:
        self._alarm, guard = alarm, alarm.guard
        self._reader = _Reader(alarm.signal, alarm.against, window, alarm.least_start)
        self._guard = _Reader(guard.signal, guard.against, window) if guard else None
        self._is_open = guard is None
        self._last: deque[float] = deque([-math.inf] * hold, maxlen=hold)
        self.value = math.nan
        """What the latest step read of the signal."""

    def see(self, signals: Values) -> float:
        """The least of the last ``hold`` values, with the sign that makes larger worse; NaN for a step without one."""
        self._see_guard(signals)
        value = self._reader.see(signals)
        if math.isnan(value):
            return math.nan
        self.value = value
        self._last.append(self._alarm.sign * value if self._is_open else -math.inf)
        return min(self._last)

    def off(self) -> str | None:
        """Why this alarm could not have been raised; None if it could."""
        return self._reader.off() or (self._guard.off() if self._guard else None)

    def _see_guard(self, signals: Values) -> None:
        if self._guard is None or self._alarm.guard is None:
            return
        value, bound = self._guard.see(signals), self._alarm.guard.bound
        if not math.isnan(value):
            self._is_open = value >= bound if self._alarm.guard.direction == "above" else value <= bound


class _Reader:
    """One signal as a rule reads it: the median of its last values, against its start."""

    def __init__(self, signal: str, against: Against, window: int, least_start: float | None = None) -> None:
        self._signal, self._against, self._least_start = signal, against, least_start
        self._needs_start = against != "value" or least_start is not None
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=window)

    def see(self, signals: Values) -> float:
        """NaN for a step without a value, before there are enough of them, and where the start will not do."""
        value = signals.get(self._signal, math.nan)
        if math.isnan(value):
            return math.nan
        self._last.append(value)
        if len(self._first) < BASELINE:
            self._first.append(value)
        return math.nan if self.off() else self._read(median(self._last))

    def off(self) -> str | None:
        if not self._first:
            return f"no `{self._signal}` in the log"
        if len(self._last) < (self._last.maxlen or 0) or (self._needs_start and len(self._first) < BASELINE):
            return f"too few values of `{self._signal}` in the log"
        return self._refused_start(median(self._first)) if self._needs_start else None

    def _refused_start(self, start: float) -> str | None:
        is_sound = math.isfinite(start) and (self._against != "ratio" or start > 0)
        if is_sound and (self._least_start is None or start >= self._least_start):
            return None
        return f"`{self._signal}` starts at {start:.3g}, from where nothing can be told"

    def _read(self, value: float) -> float:
        if self._against == "value":
            return value
        start = median(self._first)
        return value / start if self._against == "ratio" else value - start


def _sentence(rule: Rule, value: float) -> str:
    said = rule.alarm.says.format(value=f"{value:.3g}")
    return f"{said[0].upper()}{said[1:]} (alarm {rule.alarm.direction} {rule.threshold:.3g}): {rule.alarm.cause}."
