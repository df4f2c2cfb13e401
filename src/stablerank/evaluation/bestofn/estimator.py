"""Best-of-N without bias from one pool: what the answer with the largest score is worth, over all subsets of size N.

Legend: M answers to one problem, N of them drawn.

Of N answers drawn without replacement the one with the largest score is picked, equal scores sharing the pick equally.
The pick falls into a block of b equal scores with B below it with probability ``(C(B+b, N) - C(B, N)) / C(M, N)``, and
on each of the block's members as often as on any other. So the expected value of the pick is the sum of these
probabilities times the blocks' means: exact for every N at once, no subset is drawn. Without ties this is the order
statistic's weight ``C(rank - 1, N - 1) / C(M, N)``.

Numerics: fp64; ``C(B, N) / C(M, N)`` is a running product of ratios, so that no coefficient overflows at any M. A NaN
score is lower than every number, and all NaN are equal: an answer that cannot be scored is taken where nothing else is
there. Count them beside the result.

Source: Best-of-N as in arXiv 2512.02807, section 4; the estimator is that of pass@k (arXiv 2107.03374, equation 1),
which is the case where the score is the correctness itself.

Left out on purpose: drawing with replacement, which is biased for what N fresh samples give.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stablerank.errors import DataError

Floats = NDArray[np.float64]


def expected_picks(scores_M: ArrayLike, values_M: ArrayLike) -> Floats:
    """The expected value of the pick by largest score for N = 1..M, ``(M,)``: entry ``N - 1`` is Best-of-N.

    ``values_M`` is what a pick is worth, such as 1 for a right answer, or its length.

    Raises:
        DataError: there is no answer, or not one score a value.
    """
    scores_M, values_M = _checked(scores_M, values_M)
    levels_M = np.where(np.isnan(scores_M), -math.inf, scores_M)
    _, block_M, sizes_B = np.unique(levels_M, return_inverse=True, return_counts=True)
    means_B = np.bincount(block_M, weights=values_M) / sizes_B
    upto_B = np.cumsum(sizes_B)
    within_BM = np.stack([subset_share(count, len(values_M)) for count in (0, *upto_B)])
    return np.asarray(means_B @ np.diff(within_BM, axis=0))


def subset_share(count: int, total: int) -> Floats:
    """``C(count, N) / C(total, N)`` for N = 1..total: how often all N drawn are among ``count`` of ``total``."""
    drawn_M = np.arange(total)
    return np.asarray(np.cumprod(np.maximum(count - drawn_M, 0) / (total - drawn_M)), dtype=np.float64)


def _checked(scores_M: ArrayLike, values_M: ArrayLike) -> tuple[Floats, Floats]:
    scores_M, values_M = np.asarray(scores_M, dtype=np.float64), np.asarray(values_M, dtype=np.float64)
    if scores_M.shape != values_M.shape or scores_M.ndim != 1 or not len(scores_M):
        raise DataError(
            f"Best-of-N needs one score and one value for each of at least 1 answer, got shapes {scores_M.shape} and "
            f"{values_M.shape}; give two lists of one length."
        )
    return scores_M, values_M
