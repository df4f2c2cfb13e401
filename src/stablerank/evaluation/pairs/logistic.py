"""Logistic regression of preference on the difference of scores and the difference of log lengths.

Legend: P pairs.

    P(first preferred) = sigmoid(b_score * x / rms(x) + b_length * z / rms(z))

No intercept, since which response comes first means nothing: each pair stands in the sample both ways round, and
errors are cluster-robust over groups (`statsmodels` Logit, sandwich estimator), which also undoes the doubling. Both
differences are divided by their root mean square, so that coefficients of different scores can be compared. ``b_score``
is what the score says beyond length: 0 inside its interval means nothing that these pairs can show.

Where the two differences are collinear, or separate the pairs without error, or there are too few groups, there is no
estimate: a status says which.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stablerank.evaluation.pairs.resampling import Floats, group_numbers
from stablerank.evaluation.statistics import Interval

Status = Literal["fitted", "constant", "collinear", "separated", "too_few_groups"]
_FEWEST_GROUPS = 10
_MOST_CONDITION = 1e6
_NOTHING = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Regression:
    """Log-odds a root mean square of the score's difference, and of log length, with 95 % intervals."""

    score: Interval
    length: Interval
    status: Status


def length_regression(differences_P: Floats, log_ratios_P: Floats, groups_P: Sequence[str]) -> Regression:
    """The regression over pairs (chosen less rejected); NaN pairs are left out."""
    kept_P = ~np.isnan(differences_P)
    groups = [group for group, kept in zip(groups_P, kept_P, strict=True) if kept]
    columns_P2 = np.stack([differences_P[kept_P], log_ratios_P[kept_P]], axis=1)
    numbers_P, count = group_numbers(groups)
    if count < _FEWEST_GROUPS:
        return Regression(_NOTHING, _NOTHING, "too_few_groups")
    scales = np.sqrt((columns_P2**2).mean(axis=0))
    if not (scales > 0).all() or not np.isfinite(scales).all():
        return Regression(_NOTHING, _NOTHING, "constant")
    columns_P2 = columns_P2 / scales
    if np.linalg.cond(columns_P2) > _MOST_CONDITION:
        return Regression(_NOTHING, _NOTHING, "collinear")
    return _fitted(columns_P2, numbers_P, count)


def _fitted(columns_P2: Floats, numbers_P: np.ndarray, count: int) -> Regression:
    # Imported here: statsmodels takes a second, and accuracies alone never need it.
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, PerfectSeparationError, PerfectSeparationWarning

    preferred = np.repeat([1.0, 0.0], len(columns_P2))
    both_ways = np.concatenate([columns_P2, -columns_P2])
    clusters = {"groups": np.concatenate([numbers_P, numbers_P])}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            warnings.simplefilter("error", PerfectSeparationWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # exp of a large log-odds overflows on its way to 0
            fit = Logit(preferred, both_ways).fit(disp=0, maxiter=100, cov_type="cluster", cov_kwds=clusters)
    except (PerfectSeparationError, PerfectSeparationWarning, ConvergenceWarning, np.linalg.LinAlgError):
        return Regression(_NOTHING, _NOTHING, "separated")
    bounds = fit.conf_int(alpha=0.05)
    score, length = (
        Interval(float(value), float(low), float(high), count)
        for value, (low, high) in zip(fit.params, bounds, strict=True)
    )
    return Regression(score, length, "fitted")
