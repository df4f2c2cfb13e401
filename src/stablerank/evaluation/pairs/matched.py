"""Length-matched accuracy: what is left of a score's accuracy when length can no longer tell the two responses apart.

Legend: P pairs, K bins, C columns.

The rule (coarsened exact matching, Iacus, King & Porro 2012, on one covariate). Pairs are sorted into ten bins of
``|log(chosen length / rejected length)|`` with equally many pairs each; within a bin the pairs whose chosen response
is longer and those whose chosen response is shorter are averaged by themselves, and the two averages count alike. A bin
weighs ``2 * min(longer, shorter)``, the pairs that could be matched one to one; pairs of equal length, which need no
match, weigh one each. So chosen is longer as often as shorter, by as much.

A score that is a monotone function of length alone gets exactly 0.5 in each bin. One that is length plus noise gets
0.5 up to how far lengths still differ within a bin; a score whose accuracy stays above 0.5 tells the responses apart by
something else. Interval: cluster bootstrap that matches anew in every draw, bins as they are.

Where all chosen responses are longer there is nothing to match and the accuracy is NaN. ``matched`` says how many pairs
it stands on: read an accuracy on few of them with that in mind.

Left out on purpose: matching on more than length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stablerank.evaluation.pairs.resampling import Floats, divided, interval_of
from stablerank.evaluation.statistics import Interval

BINS = 10


@dataclass(frozen=True)
class Matched:
    """Length-matched accuracy, and the number of pairs that were matched or of equal length."""

    accuracy: Interval
    matched: float


def matched_accuracy(credits_P: Floats, log_ratios_P: Floats, groups_P: Sequence[str], bins: int = BINS) -> Matched:
    """Accuracy at matched lengths.

    Args:
        credits_P: what each pair earns, from `credits_of`; NaN pairs are left out.
        log_ratios_P: log of chosen length over rejected length.
        groups_P: the group of each pair, the unit of the interval.
        bins: of the absolute log ratio.
    """
    counted_P = ~np.isnan(credits_P)
    cells_P = _cells(log_ratios_P[counted_P], bins)
    groups = [group for group, counted in zip(groups_P, counted_P, strict=True) if counted]
    if not len(cells_P):
        return Matched(Interval(math.nan, math.nan, math.nan, 0), 0.0)
    member_PC = np.eye(2 * bins + 1)[cells_P]
    columns_PC = np.concatenate([member_PC * credits_P[counted_P, None], member_PC], axis=1)
    return Matched(interval_of(_matched_mean, columns_PC, groups), float(_weights(member_PC.sum(axis=0)).sum()))


def _cells(log_ratios_P: Floats, bins: int) -> NDArray[np.intp]:
    """Cell 2k: bin k, chosen shorter; 2k + 1: bin k, chosen longer; the last one: equal lengths."""
    sizes_P, unequal_P = np.abs(log_ratios_P), log_ratios_P != 0
    cells_P = np.full(len(log_ratios_P), 2 * bins, dtype=np.intp)
    if unequal_P.any():
        edges = np.quantile(sizes_P[unequal_P], np.linspace(0, 1, bins + 1)[1:-1])
        bin_P = np.searchsorted(edges, sizes_P, side="left")
        cells_P[unequal_P] = (2 * bin_P + (log_ratios_P > 0))[unequal_P]
    return cells_P


def _weights(counts_C: Floats) -> Floats:
    """What each bin weighs, equal lengths last, ``(..., K + 1)``."""
    pairs = 2 * np.minimum(counts_C[..., 0:-1:2], counts_C[..., 1:-1:2])
    return np.concatenate([pairs, counts_C[..., -1:]], axis=-1)


def _matched_mean(sums_C: Floats) -> Floats:
    """From sums of credits and counts of pairs in each cell, ``(..., 2C)``, to the accuracy ``(...)``."""
    earned_C, counts_C = np.split(sums_C, 2, axis=-1)
    means_C = np.nan_to_num(divided(earned_C, counts_C))
    bins_K = (means_C[..., 0:-1:2] + means_C[..., 1:-1:2]) / 2
    weights_K = _weights(counts_C)
    total = (weights_K * np.concatenate([bins_K, means_C[..., -1:]], axis=-1)).sum(axis=-1)
    quotient: Floats = divided(total, weights_K.sum(axis=-1))
    return quotient
