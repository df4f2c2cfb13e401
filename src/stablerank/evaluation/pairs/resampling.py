"""Cluster bootstrap: groups of pairs are drawn with replacement, and every sum over pairs is taken again.

Legend: P pairs, G groups, C columns, B draws.

Contract: any statistic that is a function of sums over pairs (a mean, a ratio, a matched mean, a share) gets its draws
from `resampled_sums`, so that all scorers of one table are compared on the same draws. Bounds are the 2.5 and 97.5
percentiles (Davison & Hinkley 1997, section 2.4, groups as units: section 3.8). With fewer than some 20 groups, or
near the ends of the scale, they are a little too narrow. Float64; the seed is fixed, so that the same pairs always get
the same interval.

Left out on purpose: BCa (statistics.py), whose jackknife would be taken for every column of every subset.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablerank.evaluation.statistics import Interval

Floats = NDArray[np.float64]
DRAWS = 2_000
_NUMBERS_AT_ONCE = 4_000_000  # bounds the memory: 32 MB of counts


def group_numbers(groups_P: Sequence[str]) -> tuple[NDArray[np.intp], int]:
    """For each pair the number of its group, and how many groups there are."""
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(group, len(numbers)) for group in groups_P], dtype=np.intp), len(numbers)


def draw_counts(groups: int, draws: int = DRAWS, seed: int = 0) -> Iterator[Floats]:
    """How often each group is in each draw, ``(some of B, G)`` at a time; every row sums to G."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _NUMBERS_AT_ONCE // groups)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        # Ten times faster than the generator's own multinomial.
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)


def resampled_sums(values_PC: Floats, groups_P: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Floats:
    """The sums ``(B, C)`` over the pairs of each draw of groups."""
    numbers_P, groups = group_numbers(groups_P)
    sums_GC = np.zeros((groups, values_PC.shape[1]))
    np.add.at(sums_GC, numbers_P, values_PC)
    return np.concatenate([counts @ sums_GC for counts in draw_counts(groups, draws, seed)])


def percentile_interval(value: float, draws_B: Floats, groups: int) -> Interval:
    """An estimate with the middle 95 % of its draws.

    Bounds are NaN where more than 5 % of the draws are not defined, and where one group is all there is to draw.
    """
    defined = draws_B[np.isfinite(draws_B)]
    if math.isnan(value) or groups < 2 or len(defined) < 0.95 * len(draws_B):
        return Interval(value, math.nan, math.nan, groups)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high), groups)


def divided(above: Any, below: Any) -> Any:
    """A quotient that is NaN, and silent, where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(below) == 0, np.nan, np.asarray(above) / np.asarray(below))


Statistic = Callable[[Floats], Floats]
"""From sums ``(..., C)`` to a number ``(...)``."""


def interval_of(
    statistic: Statistic, values_PC: Floats, groups_P: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """A statistic of the sums of some columns over all pairs, with its interval over groups."""
    value = float(statistic(values_PC.sum(axis=0)))
    return percentile_interval(value, statistic(resampled_sums(values_PC, groups_P, draws, seed)), len(set(groups_P)))
