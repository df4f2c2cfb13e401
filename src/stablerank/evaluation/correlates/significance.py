"""p-values from the draws of a bootstrap, and p-values corrected for their number.

Legend: B draws.

Left out on purpose: p-values that take the answers to one prompt as independent.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_GROUPS = 10
"""Groups below which there is no p-value: few groups have too little spread, and one has none at all."""


def sign_p_value(draws_B: NDArray[np.float64], groups: int) -> float:
    """Two-sided p for "zero": twice the share of draws on the rarer side of it, at least 2 / (B + 1).

    Where it is below 0.05, the 95 % percentile interval leaves out zero. NaN where more than 5 % of the draws are, and
    below `FEWEST_GROUPS`.
    """
    found = draws_B[np.isfinite(draws_B)]
    if groups < FEWEST_GROUPS or not len(found) or len(found) < 0.95 * len(draws_B):
        return float("nan")
    beyond = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(found) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); an undefined one stays NaN and is not counted."""
    from statsmodels.stats.multitest import multipletests  # a second to load

    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(given), np.nan)
    defined = ~np.isnan(given)
    if defined.any():
        corrected[defined] = multipletests(given[defined], method="holm")[1]
    return [float(p) for p in corrected]
