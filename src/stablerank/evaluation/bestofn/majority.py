"""Majority vote without bias from one pool: exact over all subsets of size N, for every N at once.

Legend: M answers to one problem, N of them drawn, C classes of equal final answers, Z powers of z (answers drawn), U
powers of u (classes that share the lead).

Of N answers drawn without replacement, the class with most votes wins; classes with equally many share the win, and an
answer without a final answer abstains. Where nobody votes the pick is one of the abstainers. A class is worth the mean
of its members, because each of them is drawn equally often.

The number of subsets in which the leaders have exactly j votes, t of them tied, is a coefficient of a generating
function: classes of fewer than j members, like abstainers, give ``(1 + z)^m``, and each other class gives
``sum_{i<j} C(m, i) z^i + u C(m, j) z^j``. Summed over j from 1 on and divided by ``C(M, N)``, with ``1/t`` for a tie,
this is the expectation. At most M/j classes have j members, so all N together cost about ``M^3 log M`` additions:
a millisecond for 16 answers of a problem, half a second for 256.

Numerics: fp64; only positive terms are added, so the relative error stays near 1e-13. Counts would overflow beyond
about 1,000 answers of a problem; more than `MOST_ANSWERS` are refused.

Left out on purpose: Monte Carlo over subsets, which this makes needless; votes weighted by score.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.estimator import Floats

MOST_ANSWERS = 512


def expected_votes(classes: Sequence[int | None], values_M: ArrayLike) -> Floats:
    """The expected value of the majority's answer for N = 1..M, ``(M,)``.

    Args:
        classes: the class of each answer; None abstains.
        values_M: what an answer is worth, such as 1 for a right one.

    Raises:
        DataError: there is no answer or more than `MOST_ANSWERS`, or not one class a value.
    """
    values_M = np.asarray(values_M, dtype=np.float64)
    if values_M.shape != (len(classes),) or not 1 <= len(classes) <= MOST_ANSWERS:
        raise DataError(
            f"a majority vote is counted over 1 to {MOST_ANSWERS} answers with a value each, got {len(classes)} "
            f"answers and {values_M.shape} values; give a smaller pool."
        )
    voted = {each for each in classes if each is not None}
    members = [values_M[[each == name for each in classes]] for name in sorted(voted)]
    silent_A = values_M[[each is None for each in classes]]
    sizes, worth = [len(one) for one in members], [float(one.mean()) for one in members]
    gained_Z = sum((_gained(votes, sizes, worth, len(classes)) for votes in range(1, max(sizes, default=0) + 1)), 0.0)
    if len(silent_A):
        gained_Z = gained_Z + silent_A.mean() * _binomials(len(silent_A), len(classes))
    return np.asarray((gained_Z / _binomials(len(classes), len(classes)))[1:])


def _gained(votes: int, sizes: Sequence[int], worth: Sequence[float], total: int) -> Floats:
    """What the subsets of each size, in which the leaders have so many votes, are worth together."""
    able = [(size, value) for size, value in zip(sizes, worth, strict=True) if size >= votes]
    others = total - sum(size for size, _ in able)
    # Row t: the t tied leaders so far; `sums` holds the sum of their worth beside the number of subsets.
    counts_UZ = np.zeros((len(able) + 1, total + 1))
    counts_UZ[0] = _binomials(others, total)
    sums_UZ = np.zeros_like(counts_UZ)
    for size, value in able:
        below_Z = _binomials(size, total)
        lead_UZ = _led(counts_UZ, votes, below_Z[votes])
        sums_UZ = _times(sums_UZ, below_Z[:votes]) + _led(sums_UZ, votes, below_Z[votes]) + value * lead_UZ
        counts_UZ = _times(counts_UZ, below_Z[:votes]) + lead_UZ
    return np.asarray((sums_UZ[1:] / np.arange(1, len(able) + 1)[:, None]).sum(axis=0))


def _led(by_UZ: Floats, votes: int, ways: float) -> Floats:
    """One leader more: a power of u, and ``votes`` powers of z."""
    led_UZ = np.zeros_like(by_UZ)
    led_UZ[1:, votes:] = ways * by_UZ[:-1, : by_UZ.shape[1] - votes]
    return led_UZ


def _times(by_UZ: Floats, factor_Z: Floats) -> Floats:
    """The product with a polynomial in z, cut to the powers that there are."""
    return np.stack([np.convolve(row_Z, factor_Z)[: len(row_Z)] for row_Z in by_UZ])


def _binomials(size: int, total: int) -> Floats:
    """``C(size, i)`` for i = 0..total."""
    return np.asarray(comb(size, np.arange(total + 1)))
