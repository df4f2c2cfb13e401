"""Each rule against somebody else's test, at its edges, and on simulated studies whose truth is known."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from stablerank.studies.inference import evaluate, holm
from stablerank.studies.results import WHOLE, Table
from stablerank.studies.rules import Baseline, Difference, Equivalence, Ordering, Rate, Trend

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_draws_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def table(column="x", /, **values_of):
    """One column from arrays (seeds,) or (seeds, units), or dictionaries {(seed, unit): value}, by arm."""
    rows = [
        (f"{arm}--{seed}", arm, seed, unit, column, value)
        for arm, values in values_of.items()
        for (seed, unit), value in (values if isinstance(values, dict) else named(np.asarray(values, float))).items()
    ]
    cell, arms, seed, unit, columns, value = (np.array(entries, dtype=object) for entries in zip(*rows, strict=True))
    return Table(cell, arms, seed.astype(np.int64), unit, columns, value.astype(float))


def named(values):
    if values.ndim == 1:
        return {(seed, WHOLE): value for seed, value in enumerate(values)}
    return {(seed, f"u{unit}"): value for (seed, unit), value in np.ndenumerate(values)}


def interval(outcome):
    return outcome.low, outcome.high


# Oracles


def test_difference_is_the_paired_t_test():
    a_S, b_S = RNG.normal(2, 1, 6), RNG.normal(1, 1, 6)
    oracle = stats.ttest_rel(a_S, b_S)
    for confidence in (0.9, 0.99):
        outcome = evaluate(Difference(column="x", arm="a", against="b"), table(a=a_S, b=b_S), confidence)
        bounds = oracle.confidence_interval(confidence)
        assert outcome.estimate == pytest.approx((a_S - b_S).mean())
        assert interval(outcome) == pytest.approx((bounds.low, bounds.high))
        assert outcome.p == pytest.approx(oracle.pvalue)
        assert outcome.holds == (oracle.pvalue < 1 - confidence)
        assert (outcome.n_seeds, outcome.n_units) == (6, 0)


@pytest.mark.parametrize(
    ("margin", "direction", "holds", "contradicted"),
    [
        (0.0, "greater", False, True),
        (0.0, "less", True, False),
        (0.9, "less", True, False),
        (1.0, "less", False, False),
        (1.2, "less", False, True),
    ],
)
def test_difference_beyond_a_margin(margin, direction, holds, contradicted):
    rule = Difference(column="x", arm="a", margin=margin, direction=direction)
    outcome = evaluate(rule, table(a=[-0.99, -1.0, -1.01]), 0.95)
    assert (outcome.holds, outcome.contradicted) == (holds, contradicted)
    assert outcome.holds == (outcome.p <= 0.05)


@pytest.mark.parametrize("direction", ["greater", "less"])
def test_a_constant_stands_where_another_arm_would(direction):
    a_S = RNG.normal(0.2, 1, 9)
    rule = {"column": "x", "arm": "a", "direction": direction, "margin": 0.3}
    outcome = evaluate(Difference(**rule, constant=1.5), table(a=a_S), 0.95)
    beside = evaluate(Difference(**rule, against="b"), table(a=a_S, b=np.full(9, 1.5)), 0.95)
    assert (outcome.p, outcome.holds) == (pytest.approx(beside.p), beside.holds)
    assert interval(outcome) == pytest.approx(np.array(interval(beside)) + 1.5), "the estimate is the arm's own"
    one_sided = "greater" if direction == "greater" else "less"
    p = stats.ttest_1samp(a_S, 1.5 + (0.3 if direction == "greater" else -0.3), alternative=one_sided).pvalue
    assert outcome.p == pytest.approx(2 * p if p < 0.5 else 1.0)


def test_equivalence_about_a_constant_is_tost_of_what_is_left():
    a_S = RNG.normal(7.1, 0.3, 9)
    about = evaluate(Equivalence(column="x", arm="a", constant=7.0, margin=0.5), table(a=a_S), 0.95)
    zero = evaluate(Equivalence(column="x", arm="a", margin=0.5), table(a=a_S - 7.0), 0.95)
    assert about.holds == zero.holds and about.p == pytest.approx(zero.p)


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_equivalence_is_tost(margin):
    a_S, b_S = RNG.normal(0.2, 1, 9), RNG.normal(0, 1, 9)
    outcome = evaluate(Equivalence(column="x", arm="a", against="b", margin=margin), table(a=a_S, b=b_S), 0.95)
    p = ttost_paired(a_S, b_S, -margin, margin)[0]
    if p < 0.5:
        assert outcome.p == pytest.approx(p)
    assert outcome.holds == (p < 0.05)
    ninety = stats.ttest_rel(a_S, b_S).confidence_interval(0.9)
    assert interval(outcome) == pytest.approx((ninety.low, ninety.high))
    assert "90 %" in outcome.method


def test_equivalence_is_contradicted_outside_its_margins_on_either_side():
    rule = Equivalence(column="x", arm="a", margin=1.0)
    for sign in (-1, 1):
        outcome = evaluate(rule, table(a=sign * np.array([4.9, 5.0, 5.1])), 0.95)
        assert outcome.contradicted and not outcome.holds and outcome.p > 0.4
    assert not evaluate(rule, table(a=[0.0, 1.0, 2.0]), 0.95).contradicted


def test_ordering_is_its_weakest_step():
    values = {name: RNG.normal(mean, 0.3, 5) for name, mean in (("a", 9), ("b", 5), ("c", 4.5))}
    outcome = evaluate(Ordering(column="x", arms=("a", "b", "c"), margin=0.1), table(**values), 0.95)
    steps = [stats.ttest_1samp(values[x] - values[y], 0.1) for x, y in (("a", "b"), ("b", "c"))]
    assert outcome.p == pytest.approx(max(step.pvalue for step in steps))
    bounds = stats.ttest_rel(values["b"], values["c"]).confidence_interval()
    assert interval(outcome) == pytest.approx((bounds.low, bounds.high))
    assert "b over c" in outcome.method
    swapped = evaluate(Ordering(column="x", arms=("b", "a", "c")), table(**values), 0.95)
    assert swapped.contradicted and not swapped.holds and swapped.estimate < 0


def test_ordering_shares_the_error_rate_of_contradiction_among_its_steps():
    step_S = np.array([-0.2, -0.1, 0.1, 0.2])
    standard = step_S.std(ddof=1) / 2
    for confidence, contradicted in ((0.97, (True, False)), (0.98, (True, True)), (0.94, (False, False))):
        lead_S = step_S - stats.t.ppf((1 + confidence) / 2, 3) * standard
        values = table(a=np.zeros(4), b=-lead_S, c=np.full(4, -9.0))
        found = (Difference(column="x", arm="a", against="b"), Ordering(column="x", arms=("a", "b", "c")))
        assert tuple(evaluate(rule, values, 0.95).contradicted for rule in found) == contradicted


@pytest.mark.parametrize("direction", ["increasing", "decreasing"])
def test_trend_is_the_slope_and_the_permutation_test(direction):
    sign = 1 if direction == "increasing" else -1
    values_KS = sign * np.array([[0.0, 0.3, 0.1], [0.9, 1.2, 1.1], [1.0, 2.3, 0.9]])
    arms = dict(zip("abc", values_KS, strict=True))
    outcome = evaluate(Trend(column="x", arms=tuple("abc"), direction=direction), table(**arms), 0.9)
    slopes = np.polyfit(np.arange(3), values_KS, 1)[0]
    student = stats.ttest_1samp(slopes, 0.0)

    def agreeing(order_K):
        return sum(np.sign(sign * (y - x)) for i, y in enumerate(order_K) for x in order_K[:i])

    orders = product(*(permutations(column) for column in values_KS.T))
    scores = np.array([sum(map(agreeing, order)) for order in orders])
    permuted = (scores >= sum(map(agreeing, values_KS.T))).mean()
    assert outcome.estimate == pytest.approx(slopes.mean())
    assert outcome.p == pytest.approx(max(student.pvalue, permuted))
    bounds = student.confidence_interval(0.9)
    assert interval(outcome) == pytest.approx((bounds.low, bounds.high))
    assert outcome.holds == (outcome.p <= 0.1)
    assert not outcome.contradicted
    backwards = evaluate(Trend(column="x", arms=tuple("cba"), direction=direction), table(**arms), 0.8)
    assert backwards.contradicted and not backwards.holds


def test_a_steep_slope_without_an_order_is_no_trend():
    values = {"a": [0.0, 0.1, 0.0], "b": [-0.1, 0.0, 0.1], "c": [0.01, -0.01, 9.0], "d": [0.0, 0.05, 9.1]}
    outcome = evaluate(Trend(column="x", arms=tuple("abcd")), table(**values), 0.95)
    assert not outcome.holds


@pytest.mark.parametrize(("ones", "holds", "contradicted"), [(50, True, False), (41, False, False), (20, False, True)])
def test_rate_of_one_trial_a_seed_is_clopper_pearson(ones, holds, contradicted):
    outcome = evaluate(Rate(column="x", arm="a", at_least=0.8), table(a=np.arange(50) < ones), 0.95)
    assert interval(outcome) == pytest.approx(proportion_confint(ones, 50, 0.05, method="beta"))
    assert (outcome.holds, outcome.contradicted) == (holds, contradicted)
    if holds:
        assert outcome.p == pytest.approx(2 * stats.binomtest(ones, 50, 0.8, alternative="greater").pvalue)


@pytest.mark.parametrize(("ones", "holds", "contradicted"), [(25, True, False), (40, False, False), (49, False, True)])
def test_rate_between_two_bounds(ones, holds, contradicted):
    outcome = evaluate(Rate(column="x", arm="a", at_least=0.2, at_most=0.8), table(a=np.arange(50) < ones), 0.95)
    assert (outcome.holds, outcome.contradicted) == (holds, contradicted)


def test_baseline_is_a_t_test_against_the_raised_best_null():
    nulls = {f"n{i}": RNG.normal(2, 0.3, 4) for i in range(3)}
    arm_S = RNG.normal(4, 0.2, 4)
    outcome = evaluate(Baseline(column="x", arm="a", nulls=tuple(nulls), share=0.2), table(a=arm_S, **nulls), 0.95)
    best = max(values.max() for values in nulls.values())
    assert outcome.p == pytest.approx(stats.ttest_1samp(arm_S, 1.2 * best).pvalue)
    assert outcome.holds and "12 null values" in outcome.method


def test_a_negative_best_null_is_raised_too():
    values = {"n": [-2.0, -3.0, -4.0], "a": [-1.9, -1.9, -1.9]}
    assert evaluate(Baseline(column="x", arm="a", nulls=("n",), share=0.01), table(**values), 0.95).holds
    assert evaluate(Baseline(column="x", arm="a", nulls=("n",), share=0.10), table(**values), 0.95).contradicted


def test_holm_as_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, math.nan]) == pytest.approx([0.02, 1.0])
    assert holm([]) == []


# Edges


def test_numbers_are_paired_by_seed_and_unit_whatever_their_order():
    base = {(seed, f"u{unit}"): RNG.normal(0, 9) for seed in range(3) for unit in range(8)}
    raised = {key: base[key] + 1 + 0.01 * RNG.normal() for key in reversed(base)}
    outcome = evaluate(Difference(column="x", arm="a", against="b"), table(b=base, a=raised), 0.95)
    assert outcome.estimate == pytest.approx(1, abs=0.02) and outcome.holds


def test_units_without_a_number_leave_the_pair_on_both_sides():
    a = np.ones((3, 6)) + 0.01 * RNG.normal(size=(3, 6))
    b = np.zeros((3, 6))
    a[0, 1], b[2, 4] = np.nan, np.nan
    outcome = evaluate(Difference(column="x", arm="a", against="b"), table(a=a, b=b), 0.95)
    difference = a - b
    assert outcome.estimate == pytest.approx(np.nanmean(difference, axis=1).mean())
    assert (outcome.n_units, outcome.holds) == (6, True)


def test_only_units_and_seeds_that_all_arms_have_count():
    a = {(seed, f"u{unit}"): 1.0 + unit + seed for seed in (1, 2, 3) for unit in range(5)}
    b = {(seed, f"u{unit}"): float(unit) for seed in (2, 3, 4) for unit in range(3, 9)}
    outcome = evaluate(Difference(column="x", arm="a", against="b"), table(a=a, b=b), 0.95)
    assert (outcome.n_seeds, outcome.n_units) == (2, 2)
    assert outcome.estimate == pytest.approx(3.5)


def test_whole_cells_are_compared_where_one_arm_has_no_units():
    a = named(np.full((3, 4), 5.0)) | {(seed, WHOLE): 5.0 + 0.1 * seed for seed in range(3)}
    outcome = evaluate(Difference(column="x", arm="a", against="b"), table(a=a, b=[1.0, 1.1, 1.2]), 0.95)
    assert outcome.estimate == pytest.approx(4.0) and outcome.n_units == 0


RULES = [
    Difference(column="x", arm="a", against="b"),
    Equivalence(column="x", arm="a", against="b", margin=1.0),
    Ordering(column="x", arms=("a", "b", "c")),
    Trend(column="x", arms=("c", "b", "a")),
    Rate(column="x", arm="a", at_least=0.5),
    Baseline(column="x", arm="a", nulls=("b", "c")),
]
UNITS = {name: np.full((3, 6), value) for name, value in (("a", 1.0), ("b", 0.0), ("c", -1.0))}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_one_seed_decides_nothing(rule):
    outcome = evaluate(rule, table(**{name: values[:1] for name, values in UNITS.items()}), 0.95)
    assert (outcome.holds, outcome.contradicted) == (False, False)
    assert not math.isnan(outcome.estimate) and outcome.p >= 0.5


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda values: {name: of for name, of in values.items() if name != "a"}, "no result of arm a"),
        (lambda values: values | {"a": values["a"] + [[0.0], [math.nan], [0.0]]}, "undefined for seed 1"),
    ],
)
def test_a_missing_arm_or_an_undefined_seed_leaves_it_open(rule, damage, said):
    outcome = evaluate(rule, table(**damage(UNITS)), 0.95)
    assert math.isnan(outcome.estimate) and math.isnan(outcome.p) and not outcome.is_defined
    assert (outcome.holds, outcome.contradicted) == (False, False)
    assert said in outcome.method


def test_arms_without_a_seed_in_common_are_not_compared():
    values = {"a": {(1, WHOLE): 1.0, (2, WHOLE): 1.0}, "b": {(3, WHOLE): 0.0, (4, WHOLE): 0.0}}
    assert "no seed in common" in evaluate(RULES[0], table(**values), 0.95).method


def test_a_rate_of_something_else_is_undefined():
    outcome = evaluate(Rate(column="x", arm="a", at_least=0.5), table(a=[0.0, 1.0, 0.37]), 0.95)
    assert "holds 0.37" in outcome.method and not outcome.is_defined


def test_what_never_changes_is_equal_and_not_greater():
    """An arm trained at learning rate 0: exactly no change, a control that holds and a claim that is false."""
    frozen = table("relative_norm", frozen=np.zeros((3, 20)), other=np.full((3, 20), 0.01))
    assert evaluate(Equivalence(column="relative_norm", arm="frozen", margin=1e-6), frozen, 0.95).holds
    assert evaluate(Difference(column="relative_norm", arm="frozen"), frozen, 0.95).contradicted


def test_verdicts_that_never_change_are_equal_within_what_so_few_can_tell():
    few, many = (table("pass_at_1_gain", frozen=np.zeros((3, units))) for units in (40, 400))
    rule = Equivalence(column="pass_at_1_gain", arm="frozen", margin=0.02)
    assert not evaluate(rule, few, 0.95).holds and evaluate(rule, many, 0.95).holds


# Simulated studies with a known truth

STUDIES = 2000
SEEDS, UNITS_EACH = 3, 20


def drawn(kind, size):
    return RNG.standard_t(2, size) if kind == "heavy" else RNG.normal(size=size)


def crossed(kind, between, shared, within, units=UNITS_EACH):
    """(studies, seeds, units) of mean zero; ``between`` in the size that the mean over units has."""
    seed = between / math.sqrt(units) * drawn(kind, (STUDIES, SEEDS, 1))
    return seed + shared * drawn(kind, (STUDIES, 1, units)) + within * drawn(kind, (STUDIES, SEEDS, units))


def shares(rule, **values_of):
    """In what share of studies the rule holds, and is contradicted; values (studies, seeds[, units]) by arm."""
    study = table(**{arm: values[0] for arm, values in values_of.items()})
    outcomes = []
    for at in range(len(next(iter(values_of.values())))):
        study.value_R[:] = np.concatenate([values[at].ravel() for values in values_of.values()])
        outcomes.append(evaluate(rule, study, 0.95))
    return np.mean([outcome.holds for outcome in outcomes]), np.mean([outcome.contradicted for outcome in outcomes])


def at_most(share, level):
    """Whether so many errors in `STUDIES` are no proof (0.1 %) of an error rate above ``level``."""
    return stats.binomtest(round(share * STUDIES), STUDIES, level, alternative="greater").pvalue > 1e-3


NOISE = [
    ("normal", 1.0, 0.0, 1.0),
    ("normal", 0.1, 1.0, 0.0),
    ("normal", 0.5, 1.0, 1.0),
    ("heavy", 0.1, 1.0, 0.0),
    ("heavy", 1.0, 0.3, 1.0),
]


@pytest.mark.parametrize("noise", NOISE)
def test_difference_at_its_margin_is_seldom_confirmed(noise):
    rule = Difference(column="x", arm="a", against="b", margin=0.5)
    problems = 5 * drawn("normal", (STUDIES, 1, UNITS_EACH))
    a = problems + 0.5 + crossed(*noise)
    b = np.broadcast_to(problems, a.shape)
    holds, contradicted = shares(rule, a=a, b=b)
    assert at_most(holds, 0.025) and at_most(contradicted, 0.025)
    assert shares(rule, a=a[:100] + 9, b=b[:100])[0] > 0.8


def test_a_test_that_ignores_seeds_or_units_would_be_caught():
    for noise, axis in (((1.0, 0.0, 1.0), 1), ((0.0, 1.0, 1.0), 2)):
        values = crossed("normal", noise[0] * 5, noise[1], noise[2])
        pooled = stats.ttest_1samp(values.reshape(STUDIES, -1), 0.0, axis=1, alternative="greater").pvalue
        assert not at_most((pooled < 0.025).mean(), 0.025)
        one_way = stats.ttest_1samp(values.mean(axis=axis), 0.0, axis=1, alternative="greater").pvalue
        assert not at_most((one_way < 0.025).mean(), 0.025)


def mean_share(logit, spread):
    """Of a logit-normal population."""
    node_N, weight_N = np.polynomial.hermite_e.hermegauss(80)
    return float(weight_N @ expit(logit + spread * node_N) / weight_N.sum())


def verdicts(logit, between, shared, units):
    """Right or wrong, (studies, seeds, units): the arm's luck with each seed, and problems of their own difficulty."""
    chance = expit(logit + between * drawn("normal", (STUDIES, SEEDS, 1)) + shared)
    return (RNG.random((STUDIES, SEEDS, units)) < chance).astype(float)


@pytest.mark.parametrize(("logits", "between", "spread", "units"), [((1, 0), 0.5, 2, 60), ((3, 2), 0.2, 1, 20)])
def test_difference_of_verdicts_at_its_margin_is_seldom_confirmed(logits, between, spread, units):
    shared = spread * drawn("normal", (STUDIES, 1, units))
    a, b = (verdicts(logit, between, shared, units) for logit in logits)
    truth = mean_share(logits[0], math.hypot(between, spread)) - mean_share(logits[1], math.hypot(between, spread))
    holds, contradicted = shares(Difference(column="x", arm="a", against="b", margin=truth), a=a, b=b)
    assert at_most(holds, 0.025) and at_most(contradicted, 0.025)


@pytest.mark.parametrize("noise", NOISE[1:4])
def test_equivalence_at_its_margin_is_seldom_confirmed(noise):
    rule, a = Equivalence(column="x", arm="a", margin=2.0), 2.0 + crossed(*noise)
    holds, contradicted = shares(rule, a=a)
    assert at_most(holds, 0.05) and at_most(contradicted, 0.05)
    if noise[0] == "normal":
        assert shares(rule, a=a[:100] - 2.0)[0] > 0.8


@pytest.mark.parametrize(("truth", "units"), [(0.05, 60), (0.1, 50)])
def test_equivalence_of_rarely_changing_verdicts_at_its_margin_is_seldom_confirmed(truth, units):
    """Every seed changes the same few problems, one way: skewed, discrete, and often no change at all."""
    changed = (RNG.random((STUDIES, 1, units)) < truth).astype(float)
    holds, _ = shares(Equivalence(column="x", arm="a", margin=truth), a=np.repeat(changed, SEEDS, 1))
    assert at_most(holds, 0.05)


@pytest.mark.parametrize("noise", NOISE[1:3])
def test_trend_of_arms_alike_is_seldom_confirmed(noise):
    """Every arm has problems of its own that it is good at, which all its seeds have in common."""
    arms = {name: crossed(*noise) for name in "abcd"}
    rule = Trend(column="x", arms=tuple("abcd"))
    holds, contradicted = shares(rule, **arms)
    assert at_most(holds, 0.025) and at_most(contradicted, 0.025)
    steep = {name: values[:100] + 5 * at for at, (name, values) in enumerate(arms.items())}
    assert shares(rule, **steep)[0] > 0.8


@pytest.mark.parametrize(("logit", "between", "spread"), [(0, 0, 0), (2, 0.5, 2), (4, 0, 5)])
def test_rate_at_its_bound_is_seldom_confirmed(logit, between, spread):
    units = 50
    a = verdicts(logit, between, spread * drawn("normal", (STUDIES, 1, units)), units)
    truth = mean_share(logit, math.hypot(between, spread))
    holds, contradicted = shares(Rate(column="x", arm="a", at_least=truth), a=a)
    assert at_most(holds, 0.025) and at_most(contradicted, 0.025)


def test_ordering_with_one_tie_is_seldom_confirmed():
    a, b, c = (crossed("normal", 0.5, 1.0, 1.0) for _ in range(3))
    rule = Ordering(column="x", arms=("a", "b", "c"))
    holds, contradicted = shares(rule, a=a, b=b, c=c - 20)
    assert at_most(holds, 0.025) and at_most(contradicted, 0.025)
    assert shares(rule, a=a[:100] + 20, b=b[:100], c=c[:100] - 20)[0] > 0.8


def test_baseline_at_its_bar_is_seldom_confirmed():
    nulls = {f"n{i}": 5 + 0.3 * drawn("normal", (STUDIES, SEEDS)) for i in range(4)}
    best = np.max(list(nulls.values()), axis=(0, 2))
    a = 1.1 * best[:, None] + 0.3 * drawn("normal", (STUDIES, SEEDS))
    rule = Baseline(column="x", arm="a", nulls=tuple(nulls), share=0.1)
    holds, contradicted = shares(rule, a=a, **nulls)
    assert at_most(holds, 0.025) and at_most(contradicted, 0.025)
    as_nulls = 5 + 0.3 * drawn("normal", (STUDIES, SEEDS))
    assert shares(rule, a=as_nulls, **nulls)[0] < 0.01
    assert shares(rule, a=a[:100] + 3, **{name: values[:100] for name, values in nulls.items()})[0] > 0.8
