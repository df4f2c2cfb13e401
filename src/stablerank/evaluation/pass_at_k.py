"""pass@k: the chance that at least one of k sampled completions is right, without bias.

With c right among n samples of a problem, ``pass@k = 1 - C(n-c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374,
eq. 1): the survival function at 0 of a hypergeometric draw, and computed as such. fp64; right to 1e-12 up to n = 1000.
The naive ``1 - (1 - c/n)^k`` is biased low and left out on purpose.

Legend: P problems, N samples of each.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from stablerank.errors import DataError


def pass_at_k(right_PN: ArrayLike, k: int) -> NDArray[np.float64]:
    """pass@k of each problem, ``(P,)``, from its N verdicts; the mean over problems is the usual number.

    Raises DataError unless 1 <= k <= N.
    """
    right_PN = np.asarray(right_PN, dtype=bool)
    samples = right_PN.shape[1]
    if not 1 <= k <= samples:
        raise DataError(f"pass@{k} cannot be estimated from {samples} samples a problem; choose k in 1..{samples}")
    return np.asarray(hypergeom.sf(0, samples, right_PN.sum(axis=1), k))
