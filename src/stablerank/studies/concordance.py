"""Does a number rise along ordered arms? Kendall's score within each seed, against every order of its arms.

Contract: `concordance` gives Kendall's tau over all seeds and the exact one-sided p-value of its score, the number of
pairs of arms in the stated order less those against it. Under the null hypothesis the arms of one seed may change
places, seeds being independent: the Jonckheere test of a blocked design.

The number of inversions of all orders of K values, ties among them, has the Gaussian multinomial coefficient as its
generating function (MacMahon 1915; Stanley, Enumerative Combinatorics 1, proposition 1.7.1), so nothing is sampled and
nothing is enumerated; the sum over seeds is a product of Fourier transforms, right to 1e-12 absolute. fp64;
O(S K^2 log(S K)).

Left out on purpose: units. Where every seed sees the same units, their luck is common to all seeds, and an interval
that resamples units must agree (`stablerank.studies.inference`).

Legend: K arms, S seeds, N scores.
"""

from collections import Counter
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def concordance(value_KS: Floats) -> tuple[float, float]:
    """Kendall's tau-a of the rows' order, over all columns, and the p-value of a tau as large."""
    first, second = np.triu_indices(len(value_KS), k=1)
    sign_PS = np.sign(value_KS[second] - value_KS[first])
    score, pairs = int(sign_PS.sum()), sign_PS.size
    # A score of one seed is (untied pairs) - 2 (inversions), so scores of all seeds step by 2 from the least one.
    untied = int(np.abs(sign_PS).sum())
    inversions = (untied - score) // 2
    return score / pairs, float(np.clip(_inversions(value_KS, untied)[: inversions + 1].sum(), 0, 1))


def _inversions(value_KS: Floats, most: int) -> Floats:
    """Probability of each number of inversions, 0 to ``most``, summed over seeds."""
    ties = Counter(tuple(sorted(Counter(column).values())) for column in value_KS.T.tolist())
    size = most + 1
    spectrum = np.ones(size // 2 + 1, np.complex128)
    for groups, seeds in ties.items():
        spectrum *= np.fft.rfft(_multinomial(groups), size) ** seeds
    return np.fft.irfft(spectrum, size)


def _multinomial(groups: tuple[int, ...]) -> Floats:
    """Coefficients of the Gaussian multinomial of group sizes, over their sum."""
    product, total = np.ones(1), 0
    for group in groups:
        total += group
        product = np.convolve(product, _binomial(total, group))
    return product / product.sum()


@cache
def _binomial(n: int, k: int) -> Floats:
    """Coefficients of the Gaussian binomial, by [n, k] = [n-1, k-1] + q^k [n-1, k]."""
    if k in (0, n):
        return np.ones(1)
    table = np.zeros(k * (n - k) + 1)
    keep, shift = _binomial(n - 1, k - 1), _binomial(n - 1, k)
    table[: len(keep)] += keep
    table[k:] += shift
    return table
