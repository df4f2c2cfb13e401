"""How each rule of a plan is tested: a table of results in, an estimate with its interval and a decision out.

Contract: `evaluate` judges one rule at one confidence; a claim that is false holds with probability at most
``1 - confidence``, seeds and units drawn at random. ``holds``: the interval lies within what is claimed.
``contradicted``: it lies wholly outside. Neither: the data cannot tell.

- difference: the interval of the mean of ``arm - against``, paired by seed and unit, lies beyond the margin;
- equivalence: the interval at ``1 - 2 (1 - confidence)`` lies inside the margins (TOST, Schuirmann 1987,
  J Pharmacokinet Biopharm 15, 657);
- ordering: every neighbouring difference holds (intersection-union: no correction), the weakest is reported;
- trend: the slope's interval excludes zero, and Kendall's score within seeds agrees by its exact permutation test; the
  slope carries the luck of the units, which is common to all seeds and which permuting within seeds cannot see;
- rate: the Clopper-Pearson interval, of as many trials as the clustered outcomes are worth, keeps the bounds;
- baseline: the mean's interval lies above the best null value, a constant here, raised by the share of its size.

Intervals and numerics: `stablerank.studies.intervals`. Means weigh seeds alike and, within a seed, units alike. A unit
without a number in one arm leaves the pair; a seed without any leaves the rule undecided (estimate NaN), for a seed
that could not be measured is no evidence. Unit values are used wherever every arm has them.

Left out on purpose: models with covariates, and rules over two columns.

Legend: K arms, R rows, S seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from itertools import pairwise

import numpy as np
from statsmodels.stats.multitest import multipletests

from stablerank.studies.concordance import concordance
from stablerank.studies.intervals import (
    Bounds,
    Codes,
    CrossedMean,
    Floats,
    crossed_mean,
    crossed_share,
    error_rate,
    sums,
)
from stablerank.studies.plan import VERDICTS
from stablerank.studies.results import WHOLE, Names, Table
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
    except _UndefinedError as reason:
        return Outcome(math.nan, math.nan, math.nan, math.nan, False, False, 0, 0, str(reason))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); an undefined one counts as 1."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(np.nan_to_num(p_values, nan=1.0), method="holm")[1]]


class _UndefinedError(Exception):
    """There is nothing to judge; the message says why."""


@dataclass(frozen=True)
class _Paired:
    """The numbers of K arms for the same seeds and units; codes count from 0."""

    value_KR: Floats
    seed_R: Codes
    unit_R: Codes | None
    limits: tuple[float, float] | None

    @property
    def n_seeds(self) -> int:
        return int(self.seed_R.max()) + 1

    @property
    def n_units(self) -> int:
        return 0 if self.unit_R is None else int(self.unit_R.max()) + 1

    @property
    def sample(self) -> str:
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds > 1 else ''}"
        return seeds if self.unit_R is None else f"{seeds} and {self.n_units} unit{'s' if self.n_units > 1 else ''}"

    def mean(self, weight_K: Sequence[float] | Floats) -> CrossedMean:
        """The mean of a weighted sum of the arms."""
        weight_K = np.asarray(weight_K, np.float64)
        scale = None if self.limits is None else max(_reach(weight_K, self.limits), _reach(-weight_K, self.limits))
        return crossed_mean(weight_K @ self.value_KR, self.seed_R, self.unit_R, scale)

    def seed_means(self) -> Floats:
        """Each arm's mean in each seed, (K, S)."""
        count_S = np.bincount(self.seed_R)
        return np.stack([sums(self.seed_R, value_R) / count_S for value_R in self.value_KR])

    def judged(self, bounds: Bounds, alpha: float, threshold: float, *, above: bool, method: str) -> Outcome:
        """Whether the truth lies beyond one threshold."""
        low, high = bounds.interval(alpha)
        return Outcome(
            bounds.estimate,
            low,
            high,
            error_rate(bounds, threshold, above=above),
            holds=low > threshold if above else high < threshold,
            contradicted=high <= threshold if above else low >= threshold,
            n_seeds=self.n_seeds,
            n_units=self.n_units,
            method=f"{100 * (1 - alpha):.4g} % {method} over {self.sample}",
        )


@singledispatch
def _evaluate(rule: Rule, table: Table, alpha: float) -> Outcome:
    raise AssertionError(f"no test for {rule}")


@_evaluate.register
def _difference(rule: Difference, table: Table, alpha: float) -> Outcome:
    paired = _paired(table, rule.column, rule.arms_read)
    above = rule.direction == "greater"
    threshold = rule.margin if above else -rule.margin
    return paired.judged(_contrast(paired), alpha, threshold, above=above, method=_name(paired))


@_evaluate.register
def _equivalence(rule: Equivalence, table: Table, alpha: float) -> Outcome:
    paired = _paired(table, rule.column, rule.arms_read)
    # Each side errs at most alpha, and both would have to err for a false claim: two intervals of 2 alpha.
    bounds, method = _contrast(paired), f"{_name(paired)} (two one-sided tests)"
    over = paired.judged(bounds, 2 * alpha, -rule.margin, above=True, method=method)
    under = paired.judged(bounds, 2 * alpha, rule.margin, above=False, method=method)
    return replace(
        over,
        p=max(over.p, under.p) / 2,
        holds=over.holds and under.holds,
        contradicted=over.contradicted or under.contradicted,
    )


@_evaluate.register
def _ordering(rule: Ordering, table: Table, alpha: float) -> Outcome:
    paired = _paired(table, rule.column, rule.arms)
    weight_KK = np.eye(len(rule.arms))
    steps = [paired.mean(better_K - worse_K) for better_K, worse_K in pairwise(weight_KK)]
    outcomes = [paired.judged(step, alpha, rule.margin, above=True, method=_name(paired)) for step in steps]
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
    paired = _paired(table, rule.column, rule.arms)
    above = rule.direction == "increasing"
    place_K = np.arange(len(rule.arms)) - (len(rule.arms) - 1) / 2
    slope = paired.mean(place_K / (place_K @ place_K))
    tau, p = concordance(paired.seed_means() if above else -paired.seed_means())
    name = f"{_name(paired)} of the slope per arm, tau {tau:+.2f} within seeds (permutation p {p:.2g}),"
    judged = paired.judged(slope, alpha, 0.0, above=above, method=name)
    return replace(judged, p=max(judged.p, p), holds=judged.holds and p <= alpha)


@_evaluate.register
def _rate(rule: Rate, table: Table, alpha: float) -> Outcome:
    paired = _paired(table, rule.column, (rule.arm,))
    odd = [value for value in np.unique(paired.value_KR) if value not in (0.0, 1.0)]
    if odd:
        raise _UndefinedError(f"a rate needs zeros and ones, but {rule.column} of {rule.arm} holds {odd[0]:.6g}")
    bounds = crossed_share(paired.value_KR[0], paired.seed_R, paired.unit_R)
    method = f"Clopper-Pearson interval of {bounds.trials(alpha):.4g} effective trials"
    sides = [(rule.at_least, True), (rule.at_most, False)]
    outcomes = [
        paired.judged(bounds, alpha, threshold, above=above, method=method)
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
    null_values = np.concatenate([_paired(table, rule.column, (null,)).seed_means()[0] for null in rule.nulls])
    best = float(null_values.max())
    bar = best + rule.share * abs(best)
    paired = _paired(table, rule.column, (rule.arm,))
    method = f"{_name(paired)}, to beat {bar:.4g} (best of {len(null_values)} null values and {100 * rule.share:.4g} %),"
    return paired.judged(paired.mean([1.0]), alpha, bar, above=True, method=method)


def _contrast(paired: _Paired) -> CrossedMean:
    return paired.mean([1.0] if len(paired.value_KR) == 1 else [1.0, -1.0])


def _name(paired: _Paired) -> str:
    return "t interval" if paired.unit_R is None else "two-way t interval"


def _paired(table: Table, column: str, arms: Sequence[str]) -> _Paired:
    """The numbers of ``arms`` at every seed and unit that all of them have."""
    rows_K = [table.rows(arm, column) for arm in arms]
    for arm, rows in zip(arms, rows_K, strict=True):
        if not len(rows):
            raise _UndefinedError(f"no result of arm {arm} has column {column}")
    has_unit_K = [table.unit_R[rows] != WHOLE for rows in rows_K]
    by_unit = all(has_unit.any() for has_unit in has_unit_K)
    rows_K = [rows[has_unit == by_unit] for rows, has_unit in zip(rows_K, has_unit_K, strict=True)]
    seeds = _common([table.seed_R[rows] for rows in rows_K])
    if not len(seeds):
        raise _UndefinedError(f"arms {', '.join(arms)} have no seed in common for column {column}")
    rows_KR = _matched(table, rows_K)
    rows_KR = rows_KR[:, ~np.isnan(table.value_R[rows_KR]).any(axis=0)]
    defined, seed_R = np.unique(table.seed_R[rows_KR[0]], return_inverse=True)
    if len(defined) < len(seeds):
        lost = np.setdiff1d(seeds, defined)[0]
        raise _UndefinedError(f"column {column} is undefined for seed {lost} in {' or '.join(arms)}")
    unit_R = _codes(table.unit_R[rows_KR[0]]) if by_unit else None
    return _Paired(table.value_R[rows_KR], seed_R, unit_R, _limits(table, column, by_unit))


def _matched(table: Table, rows_K: Sequence[Codes]) -> Codes:
    """Rows (K, R) so that each column of them is one seed and unit, in every arm."""
    if len(rows_K) == 1:
        return rows_K[0][None]
    joint = np.concatenate(rows_K)
    unit = _codes(table.unit_R[joint])
    _, seed = np.unique(table.seed_R[joint], return_inverse=True)
    keys_K = np.split(seed * (unit.max() + 1) + unit, np.cumsum([len(rows) for rows in rows_K])[:-1])
    common = _common(keys_K)
    orders = [np.argsort(keys) for keys in keys_K]
    return np.stack(
        [
            rows[order[np.searchsorted(keys, common, sorter=order)]]
            for rows, keys, order in zip(rows_K, keys_K, orders, strict=True)
        ]
    )


def _common(values_K: Sequence[Codes]) -> Codes:
    return reduce(np.intersect1d, values_K[1:], np.unique(values_K[0]))


def _codes(name_R: Names) -> Codes:
    """Numbers from 0 for names, in the order in which they appear."""
    names = name_R.tolist()
    code_of = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([code_of[name] for name in names], np.int64)


def _reach(weight_K: Floats, limits: tuple[float, float]) -> float:
    """The largest weighted sum of values within limits."""
    least, most = limits
    return float(np.where(weight_K > 0, weight_K * most, weight_K * least).sum())


def _limits(table: Table, column: str, by_unit: bool) -> tuple[float, float] | None:
    """The least and the largest possible number of a column of verdicts or of their differences, None of any other.

    Of a column that the plan does not know, every arm is asked. One alone would not tell: the update of a run at
    learning rate 0 is exactly 0 everywhere, and is a measurement.
    """
    if by_unit and column in VERDICTS:
        return VERDICTS[column]
    least = 0.0
    for arm in table.arms(column):
        rows = table.rows(arm, column)
        value = table.value_R[rows[(table.unit_R[rows] != WHOLE) == by_unit]]
        value = value[~np.isnan(value)]
        if not ((value == 0) | (np.abs(value) == 1)).all():
            return None
        least = float(value.min(initial=least))
    return least, 1.0
