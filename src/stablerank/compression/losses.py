"""The losses of all modules in a few numbers.

Left out on purpose: means, which one broken module would rule.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stablerank.compression.distortion import UpdateLoss


@dataclass(frozen=True)
class LossSummary:
    """Over modules whose update is not zero; NaN where there is none."""

    median_error: float
    largest_error: float
    worst: str
    median_norm_ratio: float
    stable_rank_before: float
    """Median."""
    stable_rank_after: float
    """Median of the updates that compression did not make zero."""


def summary(losses: Sequence[UpdateLoss]) -> LossSummary:
    """Medians and the worst module."""
    known = [loss for loss in losses if loss.error == loss.error]
    if not known:
        return LossSummary(math.nan, math.nan, "none", *[math.nan] * 3)
    worst = max(known, key=lambda loss: loss.error)
    after = [loss.stable_rank_after for loss in known if loss.stable_rank_after == loss.stable_rank_after]
    return LossSummary(
        statistics.median(loss.error for loss in known),
        worst.error,
        worst.module,
        statistics.median(loss.norm_ratio for loss in known),
        statistics.median(loss.stable_rank_before for loss in known),
        statistics.median(after) if after else math.nan,
    )
