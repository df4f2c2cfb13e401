"""Partial rank correlation of a score with preference, given length.

Legend: P pairs, B draws.

Which response of a pair comes first means nothing, so each pair stands in the sample both ways round: difference of
scores x, preference +1, difference of log lengths z, and -x, -1, -z. Spearman's correlation of that doubled sample is a
correlation of signed ranks: ``sign(x)`` times the (mid-)rank of ``|x|``, and 0 for a tie. From the three of them,

    rho(x, y | z) = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)).

0 means that among pairs alike in length (as far as ranks are linear in each other) the score says nothing. Intervals:
cluster bootstrap over groups in which ranks are taken again in every draw. NaN where a score never differs, or where it
ranks pairs exactly as length does: then nothing of it is left to correlate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stablerank.evaluation.pairs.resampling import Floats, divided, draw_counts, group_numbers, percentile_interval
from stablerank.evaluation.statistics import Interval

DRAWS = 500
_LEAST_LEFT = 1e-9  # of a variance: less is rounding


@dataclass(frozen=True)
class RankCorrelations:
    """Spearman with preference as it is and given length; and of the score with length."""

    with_preference: Interval
    given_length: Interval
    with_length: Interval


def rank_correlations(differences_P: Floats, log_ratios_P: Floats, groups_P: Sequence[str]) -> RankCorrelations:
    """Of score differences (chosen less rejected) with preference and with log length ratios; NaN pairs left out."""
    kept_P = ~np.isnan(differences_P)
    x_P, z_P = differences_P[kept_P], log_ratios_P[kept_P]
    groups = [group for group, kept in zip(groups_P, kept_P, strict=True) if kept]
    if not len(x_P):
        nothing = Interval(np.nan, np.nan, np.nan, 0)
        return RankCorrelations(nothing, nothing, nothing)
    values = _correlations(x_P, z_P, np.ones((1, len(x_P))))[0]
    numbers_P, count = group_numbers(groups)
    draws_B = [_correlations(x_P, z_P, counts[:, numbers_P]) for counts in draw_counts(count, DRAWS)]
    columns = np.concatenate(draws_B).T
    intervals = (percentile_interval(float(v), c, count) for v, c in zip(values, columns, strict=True))
    return RankCorrelations(*intervals)


def _correlations(x_P: Floats, z_P: Floats, weights_BP: Floats) -> Floats:
    """``(B, 3)``: with preference, given length, with length; a weight says how often a pair is in a draw."""
    x_BP, z_BP = signed_ranks(x_P, weights_BP), signed_ranks(z_P, weights_BP)

    def mean(values_BP: Floats) -> Floats:
        return (weights_BP * values_BP).sum(axis=1) / weights_BP.sum(axis=1)

    xx, zz = mean(x_BP**2), mean(z_BP**2)
    r_xy, r_yz = divided(mean(x_BP), np.sqrt(xx)), divided(mean(z_BP), np.sqrt(zz))
    r_xz = divided(mean(x_BP * z_BP), np.sqrt(xx * zz))
    left = (1 - r_xz**2) * (1 - r_yz**2)
    given = np.where(left > _LEAST_LEFT, divided(r_xy - r_xz * r_yz, np.sqrt(np.maximum(left, 0))), np.nan)
    # Where lengths never differ there is nothing to hold fixed.
    return np.stack([r_xy, np.where(zz == 0, r_xy, given), r_xz], axis=1)


def signed_ranks(values_P: Floats, weights_BP: Floats) -> Floats:
    """``sign`` times the mid-rank of the absolute value, where a pair counts as often as its weight: ``(B, P)``."""
    sizes, place_P = np.unique(np.abs(values_P), return_inverse=True)
    order_P = np.argsort(place_P, kind="stable")
    starts = np.searchsorted(place_P[order_P], np.arange(len(sizes)))
    tied = np.add.reduceat(weights_BP[:, order_P], starts, axis=1)
    ranks = tied.cumsum(axis=1) - tied / 2
    signed: Floats = np.sign(values_P) * ranks[:, place_P]
    return signed
