"""How wide the interval of right-or-wrong outcomes is expected to be, where few outcomes differ.

Contract: `expected_half_width` is the `Signs.half_widths` of `stablerank.studies.intervals` at the shares of positive
and negative outcomes that a true mean and the scatter of a design come with. An outcome that is not zero is at least as
large as the least weight of the contrast, and no mean size exceeds the root of the mean square: the lesser of these two
bounds stands for the mean size of a unit's outcome, which errs towards wide intervals.

fp64. Left out on purpose: how this width varies from study to study.

Legend: K arms.
"""

import math

import numpy as np
from numpy.typing import NDArray

from stablerank.studies.designs import Design
from stablerank.studies.intervals import Share, Signs

Floats = NDArray[np.float64]


def expected_half_width(
    design: Design, weight_K: Floats, limits: tuple[float, float], effect: float, alpha: float
) -> float:
    """Half-width towards zero of the mean of ``weight_K`` times outcomes in ``limits``, the truth being ``effect``."""
    size = float(weight_K @ weight_K)
    one_square = size * (design.within**2 + design.shared**2) + effect**2
    square = size * (design.within**2 / design.seeds + design.shared**2) + effect**2
    least = float(np.abs(weight_K[weight_K != 0]).min())
    mean_size = max(min(one_square / least, math.sqrt(square)), abs(effect))
    furthest = reach(weight_K, limits)

    def share(sign: int) -> Share:
        part = (1 + sign * effect / mean_size) / 2 if mean_size else 0.0
        mean = min(part * mean_size / furthest, 1.0)
        variance = part * square / furthest**2 - mean**2
        repeats = min(mean * (1 - mean) / variance, design.seeds) if variance > 0 else 1.0
        return Share(mean, design.units * repeats)

    return Signs(share(1), share(-1), furthest, design.units).half_widths(alpha)[0]


def reach(weight_K: Floats, limits: tuple[float, float]) -> float:
    """The largest size of ``weight_K`` times outcomes in ``limits``."""
    product_KL = np.outer(weight_K, limits)
    return float(max(product_KL.max(axis=1).sum(), -product_KL.min(axis=1).sum()))
