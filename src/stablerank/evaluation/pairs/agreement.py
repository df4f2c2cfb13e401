"""How often a score prefers the chosen response: accuracy over pairs, ties, and its interval over groups.

Legend: P pairs.

A pair earns 1 where the chosen response scores higher, 0 where it scores lower. Equal scores earn a half, which is what
a coin would get; RewardBench's own rule, ``ties="lose"``, gives them nothing, so that a score which ties often (two
responses cut to the same window) falls far below chance. Know the rule before comparing with a published number. A
pair with a score that is NaN is not counted on either side; how many there are is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stablerank.evaluation.pairs.resampling import Floats, divided, interval_of
from stablerank.evaluation.statistics import Interval, mean_interval

Ties = Literal["half", "lose"]


@dataclass(frozen=True)
class Agreement:
    """Accuracy with its 95 % interval over groups; ``pairs`` were counted, ``undefined`` were not."""

    accuracy: Interval
    tie_rate: float
    pairs: int
    undefined: int


def credits_of(chosen_P: Floats, rejected_P: Floats, ties: Ties = "half") -> Floats:
    """What each pair earns: 1, 0, the worth of a tie, or NaN where a score is NaN."""
    credits_P = (chosen_P > rejected_P).astype(np.float64)
    credits_P[chosen_P == rejected_P] = 0.5 if ties == "half" else 0.0
    credits_P[np.isnan(chosen_P) | np.isnan(rejected_P)] = np.nan
    return credits_P


def agreement(chosen_P: Floats, rejected_P: Floats, groups_P: Sequence[str], ties: Ties = "half") -> Agreement:
    """Accuracy of one score over pairs; NaN with NaN bounds where no pair has both scores."""
    credits_P = credits_of(chosen_P, rejected_P, ties)
    counted_P = ~np.isnan(credits_P)
    pairs = int(counted_P.sum())
    tied = int((chosen_P == rejected_P).sum())
    groups = [group for group, counted in zip(groups_P, counted_P, strict=True) if counted]
    tie_rate = tied / pairs if pairs else float("nan")
    return Agreement(_accuracy(credits_P[counted_P], groups), tie_rate, pairs, len(credits_P) - pairs)


def _accuracy(credits_P: Floats, groups_P: Sequence[str]) -> Interval:
    if not len(credits_P):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    if np.ptp(credits_P) == 0:  # no draw can differ: what statistics.py says of constant values, over groups
        return mean_interval([float(credits_P[0])] * len(set(groups_P)))
    columns_PC = np.stack([credits_P, np.ones_like(credits_P)], axis=1)
    return interval_of(lambda sums: divided(sums[..., 0], sums[..., 1]), columns_PC, groups_P)
