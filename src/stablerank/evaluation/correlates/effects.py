"""What an edit does to a score beyond what a neutral edit of the same length does, and the verdict on its claim.

Legend: N answers, C controls.

The rule. An answer's own controls (filler behind it, stopping early) and the answer itself give points (change of the
logarithm of the length, change of the score); straight lines between them are that answer's yardstick. An edit's
*length part* is the yardstick's height at the edit's own change of length; what is *beyond* it is the rest of the
change. Nothing is extrapolated: an edit that changes length by more than every control is left out, and counted. Each
group, such as all answers to a prompt, counts once, with the mean of its answers; intervals and p-values are Student's,
over groups. (Draws of groups gave too small p-values for edits that apply to a dozen groups only.)

The verdict on an edit with a claimed sign: ``confirmed`` where the change beyond length has that sign, ``opposite``
where it has the other, both at p < 0.05 after Holm over all edits that have a claim, else ``not confirmed``. A
mechanism is confirmed where all its edits are, opposite where some are opposite and none is confirmed.

Validity: the yardstick is noisy for one answer and unbiased over many. Not confirmed is no proof of no effect: read the
interval. Below `FEWEST_GROUPS` groups there is neither interval nor p-value. An edit whose length is itself the
mechanism is judged on its whole change.

Left out on purpose: a regression over answers, which would take one yardstick for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

from stablerank.errors import DataError
from stablerank.evaluation.correlates.interventions import CONTROLS, INTERVENTIONS, Claim, Intervention
from stablerank.evaluation.correlates.significance import FEWEST_GROUPS, holm
from stablerank.evaluation.pairs.resampling import divided, group_numbers
from stablerank.evaluation.statistics import Interval

Floats = NDArray[np.float64]
Verdict = Literal["confirmed", "not confirmed", "opposite", "no claim"]
ORIGINAL = "original"
ALPHA = 0.05


@dataclass(frozen=True)
class Marks:
    """Scores ``(N,)`` and lengths in tokens ``(N,)`` of one version of every answer; NaN where there is none."""

    score_N: Floats
    tokens_N: Floats


@dataclass(frozen=True)
class Effect:
    """Paired changes of the score, in its own units: the whole, the part of length, and what is beyond it.

    ``answers`` were judged; ``outside`` could not be, since no control changed their length as much.
    """

    name: str
    mechanism: str
    claim: Claim
    change: Interval
    length_part: Interval
    beyond: Interval
    log_length: float
    answers: int
    outside: int
    p: float
    p_holm: float = float("nan")

    @property
    def verdict(self) -> Verdict:
        """What the change beyond length says of the claim."""
        if self.claim == 0:
            return "no claim"
        if not self.p_holm < ALPHA:
            return "not confirmed"
        return "confirmed" if self.beyond.value * self.claim > 0 else "opposite"


def effects(marks: Mapping[str, Marks], groups_N: Sequence[str]) -> list[Effect]:
    """The effect of every intervention in ``marks``, which also holds ``original`` and the controls.

    Raises:
        DataError: the original or a control is missing.
    """
    missing = [name for name in (ORIGINAL, *CONTROLS) if name not in marks]
    if missing:
        raise DataError(f"the scores of {missing[0]!r} are missing; score the answers and every control first.")
    found = [_effect(each, marks, groups_N) for each in INTERVENTIONS if each.name in marks]
    claimed = [each for each in found if each.claim]
    corrected = dict(zip((each.name for each in claimed), holm([each.p for each in claimed]), strict=True))
    return [replace(each, p_holm=corrected.get(each.name, float("nan"))) for each in found]


def mechanisms(found: Sequence[Effect]) -> dict[str, Verdict]:
    """The verdict on each mechanism from those on its edits (module header)."""
    verdicts: dict[str, list[Verdict]] = {}
    for effect in found:
        verdicts.setdefault(effect.mechanism, []).append(effect.verdict)
    return {mechanism: _common(of_edits) for mechanism, of_edits in verdicts.items()}


def length_part(at: float, log_lengths_C: Floats, changes_C: Floats) -> float:
    """The height of an answer's yardstick at one change of log length; NaN outside of its controls.

    Controls of equal length count with their mean, and so does the answer itself, at (0, 0).
    """
    usable_C = np.isfinite(log_lengths_C) & np.isfinite(changes_C)
    lengths_C, changes_C = np.append(log_lengths_C[usable_C], 0.0), np.append(changes_C[usable_C], 0.0)
    points, place_C = np.unique(lengths_C, return_inverse=True)
    heights = np.bincount(place_C, changes_C) / np.bincount(place_C)
    return float(np.interp(at, points, heights, left=np.nan, right=np.nan))


def _effect(edit: Intervention, marks: Mapping[str, Marks], groups_N: Sequence[str]) -> Effect:
    change_N, log_N = _changes(marks, edit.name)
    part_N = np.zeros(len(change_N))
    if edit.length_controlled:
        controls = [_changes(marks, name) for name in CONTROLS]
        changes_NC, logs_NC = (np.stack(column, axis=1) for column in zip(*controls, strict=True))
        part_N = np.array([length_part(*row) for row in zip(log_N, logs_NC, changes_NC, strict=True)])
    applied_N = np.isfinite(change_N) & np.isfinite(log_N)
    kept_N = applied_N & np.isfinite(part_N)
    groups = [group for group, kept in zip(groups_N, kept_N, strict=True) if kept]
    columns = np.stack([change_N, part_N, _rest(change_N, part_N)], axis=1)[kept_N]
    (change, part, beyond), p = _means(columns, groups)
    log_length = float(log_N[kept_N].mean()) if len(groups) else float("nan")
    outside = int(applied_N.sum()) - len(groups)
    return Effect(edit.name, edit.mechanism, edit.claim, change, part, beyond, log_length, len(groups), outside, p)


def _rest(change_N: Floats, part_N: Floats) -> Floats:
    """The difference; 0 where rounding alone leaves one, which would have a sign and a small p-value."""
    return np.where(np.isclose(change_N, part_N, rtol=1e-9, atol=0), 0.0, change_N - part_N)


def _changes(marks: Mapping[str, Marks], name: str) -> tuple[Floats, Floats]:
    """Change of the score and of the logarithm of the length, ``(N,)`` each."""
    before, after = marks[ORIGINAL], marks[name]
    ratio_N = divided(after.tokens_N, before.tokens_N)
    log_N = np.log(np.where(ratio_N > 0, ratio_N, np.nan))
    return after.score_N - before.score_N, log_N


def _means(columns_NK: Floats, groups_N: Sequence[str]) -> tuple[list[Interval], float]:
    """The mean of each column over groups with its interval, and the p-value of the last one."""
    numbers_N, groups = group_numbers(groups_N)
    if not groups:
        return [Interval(float("nan"), float("nan"), float("nan"), 0)] * columns_NK.shape[1], float("nan")
    sums_GK = np.zeros((groups, columns_NK.shape[1]))
    np.add.at(sums_GK, numbers_N, columns_NK)
    means_GK = sums_GK / np.bincount(numbers_N)[:, None]
    tests = [_mean(means_G) for means_G in means_GK.T]
    return [interval for interval, _ in tests], tests[-1][1]


def _mean(values_G: Floats) -> tuple[Interval, float]:
    groups, value = len(values_G), float(values_G.mean())
    if groups < FEWEST_GROUPS:
        return Interval(value, float("nan"), float("nan"), groups), float("nan")
    if not np.ptp(values_G):  # as every edit moves a score of length alone: no spread, and no doubt
        return Interval(value, value, value, groups), float(value == 0)
    test = ttest_1samp(values_G, 0.0)
    bounds = test.confidence_interval()
    return Interval(value, float(bounds.low), float(bounds.high), groups), float(test.pvalue)


def _common(verdicts: Sequence[Verdict]) -> Verdict:
    claimed = [verdict for verdict in verdicts if verdict != "no claim"]
    if not claimed:
        return "no claim"
    if all(verdict == "confirmed" for verdict in claimed):
        return "confirmed"
    return "opposite" if "opposite" in claimed and "confirmed" not in claimed else "not confirmed"
