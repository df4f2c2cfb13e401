"""Power of the rules whose test is more than one interval of a mean: a trend and a rate, on fixed random draws.

Contract: `least_slope` and `least_share` give the smallest truth at which the rule holds with the power asked for; inf
where none is enough. The draws are those of `stablerank.studies.designs`; the tests are those of
`stablerank.studies.inference`, for all draws at once.

Numerics: 20,000 draws of a fixed seed, the power right to 0.005; fp64; well under a second.

Left out on purpose: ties within a seed, and the steps of a share of few trials, which is drawn as normal.

Legend: K arms, N draws, S seeds, P pairs of arms.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri, stdtrit

from stablerank.studies.designs import Design

Floats = NDArray[np.float64]

_DRAWS = 20_000


def least_slope(design: Design, weight_K: Floats, alpha: float, power: float, floor: Callable[[float], float]) -> float:
    """The slope per arm at which interval and Kendall's test both find a rising trend.

    ``weight_K`` makes the slope of the arms' means; ``floor`` is the least half-width from units at a slope.
    """
    most = _most_inversions(len(weight_K), design.seeds, alpha)
    if most < 0:
        return math.inf
    value_NKS, inner_N = _arms(design, len(weight_K))
    slope_NS = np.einsum("k,nks->ns", weight_K, value_NKS)
    inner_N = inner_N * (weight_K @ weight_K) * stdtrit(max(design.units - 1, 1), alpha / 2) ** 2
    outer_N = slope_NS.var(axis=1, ddof=1) / design.seeds * stdtrit(design.seeds - 1, alpha / 2) ** 2
    # A pair is in order from some slope on, so the slopes at which pairs fall into order, sorted, count inversions.
    first, second = np.triu_indices(len(weight_K), k=1)
    order_NPS = (value_NKS[:, first] - value_NKS[:, second]) / (second - first)[:, None]
    in_order_N = -np.sort(-order_NPS.reshape(_DRAWS, -1), axis=1)[:, most]

    def chance(slope: float) -> float:
        half_N = np.sqrt(outer_N + np.maximum(inner_N, floor(slope) ** 2))
        return float(np.mean((slope + slope_NS.mean(axis=1) > half_N) & (slope >= in_order_N)))

    return least_effect(chance, power, 0.0, design.sd)


def least_effect(power: Callable[[float], float], target: float, threshold: float, sd: float) -> float:
    """The effect beyond ``threshold`` at which a rising power reaches its target, sought in multiples of ``sd``."""
    step = sd
    while power(threshold + step) < target:
        step *= 2
    return float(brentq(lambda effect: power(effect) - target, threshold, threshold + step, xtol=1e-6 * step))


def least_share(design: Design, bound: float, alpha: float, power: float) -> float:
    """The true share at which Clopper-Pearson of the effective trials lies above ``bound``; it needs units.

    Outcomes of one seed and of one unit are as alike as ``between`` and ``shared`` say at ``bound``, at every share.
    """
    if not design.units:
        return math.inf
    generator = np.random.default_rng(0)
    luck_N = generator.standard_normal(_DRAWS)
    chi_CN = [generator.chisquare(degrees, _DRAWS) / degrees for _, degrees in design.sources]
    # A right-or-wrong value has no variance but this; what seeds and units leave is the luck of the single trial.
    whole = bound * (1 - bound)
    within = math.sqrt(max(whole - design.between**2 - design.shared**2, 0.0))
    at_bound = replace(design, within=within)

    def lack(share: float) -> float:
        size = math.sqrt(share * (1 - share) / whole)
        seen_N = np.clip(share + size * at_bound.sd * luck_N, 0, 1)
        terms = zip(at_bound.sources, chi_CN, strict=True)
        square_N = sum(variance * chi_N * stdtrit(degrees, alpha / 2) ** 2 for (variance, degrees), chi_N in terms)
        return power - float(np.mean(_lowest_share(seen_N, size**2 * square_N, design.units, alpha) > bound))

    return math.inf if lack(1.0) > 0 else float(brentq(lack, bound, 1.0, xtol=1e-6))


def _lowest_share(seen_N: Floats, square_N: Floats, units: int, alpha: float) -> Floats:
    """The lower Clopper-Pearson bounds; all ones or all zeros show no spread, and count as independent."""
    trials_N = np.full(len(seen_N), float(units))
    spread = (seen_N > 0) & (seen_N < 1)
    np.divide(seen_N * (1 - seen_N) * ndtri(alpha / 2) ** 2, square_N, out=trials_N, where=spread)
    trials_N = np.minimum(trials_N, units)
    low_N: Floats = betaincinv(seen_N * trials_N, (1 - seen_N) * trials_N + 1, alpha / 2)
    return np.where(seen_N > 0, low_N, 0.0)


def _arms(design: Design, arms: int) -> tuple[Floats, Floats]:
    """Seed means of arms without a trend, and the variance that the units' means would give one arm's mean."""
    generator = np.random.default_rng(0)
    units = max(design.units, 1)
    own = math.sqrt(design.between**2 + (design.within**2 / units if design.units else 0.0))
    value_NKS = own * generator.standard_normal((_DRAWS, arms, design.seeds))
    if not design.units:
        return value_NKS, np.zeros(_DRAWS)
    value_NKS += design.shared / math.sqrt(units) * generator.standard_normal((_DRAWS, arms, 1))
    variance, degrees = design.sources[1]
    return value_NKS, variance * generator.chisquare(degrees, _DRAWS) / degrees


def _most_inversions(arms: int, seeds: int, alpha: float) -> int:
    """The most pairs out of order, over all seeds, that chance undercuts or meets so rarely; -1 for none.

    The inversions of all orders of K values have the generating function of MacMahon (1915).
    """
    chance, whole = np.ones(1), np.ones(1)
    for arm in range(1, arms + 1):
        chance = np.convolve(chance, np.full(arm, 1 / arm))
    for _ in range(seeds):
        whole = np.convolve(whole, chance)
    return int(np.searchsorted(np.cumsum(whole), alpha * (1 + 1e-9), side="right")) - 1
