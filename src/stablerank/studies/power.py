"""What a study can see before it runs: the smallest effect that a rule would find with power 0.8.

Contract: `detectable` answers for one rule, `power_sentences` for every hypothesis of a plan whose column has an
expected ``spread``. Model: `stablerank.studies.designs`; test: `stablerank.studies.inference`. Of a mean, power is the
expected normal tail beyond the random half-width, by Gauss-Legendre over the quantiles of the variances it is made of;
with one source of error this is the noncentral t. Right-or-wrong units: `stablerank.studies.power_signs`; trends and
rates: `stablerank.studies.power_draws`.

Under Holm a hypothesis counts as the strictest step, ``(1 - confidence) / hypotheses``: the power is at least as said.
Of m neighbouring steps each may be missed with 0.2 / m (Bonferroni), and again the power is at least as said.

Numerics: fp64, power right to 1e-4 (trend and rate: 0.005); a rule takes under a second.

Left out on purpose: power after the fact, which only restates the p-value.

Legend: K arms, N nodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

from stablerank.studies.designs import Design
from stablerank.studies.plan import VERDICTS, Plan
from stablerank.studies.power_draws import least_effect, least_share, least_slope
from stablerank.studies.power_signs import expected_half_width, reach
from stablerank.studies.rules import Baseline, Equivalence, Ordering, Rate, Rule, Trend

Floats = NDArray[np.float64]

POWER = 0.8
_NODES = 200


def detectable(
    rule: Rule,
    plan: Plan,
    sigma_between: float,
    sigma_within: float,
    units: int,
    sigma_shared: float = 0.0,
) -> float:
    """The smallest effect, in the column's units, at which ``rule`` holds with power 0.8; inf where none is enough.

    Standard deviations and ``units`` as in `Spread`. The effect is the true difference (`Difference`), the smallest
    margin that can be shown for arms that are alike (`Equivalence`), the slope per arm (`Trend`), each neighbouring
    difference (`Ordering`), the lead over the raised best null value (`Baseline`), or the true share (`Rate`: the
    nearest to ``at_least``, else to ``at_most``).
    """
    design = Design(len(plan.seeds), units, sigma_between, sigma_within, sigma_shared)
    if design.is_blind:
        return math.inf
    effect = _detectable(rule, design, _error_rate(rule, plan))
    limits = VERDICTS.get(rule.column)
    possible = limits is None or effect <= reach(_weights(rule), limits)
    return effect if possible else math.inf


def power_sentences(plan: Plan) -> list[str]:
    """What the plan's seeds can find, one sentence a hypothesis."""
    return [f"{name}: {_sentence(plan, hypothesis.rule)}." for name, hypothesis in plan.hypotheses.items()]


@dataclass(frozen=True)
class _Mean:
    """A weighted sum of arms: the squared half-widths that seeds and units may show, the chance of each, the floor."""

    sd: float
    seeds_N: Floats
    units_N: Floats
    weight_N: Floats
    floor: Callable[[float], float]

    def half_N(self, effect: float) -> Floats:
        """The half-widths of the interval when the truth is ``effect``."""
        return np.sqrt(self.seeds_N + np.maximum(self.units_N, self.floor(effect) ** 2))

    def chance_above(self, threshold: float, effect: float) -> float:
        """That the interval lies above a threshold."""
        return float(self.weight_N @ ndtr((effect - threshold - self.half_N(effect)) / self.sd))

    def chance_within(self, margin: float) -> float:
        """That the interval lies within the margins when the truth is zero."""
        room_N = np.maximum(margin - self.half_N(0.0), 0.0)
        return float(self.weight_N @ (2 * ndtr(room_N / self.sd) - 1))


def _detectable(rule: Rule, design: Design, alpha: float) -> float:
    if isinstance(rule, Rate):
        return _share(rule, design, alpha)
    weight_K = _weights(rule)
    if isinstance(rule, Trend):
        return least_slope(design, weight_K, alpha, POWER, _floor(rule, design, weight_K, alpha))
    if isinstance(rule, Equivalence):
        mean = _mean(rule, design, weight_K, 2 * alpha)
        return least_effect(mean.chance_within, POWER, 0.0, mean.sd)
    mean = _mean(rule, design, weight_K, alpha)
    threshold = 0.0 if isinstance(rule, Baseline) else rule.margin
    steps = len(rule.arms) - 1 if isinstance(rule, Ordering) else 1
    return least_effect(partial(mean.chance_above, threshold), 1 - (1 - POWER) / steps, threshold, mean.sd)


def _share(rule: Rate, design: Design, alpha: float) -> float:
    """The share nearest to the first stated bound; a share that stays low is one of zeros that stays high."""
    if rule.at_least is not None:
        return least_share(design, rule.at_least, alpha, POWER)
    zeros = least_share(design, 1 - (rule.at_most or 0.0), alpha, POWER)
    return zeros if math.isinf(zeros) else 1 - zeros


def _weights(rule: Rule) -> Floats:
    if isinstance(rule, Trend):
        place_K = np.arange(len(rule.arms)) - (len(rule.arms) - 1) / 2
        return place_K / (place_K @ place_K)
    return np.array([1.0] if isinstance(rule, Baseline) or len(rule.arms_read) == 1 else [1.0, -1.0])


def _floor(rule: Rule, design: Design, weight_K: Floats, alpha: float) -> Callable[[float], float]:
    """What right-or-wrong units add to the interval at an effect, however little they scatter."""
    limits = VERDICTS.get(rule.column)
    if limits is None or not design.units:
        return lambda effect: 0.0
    return lambda effect: expected_half_width(design, weight_K, limits, effect, alpha)


def _mean(rule: Rule, design: Design, weight_K: Floats, alpha: float) -> _Mean:
    """The quadrature over the quantiles of both sources of error."""
    node_N, weight_N = np.polynomial.legendre.leggauss(_NODES)
    size = float(weight_K @ weight_K)
    squares = [
        size * variance * stdtrit(degrees, alpha / 2) ** 2 * chdtri(degrees, (1 - node_N) / 2) / degrees
        for variance, degrees in design.sources
    ]
    sd, floor = math.sqrt(size) * design.sd, _floor(rule, design, weight_K, alpha)
    if not design.units:
        return _Mean(sd, squares[0], np.zeros(1), weight_N / 2, floor)
    seeds_N, units_N = (grid.ravel() for grid in np.meshgrid(*squares))
    return _Mean(sd, seeds_N, units_N, np.outer(weight_N, weight_N).ravel() / 4, floor)


def _error_rate(rule: Rule, plan: Plan) -> float:
    primary = [hypothesis.rule for hypothesis in plan.hypotheses.values()]
    return (1 - plan.confidence) / (len(primary) if plan.correction == "holm" and rule in primary else 1)


def _sentence(plan: Plan, rule: Rule) -> str:
    seeds = _count(len(plan.seeds), "seed")
    spread = plan.spread.get(rule.column)
    if spread is None:
        return f"nobody knows what {seeds} can detect; state the expected spread.{rule.column} in the plan"
    sample = f"{seeds} and {_count(spread.units, 'unit')}" if spread.units else seeds
    effect = detectable(rule, plan, spread.between, spread.within, spread.units, spread.shared)
    if math.isinf(effect):
        return f"{sample} cannot confirm this {rule.kind} however large the effect; add seeds or units"
    return (
        f"{sample} can {_WORDS[rule.kind].format(effect)} in {rule.column} with power {POWER}{_shortfall(rule, effect)}"
    )


def _shortfall(rule: Rule, effect: float) -> str:
    if not isinstance(rule, Equivalence) or effect <= rule.margin:
        return ""
    return f", but the rule asks for {rule.margin:.2g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


_WORDS = {
    "difference": "detect a difference of {:.2g}",
    "equivalence": "show arms that are alike to differ by less than {:.2g}",
    "ordering": "detect neighbouring differences of {:.2g}",
    "trend": "detect a slope of {:.2g} an arm",
    "rate": "confirm a true share of {:.2g}",
    "baseline": "detect a lead of {:.2g} over the raised best null value",
}
