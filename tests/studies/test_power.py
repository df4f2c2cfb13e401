"""What the power estimate promises is what the real test delivers on simulated studies."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from statsmodels.stats.power import TTestPower

from stablerank.studies.inference import evaluate
from stablerank.studies.plan import Plan
from stablerank.studies.power import detectable, power_sentences
from stablerank.studies.results import WHOLE, Table

DIFFERENCE = {"kind": "difference", "column": "stable_rank", "arm": "a", "against": "b"}
EQUIVALENCE = {"kind": "equivalence", "column": "stable_rank", "arm": "a", "against": "b", "margin": 1.0}
ORDERING = {"kind": "ordering", "column": "stable_rank", "arms": ["a", "b", "c"], "margin": 0.2}
TREND = {"kind": "trend", "column": "stable_rank", "arms": ["c", "b", "a"]}
GAIN = {"kind": "difference", "column": "pass_at_1_gain", "arm": "a", "against": "b"}
RATE = {"kind": "rate", "column": "pass_at_1_after", "arm": "a", "at_least": 0.6}


def plan(rule, seeds=3, **extra):
    kind = "train" if "pass" in rule["column"] else "measure"
    return Plan.model_validate(
        {
            "question": "?",
            "seeds": list(range(seeds)),
            "arms": {name: {"kind": kind, "spec": "x"} for name in "abcdefghijklmnop"},
            "hypotheses": {"h": {"claim": "!", "rule": rule}},
            **extra,
        }
    )


def rule_of(plan):
    return plan.hypotheses["h"].rule


def blank(column, arms, seeds, units):
    """A table of zeros, rows in the order (arm, seed, unit)."""
    names = [f"u{unit}" for unit in range(units)] or [WHOLE]
    rows = [(arm, seed, name) for arm in arms for seed in range(seeds) for name in names]
    arm, seed, unit = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
    columns = np.full(len(rows), column, dtype=object)
    return Table(arm, arm, seed.astype(np.int64), unit, columns, np.zeros(len(rows)))


def simulated(mean_K, seeds, units, between, within, shared, studies, rng):
    """Values (N, K, S, U) of N studies under the model that `detectable` states."""
    count, arms, columns = studies, len(mean_K), max(units, 1)
    seed = rng.normal(0, between, (count, arms, seeds, 1))
    unit = rng.normal(0, shared, (count, arms, 1, columns))
    return np.reshape(mean_K, (-1, 1, 1)) + seed + unit + rng.normal(0, within, (count, arms, seeds, columns))


def share_that_holds(plan, arms, values_NKSU):
    seeds, units = values_NKSU.shape[2:]
    table = blank(rule_of(plan).column, arms, seeds, units if units > 1 else 0)
    held = [
        evaluate(rule_of(plan), replace(table, value_R=values_KSU.ravel()), plan.confidence).holds
        for values_KSU in values_NKSU
    ]
    return np.mean(held)


def smallest(rule, seeds=3, between=1.0, within=0.0, units=0, shared=0.0, **extra):
    study = plan(rule, seeds, **extra)
    return detectable(rule_of(study), study, between, within, units, shared)


@pytest.mark.parametrize("seeds", [2, 3, 10, 100])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_whole_cells_have_the_power_of_the_one_sample_t_test(seeds, confidence):
    alone = {**DIFFERENCE, "against": None, "margin": 2.0}
    found = smallest(alone, seeds, between=0.3, confidence=confidence) - 2.0
    one_sided = TTestPower().power(found / 0.3, seeds, (1 - confidence) / 2, alternative="larger")
    assert one_sided == pytest.approx(0.8, abs=1e-4)


def test_equivalence_of_many_seeds_has_the_margin_of_the_normal_tost():
    margin = smallest(EQUIVALENCE, seeds=5_000, between=0.3)
    expected = (norm.ppf(0.95) + norm.ppf(0.9)) * 0.3 * math.sqrt(2 / 5_000)
    assert margin == pytest.approx(expected, rel=1e-3)


DESIGNS = [(3, 25, 0.1, 0.5, 0.2), (5, 12, 0.3, 1.0, 0.0), (3, 0, 1.0, 0.0, 0.0)]


@pytest.mark.parametrize(("seeds", "units", "between", "within", "shared"), DESIGNS)
def test_a_difference_of_the_printed_size_is_found_in_four_of_five_studies(seeds, units, between, within, shared):
    effect = smallest(DIFFERENCE, seeds, between, within, units, shared)
    rng = np.random.default_rng(seeds + units)
    values = simulated([effect, 0], seeds, units, between, within, shared, 2_000, rng)
    assert share_that_holds(plan(DIFFERENCE, seeds), "ab", values) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_arms_that_are_alike_are_shown_to_be_so_within_the_printed_margin(seed):
    seeds, *scatter = DESIGNS[seed]
    units, between, within, shared = scatter
    margin = smallest(EQUIVALENCE, seeds, between, within, units, shared)
    values = simulated([0, 0], seeds, *scatter, 800, np.random.default_rng(seed))
    held = share_that_holds(plan({**EQUIVALENCE, "margin": margin}, seeds), "ab", values)
    assert held == pytest.approx(0.8, abs=0.045)


@pytest.mark.parametrize(("seeds", "units", "between", "within", "shared"), DESIGNS[:2])
def test_a_trend_of_the_printed_slope_is_found(seeds, units, between, within, shared):
    slope = smallest(TREND, seeds, between, within, units, shared)
    values = simulated([2 * slope, slope, 0], seeds, units, between, within, shared, 600, np.random.default_rng(seeds))
    assert share_that_holds(plan(TREND, seeds), "abc", values) == pytest.approx(0.8, abs=0.045)


def test_an_ordering_of_the_printed_steps_is_found_at_least_as_often_as_said():
    seeds, units, between, within, shared = DESIGNS[0]
    step = smallest(ORDERING, seeds, between, within, units, shared)
    values = simulated([2 * step, step, 0], *DESIGNS[0], 300, np.random.default_rng(7))
    assert 0.74 < share_that_holds(plan(ORDERING, seeds), "abc", values) < 0.9


@pytest.mark.parametrize(("seeds", "changed"), [(3, 0.5), (3, 0.1), (10, 0.1)])
def test_a_gain_over_right_or_wrong_problems_is_found_whether_many_or_few_change(seeds, changed):
    units, between = 100, 0.01
    gain = smallest(GAIN, seeds, between, within=math.sqrt(changed), units=units)
    rng = np.random.default_rng(3)
    mean = np.reshape([gain / 2, -gain / 2], (-1, 1, 1)) + rng.normal(0, between, (500, 2, seeds, 1))
    luck = rng.random((500, 2, seeds, units))
    values = (luck < (changed + mean) / 2).astype(float) - (luck > 1 - (changed - mean) / 2)
    assert share_that_holds(plan(GAIN, seeds), "ab", values) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_true_share_of_the_printed_size_is_confirmed(mirrored):
    rule = {**RATE, "at_least": None, "at_most": 0.4} if mirrored else RATE
    share = smallest(rule, 5, between=0.02, units=60, shared=0.1)
    rng = np.random.default_rng(11)
    chance = share + rng.normal(0, 0.02, (500, 1, 5, 1)) + rng.normal(0, 0.1, (500, 1, 1, 60))
    values = (rng.random((500, 1, 5, 60)) < chance).astype(float)
    assert share_that_holds(plan(rule, 5), "a", values) == pytest.approx(0.8, abs=0.06)


STILL = {"kind": "equivalence", "column": "pass_at_1_gain", "arm": "a", "margin": 0.02}
RISE = {"kind": "trend", "column": "pass_at_1_after", "arms": ["c", "b", "a"]}


def test_problems_that_never_changed_may_yet_change():
    """Nothing scatters, so the margin is that of Clopper-Pearson's interval for n of n, a gain having two tails."""
    margin = smallest(STILL, seeds=3, between=1e-9, units=200)
    low = binomtest(200, 200).proportion_ci(0.9, method="exact").low
    assert 1 - low < margin < math.sqrt(2) * (1 - low)


@pytest.mark.parametrize("rule", [DIFFERENCE, EQUIVALENCE, ORDERING, TREND, GAIN, RISE])
def test_more_evidence_finds_less_and_more_scatter_more(rule):
    scatter = {"between": 0.1, "within": 0.5, "shared": 0.2, "units": 20}
    usual = smallest(rule, 3, **scatter)
    assert smallest(rule, 6, **scatter) < usual
    assert smallest(rule, 3, **{**scatter, "units": 80}) < usual
    for key in ("between", "within", "shared"):
        assert smallest(rule, 3, **{**scatter, key: 2 * scatter[key]}) > usual


def test_a_second_hypothesis_costs_power_under_holm_only():
    two = {name: {"claim": "!", "rule": rule} for name, rule in (("h", DIFFERENCE), ("other", TREND))}
    alone = smallest(DIFFERENCE)
    assert smallest(DIFFERENCE, hypotheses=two) > alone
    assert smallest(DIFFERENCE, hypotheses=two, correction="none") == alone
    assert smallest(DIFFERENCE, hypotheses=two) == smallest(DIFFERENCE, confidence=0.975)


def test_what_no_effect_could_show_is_infinite():
    assert math.isinf(smallest(DIFFERENCE, seeds=1)), "one seed tells nothing about another"
    assert math.isinf(smallest(DIFFERENCE, units=1)), "nor one unit"
    assert math.isinf(smallest({**GAIN, "column": "pass_at_1_after"}, between=0.3)), "no share is 1 above another"
    assert 1 < smallest(GAIN, between=0.3) < 2, "but a gain may be"
    assert math.isfinite(smallest(TREND, seeds=2))
    assert math.isinf(smallest(TREND, seeds=2, confidence=0.98)), "two orders of three arms agree once in 36"
    assert math.isinf(smallest({**RATE, "at_least": 0.95}, units=50, between=0.01)), "50 of 50 may come of 0.93"


def test_sentences_say_what_the_seeds_can_find():
    spread = {"stable_rank": {"between": 0.02, "within": 0.2, "units": 100}}
    (sentence,) = power_sentences(plan(DIFFERENCE, spread=spread))
    effect = smallest(DIFFERENCE, between=0.02, within=0.2, units=100)
    expected = f"3 seeds and 100 units can detect a difference of {effect:.2g} in stable_rank with power 0.8."
    assert sentence == f"h: {expected}"


def test_sentences_say_when_the_study_is_too_small():
    spread = {"stable_rank": {"between": 1}}
    (equal,) = power_sentences(plan(EQUIVALENCE, spread=spread))
    assert equal.endswith("in stable_rank with power 0.8, but the rule asks for 1.")
    (blind,) = power_sentences(plan(DIFFERENCE, seeds=1, spread=spread))
    assert blind == "h: 1 seed cannot confirm this difference however large the effect; add seeds or units."
    (unknown,) = power_sentences(plan(DIFFERENCE))
    assert unknown == "h: nobody knows what 3 seeds can detect; state the expected spread.stable_rank in the plan."
