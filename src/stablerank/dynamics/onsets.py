"""When did it begin? The first step from which a signal is out of where it was, and stays out.

Contract: `onset` is a pure function of one signal and one rule. Two rules: `LeavesStart`, out of the band of the run's
own first values; `Falls`, below a level relative to the signal's own peak. All numbers of a rule are its defaults or
belong to a kind of signal; none is chosen for a run. Values that were not recorded (NaN) are left out, and widths and
holds count recorded values. fp64.

An onset is an interval of steps: the change came after ``lower`` and by ``upper``. For a signal of every step that is
one step; for a held-out measure it is the gap between two evaluations; at the record's edges it is censored.

Validity: the signal is smoothed by a centred running median, which keeps the place of a jump and drops spikes of up to
``width // 2`` values. A change must exceed the larger of a least change and a number of robust standard deviations
(median absolute deviation; Iglewicz & Hoaglin 1993), so no rule has a unit. A change inside the first ``start // 2``
values cannot be seen, because the start itself is then the changed signal; a slow ramp is seen when it leaves the band,
later than it began; noise whose lag-1 correlation is 0.8 wanders like a slow change and is often taken for one.
``benchmarks/collapse_chain.py`` measures errors and false onsets on simulated signals.

Left out on purpose: optimal segmentation (PELT in `ruptures`). It misses fewer weak jumps where noise is independent,
but its penalty takes that for granted: stationary noise of lag-1 correlation 0.5 it often cuts, where this rule is
quiet, and an order of events is worth no more than its false events are few. It also has no "out of the start, and
stays out": the rule after it would be this one.

Legend: S recorded steps.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAD_TO_SIGMA = 1.4826
"""Turns the median absolute deviation of a normal sample into its standard deviation."""


@dataclass(frozen=True)
class Onset:
    """A change after step ``lower`` and by step ``upper``, the first recorded one that shows it."""

    lower: int
    upper: int
    edge: Literal["", "start", "end"] = ""
    """Censored: "start", it was there before the run's own start was known; "end", the record ends before it held."""

    @property
    def middle(self) -> float:
        """The best guess of one number."""
        return (self.lower + self.upper) / 2

    def before(self, other: "Onset") -> bool:
        """Whether this one surely came first; two onsets of which neither did are a tie."""
        return self.upper <= other.lower


@dataclass(frozen=True)
class LeavesStart:
    """Out of the band of the run's own start, upwards or downwards."""

    direction: Literal[1, -1] = 1
    share: float = 0.25
    """Least change, as a share of the start's level."""
    change: float = 0.0
    """Least change, in the signal's own unit: for shares, which may start at zero."""
    start: int = 8
    """Recorded values that are the start."""
    deviations: float = 3.0
    """Least change, in robust standard deviations of the noise: that of the start or, if larger, that from value to
    value so far. Eight values alone know their deviation badly; differences miss noise that is correlated."""
    width: int = 5
    """Of the running median; odd."""
    hold: int = 8
    """Recorded values for which it has to stay out."""
    held: float = 0.8
    """Share of them that must be out."""
    lasting: bool = False
    """Whether it has to stay out until the record ends."""

    def out(self, value_S: Floats) -> Bools:
        """Which smoothed values are out of the band of the raw start."""
        start = value_S[: self.start]
        level = float(np.median(start))
        noise_S = np.maximum(robust_deviation(start - level), _noise_so_far(value_S, self.start))
        least_S = np.maximum(self.deviations * noise_S, max(self.share * abs(level), self.change))
        return np.asarray(self.direction * (running_median(value_S, self.width) - level) > least_S)


@dataclass(frozen=True)
class Falls:
    """At or below a level relative to the signal's own peak, after that peak; for signals that cannot be negative."""

    level: float
    """As a share of the peak."""
    deviations: float = 6.0
    """Least fall, in robust standard deviations of the noise from value to value."""
    start: int = 8
    """Fewest recorded values."""
    width: int = 5
    hold: int = 8
    held: float = 0.8
    lasting: bool = False

    def out(self, value_S: Floats) -> Bools:
        """Which smoothed values are that far below the peak of the smoothed values."""
        smooth_S = running_median(value_S, self.width)
        peak = int(np.argmax(smooth_S))
        least = self.deviations * robust_deviation(np.diff(value_S)) / np.sqrt(2)
        fallen_S = smooth_S <= min(self.level * smooth_S[peak], smooth_S[peak] - least)
        return np.asarray(fallen_S & (smooth_S[peak] > 0) & (np.arange(value_S.size) > peak))


Rule = LeavesStart | Falls


def onset(step_S: ArrayLike, value_S: ArrayLike, rule: Rule) -> Onset | None:
    """The first step from which the rule holds and goes on holding; None where there is none.

    Args:
        step_S: Increasing step numbers.
        value_S: The signal there; what is not finite was not recorded.
        rule: `LeavesStart` or `Falls`.

    None also where fewer values than the rule's ``start`` were recorded (`long_enough`): nothing is known then.
    """
    step_S, value_S = recorded(step_S, value_S)
    if not long_enough(value_S, rule):
        return None
    out_S = rule.out(value_S)
    first, until = _first_stay(out_S, rule)
    if until == 0:
        return None
    if isinstance(rule, LeavesStart) and first < rule.start:
        return Onset(int(step_S[0]) - 1, int(step_S[first]), "start")
    return Onset(int(step_S[first - 1]), int(step_S[first]), "end" if until - first < rule.hold else "")


def recorded(step_S: ArrayLike, value_S: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Steps and values of what was recorded."""
    steps, values = np.asarray(step_S, np.int64), np.asarray(value_S, np.float64)
    kept_S = np.isfinite(values)
    return steps[kept_S], values[kept_S]


def long_enough(value_S: ArrayLike, rule: Rule) -> bool:
    """Whether there are values beyond the start, so that the rule can say anything."""
    return int(np.isfinite(np.asarray(value_S, np.float64)).sum()) > rule.start


def robust_deviation(residual_S: Floats) -> float:
    """Robust standard deviation of residuals about zero."""
    return MAD_TO_SIGMA * float(np.median(np.abs(residual_S)))


def running_median(value_S: Floats, width: int) -> Floats:
    """Centred median of ``width`` values, of as many as there are at the edges."""
    padded = np.pad(value_S, width // 2, constant_values=np.nan)
    return np.asarray(np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1))


def _noise_so_far(value_S: Floats, start: int) -> Floats:
    """Noise from value to value, of all values up to each: slow changes hardly touch it, and a jump is one of many.

    The noise of a difference is that of two values.
    """
    step_S, fewest = np.diff(value_S), max(start - 1, 1)
    return np.array([robust_deviation(step_S[: max(place, fewest)]) for place in range(value_S.size)]) / np.sqrt(2)


def _first_stay(out_S: Bools, rule: Rule) -> tuple[int, int]:
    """Index from which the values stay out, and the index at which their hold ends; zeros where none do."""
    size, index_S = out_S.size, np.arange(out_S.size)
    until_S = np.full(size, size) if rule.lasting else np.minimum(index_S + rule.hold, size)
    counted = np.concatenate([[0], np.cumsum(out_S)])
    stays_S = out_S & (counted[until_S] - counted[index_S] >= rule.held * (until_S - index_S))
    return (int(np.argmax(stays_S)), int(until_S[np.argmax(stays_S)])) if stays_S.any() else (0, 0)
