"""What a run lost: signs that the policy got worse, whatever its training reward says.

Four signs, in order of what they are worth: held-out pass@1 fell; a part of the reward fell while there are others;
answers lost their format; answers reach the length limit. Each has the last step at which it was well and the first at
which it was lost for good, so that other signals can be read over that stretch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stablerank.dynamics.causes.facts import Curve, Facts
from stablerank.dynamics.causes.series import Series, shown, shown_share

LOST = 0.25
"""Share of its best that held-out pass@1 must lose."""
LUCKY = 3.3
"""Standard errors of the difference that it must lose besides, and not 2: the best of some ten evaluations is a lucky
one, which alone makes for a fall of a few points."""
HALVED = 0.5
"""A share or a part of the reward is lost when it has halved, the measure of a collapse of pass@1."""
FEW = 0.2
"""Answers in the format below which there is no format to lose."""
CUT = 0.25
"""Rise of the truncated share: a quarter of every batch more that ends nowhere."""
CLEAR = 3.0
"""Standard errors that make a change: 0.3 % of constant columns pass by chance."""


@dataclass(frozen=True)
class Harm:
    """One sign, with what it fell from and to in words, the last step that was well and the first that was not."""

    sign: str
    words: str
    well: int
    lost: int


def harms(facts: Facts) -> list[Harm]:
    """Every sign on record, the weightiest first."""
    return [*_held_out(facts), *_parts(facts), *_format(facts), *_truncation(facts)]


def _held_out(facts: Facts) -> Iterator[Harm]:
    for curve in facts.curves:
        if (fallen := fall(curve)) is not None:
            best, lost = fallen
            values = f"{shown(curve.value_E[best])} at step {curve.step_E[best]} to {shown(curve.value_E[-1])}"
            words = f"held-out pass@1 fell from {values} at step {curve.step_E[-1]}"
            yield Harm("held_out", words, int(curve.step_E[best]), int(curve.step_E[lost]))


def fall(curve: Curve) -> tuple[int, int] | None:
    """Places of the best evaluation and of the first from which all have fallen; None where the last has not."""
    best = int(np.argmax(curve.value_E))
    # The standard error of a difference from the widths of two 95 % intervals.
    error_E = np.hypot(curve.high_E - curve.low_E, curve.high_E[best] - curve.low_E[best]) / (2 * 1.96)
    falls_E = curve.value_E[best] - curve.value_E
    fallen_E = (falls_E >= LUCKY * error_E) & (falls_E >= LOST * curve.value_E[best]) & (falls_E > 0)
    if not fallen_E[-1]:
        return None
    return best, int(curve.value_E.size - np.argmin(fallen_E[::-1]))


def _parts(facts: Facts) -> Iterator[Harm]:
    for name, part in facts.parts.items():
        if part.opening > 0 and part.value_S.min() >= 0 and part.change <= -CLEAR:
            yield from _lost(part, f"the reward {name}", "part")


def _format(facts: Facts) -> Iterator[Harm]:
    answered = facts.get("answered")
    if answered is not None and answered.peak >= FEW:
        yield from _lost(answered, "the share of answers in the format", "format")


def _lost(series: Series, name: str, sign: str) -> Iterator[Harm]:
    lost = series.since(series.value_S <= HALVED * series.peak)
    if lost is not None and series.change_from_peak() <= -CLEAR:
        words = f"{name} fell from {shown(series.peak)} to {shown(series.closing)}"
        yield Harm(sign, words, series.before(lost), lost)


def _truncation(facts: Facts) -> Iterator[Harm]:
    truncated = facts.get("truncated")
    if truncated is None or truncated.change < CLEAR:
        return
    lost = truncated.since(truncated.value_S >= truncated.opening + CUT)
    if lost is not None:
        words = f"answers cut at the length limit rose from {shown_share(truncated.opening)} to "
        yield Harm("truncation", words + shown_share(truncated.closing), truncated.before(lost), lost)
