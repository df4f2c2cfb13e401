"""How each rule of a plan is tested: a table of results in, an estimate with its interval and a decision out.

Contract: `evaluate` judges one rule at one confidence; a claim that is false holds with probability at most
``1 - confidence``, seeds and units drawn at random. ``holds``: the interval lies within what is claimed.
``contradicted``: it lies wholly outside. Neither: the data cannot tell.

- difference: the interval of the mean of ``arm - against``, paired by seed and unit, lies beyond the margin, or that
  of one arm beyond the constant and the margin (the estimate is the arm's own then);
- equivalence: the interval at ``1 - 2 (1 - confidence)`` lies inside the margins (TOST, Schuirmann 1987,
  J Pharmacokinet Biopharm 15, 657);
- ordering: every neighbouring difference holds (intersection-union: no correction), the weakest is reported;
- trend: the slope's interval excludes zero, and Kendall's score within seeds agrees by its exact permutation test; the
  slope carries the luck of the units, which is common to all seeds and which permuting within seeds cannot see;
- rate: the Clopper-Pearson interval, of as many trials as the clustered outcomes are worth, keeps the bounds;
- baseline: the mean's interval lies above the best null value, a constant here, raised by the share of its size.

Means weigh seeds alike and, within a seed, units alike. What is compared with what: `stablerank.studies.pairing`; where
that is undefined the rule is undecided, its estimate NaN. Intervals and numerics: `stablerank.studies.intervals`.

Left out on purpose: models with covariates, and rules over two columns.

Legend: K arms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import pairwise

import numpy as np

from stablerank.studies.concordance import concordance
from stablerank.studies.intervals import Bounds, CrossedMean, error_rate
from stablerank.studies.pairing import Paired, UndefinedError, paired
from stablerank.studies.results import Table
from stablerank.studies.rules import Baseline, Difference, Equivalence, Ordering, Rate, Rule, Trend


@dataclass(frozen=True)
class Outcome:
    """What a rule came to.

    ``p``: the least error rate at which the rule would hold, before any correction; NaN with ``estimate`` when the rule
    cannot be decided, and ``method`` says why. ``n_units`` is 0 for a column of whole cells.
    """

    estimate: float
    low: float
    high: float
    p: float
    holds: bool
    contradicted: bool
    n_seeds: int
    n_units: int
    method: str

    @property
    def is_defined(self) -> bool:
        """Whether there was something to judge."""
        return not math.isnan(self.estimate)


def evaluate(rule: Rule, table: Table, confidence: float) -> Outcome:
    """Judge ``rule`` on every seed that all its arms have."""
    try:
        return _evaluate(rule, table, 1 - confidence)
    except UndefinedError as reason:
        return Outcome(math.nan, math.nan, math.nan, math.nan, False, False, 0, 0, str(reason))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); an undefined one counts as 1."""
    from statsmodels.stats.multitest import multipletests  # a second to load, and a verdict needs it once

    if not p_values:
        return []
    return [float(p) for p in multipletests(np.nan_to_num(p_values, nan=1.0), method="holm")[1]]


@singledispatch
def _evaluate(rule: Rule, table: Table, alpha: float) -> Outcome:
    raise AssertionError(f"no test for {rule}")


@_evaluate.register
def _difference(rule: Difference, table: Table, alpha: float) -> Outcome:
    sample = paired(table, rule.column, rule.arms_read)
    above = rule.direction == "greater"
    threshold = rule.constant + (rule.margin if above else -rule.margin)
    return _judged(sample, _contrast(sample), alpha, threshold, above=above, method=_name(sample))


@_evaluate.register
def _equivalence(rule: Equivalence, table: Table, alpha: float) -> Outcome:
    sample = paired(table, rule.column, rule.arms_read)
    # Truth lies beyond one margin only, and that side alone would have to err, at most alpha: an interval of 2 alpha.
    bounds, method = _contrast(sample), f"{_name(sample)} (two one-sided tests)"
    over = _judged(sample, bounds, 2 * alpha, rule.constant - rule.margin, above=True, method=method)
    under = _judged(sample, bounds, 2 * alpha, rule.constant + rule.margin, above=False, method=method)
    return replace(
        over,
        p=max(over.p, under.p) / 2,
        holds=over.holds and under.holds,
        contradicted=over.contradicted or under.contradicted,
    )


@_evaluate.register
def _ordering(rule: Ordering, table: Table, alpha: float) -> Outcome:
    sample = paired(table, rule.column, rule.arms)
    weight_KK = np.eye(len(rule.arms))
    steps = [sample.mean(better_K - worse_K) for better_K, worse_K in pairwise(weight_KK)]
    outcomes = [_judged(sample, step, alpha, rule.margin, above=True, method=_name(sample)) for step in steps]
    weakest = max(range(len(steps)), key=lambda at: (outcomes[at].p, -outcomes[at].estimate))
    better, worse = rule.arms[weakest : weakest + 2]
    return replace(
        outcomes[weakest],
        holds=all(outcome.holds for outcome in outcomes),
        # One step that fails contradicts the whole, so that the steps share the error rate of contradicting.
        contradicted=any(step.interval(alpha / len(steps))[1] <= rule.margin for step in steps),
        method=f"weakest of {len(steps)} steps ({better} over {worse}), {outcomes[weakest].method}",
    )


@_evaluate.register
def _trend(rule: Trend, table: Table, alpha: float) -> Outcome:
    sample = paired(table, rule.column, rule.arms)
    above = rule.direction == "increasing"
    place_K = np.arange(len(rule.arms)) - (len(rule.arms) - 1) / 2
    slope = sample.mean(place_K / (place_K @ place_K))
    tau, p = concordance(sample.seed_means() if above else -sample.seed_means())
    name = f"{_name(sample)} of the slope per arm, tau {tau:+.2f} within seeds (permutation p {p:.2g}),"
    judged = _judged(sample, slope, alpha, 0.0, above=above, method=name)
    return replace(judged, p=max(judged.p, p), holds=judged.holds and p <= alpha)


@_evaluate.register
def _rate(rule: Rate, table: Table, alpha: float) -> Outcome:
    sample = paired(table, rule.column, (rule.arm,))
    odd = [value for value in np.unique(sample.value_KR) if value not in (0.0, 1.0)]
    if odd:
        raise UndefinedError(f"a rate needs zeros and ones, but {rule.column} of {rule.arm} holds {odd[0]:.6g}")
    bounds = sample.share()
    method = f"Clopper-Pearson interval of {bounds.trials(alpha):.4g} effective trials"
    sides = [(rule.at_least, True), (rule.at_most, False)]
    outcomes = [
        _judged(sample, bounds, alpha, threshold, above=above, method=method)
        for threshold, above in sides
        if threshold is not None
    ]
    return replace(
        outcomes[0],
        p=max(outcome.p for outcome in outcomes),
        holds=all(outcome.holds for outcome in outcomes),
        contradicted=any(outcome.contradicted for outcome in outcomes),
    )


@_evaluate.register
def _baseline(rule: Baseline, table: Table, alpha: float) -> Outcome:
    null_values = np.concatenate([paired(table, rule.column, (null,)).seed_means()[0] for null in rule.nulls])
    best = float(null_values.max())
    bar = best + rule.share * abs(best)
    sample = paired(table, rule.column, (rule.arm,))
    harder = f"best of {len(null_values)} null values and {100 * rule.share:.4g} %"
    return _judged(
        sample, sample.mean([1.0]), alpha, bar, above=True, method=f"{_name(sample)}, to beat {bar:.4g} ({harder}),"
    )


def _contrast(sample: Paired) -> CrossedMean:
    return sample.mean([1.0] if len(sample.value_KR) == 1 else [1.0, -1.0])


def _name(sample: Paired) -> str:
    return "t interval" if sample.unit_R is None else "two-way t interval"


def _judged(sample: Paired, bounds: Bounds, alpha: float, threshold: float, *, above: bool, method: str) -> Outcome:
    """Whether the truth lies beyond one threshold."""
    low, high = bounds.interval(alpha)
    return Outcome(
        bounds.estimate,
        low,
        high,
        error_rate(bounds, threshold, above=above),
        holds=low > threshold if above else high < threshold,
        contradicted=high <= threshold if above else low >= threshold,
        n_seeds=sample.n_seeds,
        n_units=sample.n_units,
        method=f"{100 * (1 - alpha):.4g} % {method} over {sample.sample}",
    )
