"""Every rule fires on the run that it is about and on no other; missing, added and shuffled columns do no harm."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stablerank.dynamics.causes.explain import CAUSES, NAMES, explain
from stablerank.dynamics.causes.facts import facts_of
from stablerank.runs.record import RunRecord, TrainingCompletion

SPOILT = [cause.name for cause in CAUSES if cause.name != "reward_flat"]
SEEDS = range(3)


def names(diagnoses):
    return [diagnosis.cause for diagnosis in diagnoses.found]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", SPOILT)
def test_the_fault_is_the_only_thing_named(make, fault, seed):
    told = explain(make.spoilt(fault, seed))
    assert names(told) == [fault]
    assert told.verdict == told.found[0].sentence
    assert told.has_problem == (fault not in ("format_lost", "far_policy", "overfitting"))


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_learns_gets_a_clean_bill(make, seed):
    told = explain(make.healthy(seed))
    assert names(told) == []
    assert told.consequences == told.unchecked == ()
    assert len(told.clear) == len(CAUSES)
    assert f"{len(CAUSES)} causes were looked for" in told.verdict
    assert not told.has_problem


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        ("learning_rate_too_high", (4, 8)),
        ("reward_misled", (25, 35)),
        ("not_finite", (31, 31)),
        ("overfitting", (14, 16)),
        ("step_spam", (25, 35)),
    ],
)
def test_the_first_step_is_where_it_begins(make, fault, step):
    first = explain(make.spoilt(fault)).found[0].first_step
    assert step[0] <= first <= step[1]


def test_consequences_are_told_but_do_not_count(make):
    told = explain(make.spoilt("reward_misled"))
    assert [one.cause for one in told.consequences] == ["unexplained"]


def test_a_rise_within_the_interval_is_no_overfitting_and_one_beyond_it_is_a_problem():
    def told(low):
        curve = [(10, 0.8, 0.5, 0.9), (20, 0.7, 0.4, 0.6), (30, 0.9, low, 0.2)]
        losses = [dict(zip(("step", "loss", "loss_low", "loss_train"), row, strict=True)) for row in curve]
        return explain(RunRecord(Path("run"), "stablerank", {}, (), (), (), tuple(losses)))

    assert names(told(low=0.65)) == []
    (found,) = told(low=0.75).found
    assert (found.cause, found.first_step, found.severity) == ("overfitting", 20, "problem")


def test_a_flat_reward_is_a_warning_that_names_both_causes(make):
    columns = make.learning()
    columns["reward"] = 0.3 + 0.05 * np.random.default_rng(0).normal(size=40)
    columns["frac_reward_zero_std"] = np.full(40, 0.2)
    told = explain(make.record(columns))
    assert names(told) == ["reward_flat"]
    assert not told.has_problem
    assert "either the learning rate is too small" in told.verdict


def test_no_learning_is_seen_in_a_policy_that_stays_even_where_the_rate_is_not_known(make):
    columns = make.learning()
    del columns["learning_rate"]
    columns["kl"] = np.full(40, 3e-6)
    (found,) = [one for one in explain(make.record(columns)).found if one.severity == "problem"]
    assert found.cause == "no_learning"
    assert "either the learning rate is far too small, or beta holds it" in found.sentence


def test_one_scorable_completion_a_group_is_counted_where_completions_are_known(make):
    columns = make.learning()
    batch = [TrainingCompletion(step, group, r"\boxed{1}", reward, 0.0, 4, False)
             for step in range(1, 41) for group in range(4) for reward in (1.0, math.nan, math.nan)]  # fmt: skip
    told = explain(make.record(columns, completions=batch))
    assert names(told)[0] == "one_sample_groups"
    assert "100 % of the groups have at most one completion" in told.found[0].evidence
    whole = [TrainingCompletion(one.step, one.group, one.text, 1.0, 0.0, 4, False) for one in batch]
    assert "one_sample_groups" not in names(explain(make.record(columns, completions=whole)))


def test_masked_truncated_completions_are_not_taken_for_one_sample_groups(make):
    columns = make.learning()
    columns |= {
        "grad_norm": np.zeros(40),
        "frac_reward_zero_std": np.zeros(40),
        "completions/clipped_ratio": np.ones(40),
    }
    assert "one_sample_groups" not in names(explain(make.record(columns)))


@pytest.mark.parametrize(
    ("curve", "answered", "words"),
    [
        ("healthy", 1.0, "the verifier rejects right answers too"),
        ("none", 1.0, "100 % of the answers are in the format, so either the verifier rejects everything"),
        ("none", 0.0, "in the format"),
        ("none", None, "either the verifier rejects everything, or no answer is right or in the format"),
    ],
)
def test_what_is_known_of_a_reward_of_zero(make, curve, answered, words):
    columns = make.learning()
    columns |= {"reward": np.zeros(40), "reward_std": np.zeros(40), "frac_reward_zero_std": np.ones(40)}
    columns["answered"] = np.full(40, math.nan if answered is None else answered)
    told = explain(make.record(columns, evaluations=make.healthy_curve if curve == "healthy" else ()))
    assert names(told)[0] == "verifier_rejects"
    assert words in told.verdict


def test_a_reward_of_zero_on_answers_that_are_all_cut_is_put_down_to_the_limit(make):
    record = make.spoilt("verifier_rejects")
    columns = {name: [row[name] for row in record.steps] for name in record.steps[0]}
    columns["completions/clipped_ratio"] = np.ones(40)
    told = explain(make.record(columns, evaluations=record.evaluations))
    assert names(told) == ["cap_too_short"]
    assert "either the limit is too short for any answer, or the model never ends one" in told.verdict


def test_a_part_of_the_reward_that_falls_stands_in_for_held_out_answers(make):
    columns = make.learning()
    columns |= {
        "rewards/outcome/mean": make.ramp(0.5, 0.0, 10, 20) + 0.01 * np.random.default_rng(0).normal(size=40) ** 2,
        "rewards/length/mean": make.ramp(-0.8, -0.1, 5, 20),
        "reward": make.ramp(-3.0, -0.4, 5, 20) + 0.02 * np.random.default_rng(1).normal(size=40),
        "completions/mean_length": make.ramp(12, 2, 5, 20),
        "reward_length_correlation": np.full(40, -0.9),
    }
    told = explain(make.record(columns))
    assert names(told) == ["length_penalty_too_strong"]
    assert "the reward outcome fell" in told.verdict


def test_without_a_kl_the_two_readings_of_a_misled_reward_are_both_told(make):
    columns = make.learning()
    del columns["kl"]
    columns["reward_length_correlation"] = np.zeros(40)
    told = explain(make.record(columns, evaluations=make.falling_curve))
    assert names(told) == ["reward_misled"]
    assert "either it is wrong about these answers, or beta is too low" in told.verdict


def test_a_first_row_over_several_steps_only_shows_a_reference_that_stands_still(make):
    columns = make.learning()
    moved = {name: values[9::10] for name, values in columns.items()}
    assert "wrong_reference" not in names(explain(make.record(moved)))
    moved["kl"] = np.array([0.2, 0.19, 0.21, 0.2])
    told = explain(make.record(moved))
    assert names(told) == ["wrong_reference"]
    assert "unless the first steps moved the policy at once" in told.verdict


def test_answers_that_shrink_without_earning_more_for_it_are_not_put_down_to_a_length_penalty(make):
    columns = make.learning()
    columns |= {"completions/mean_length": make.ramp(34, 12, 15, 35), "reward_length_correlation": np.zeros(40)}
    told = explain(make.record(columns, evaluations=make.falling_curve))
    assert names(told) == ["reward_misled"]
    columns["reward_length_correlation"] = np.full(40, -0.6)
    assert names(explain(make.record(columns, evaluations=make.falling_curve))) == ["length_penalty_too_strong"]


def test_answers_that_are_cut_only_after_the_first_update_are_not_put_down_to_the_limit(make):
    columns = make.learning()
    columns["completions/clipped_ratio"] = np.where(np.arange(40) == 0, 0.0, 0.6)
    assert "cap_too_short" not in names(explain(make.record(columns)))
    columns["completions/clipped_ratio"][0] = 0.5
    assert names(explain(make.record(columns)))[0] == "cap_too_short"


def test_a_fall_under_a_reward_that_never_rose_stays_unexplained(make):
    columns = make.learning()
    columns["reward"] = 0.4 + 0.05 * np.random.default_rng(0).normal(size=40)
    told = explain(make.record(columns, evaluations=make.falling_curve))
    assert names(told)[0] == "unexplained"
    assert "reward_misled" not in names(told)


def test_settings_only_word_the_remedy(make):
    bare = make.spoilt("beta_too_low")
    known = make.record(
        {name: [row[name] for row in bare.steps] for name in bare.steps[0]},
        evaluations=bare.evaluations,
        settings={"trainer": {"beta": 0.001}},
    )
    assert names(explain(known)) == names(explain(bare)) == ["beta_too_low"]
    assert "beta (0.001) is too low" in explain(known).verdict
    assert "beta is too low" in explain(bare).verdict


def test_what_cannot_be_looked_for_is_named_with_what_it_lacks(make):
    columns = make.learning()
    told = explain(make.record({name: columns[name] for name in ("step", "loss", "reward")}))
    lacking = {one.cause: one.missing for one in told.unchecked}
    assert lacking["wrong_reference"] == NAMES["kl"]
    assert "two held-out evaluations or several reward functions" in lacking["unexplained"]
    assert "could not be looked for" in told.verdict
    assert {*told.clear} | {one.title for one in told.unchecked} == {cause.title for cause in CAUSES}


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5])
def test_a_log_that_has_hardly_begun(make, rows):
    columns = {name: values[:rows] for name, values in make.learning().items()}
    told = explain(make.record(columns))
    assert names(told) == []
    assert not rows or any("6 logged steps" in one.missing for one in told.unchecked)


def test_an_empty_log_says_that_nothing_can_be_said(make):
    told = explain(make.record({"step": np.array([], int)}))
    assert told.verdict == "Nothing can be said: the log holds nothing that a rule reads."
    assert told.clear == ()


COLUMNS = (
    *("loss", "grad_norm", "learning_rate", "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy"),
    *("completions/mean_length", "completions/max_length", "completions/clipped_ratio", "advantage_scale", "answered"),
    *("reward_length_correlation", "rewards/stable_rank/relative_spread", "duplicate_share", "near_duplicate_share"),
    *("cut_by_window", "sigma1_first_token", "sigma1_special_tokens", "eval_loss"),
)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(COLUMNS)), st.sampled_from(["healthy", *SPOILT]), st.booleans())
def test_missing_columns_never_break_and_never_invent_a_problem(make, lost, fault, has_curve):
    record = make.healthy() if fault == "healthy" else make.spoilt(fault)
    columns = {name: [row[name] for row in record.steps] for name in record.steps[0] if name not in lost}
    told = explain(make.record(columns, evaluations=record.evaluations if has_curve else ()))
    if fault == "healthy":
        assert not told.has_problem
    for cause in CAUSES:
        if cause.missing(facts_of(make.record(columns))) and not has_curve:
            assert cause.name not in names(told)


@settings(max_examples=30, deadline=None)
@given(st.permutations(COLUMNS), st.sampled_from(["healthy", *SPOILT]), st.integers(0, 2**31))
def test_the_order_of_columns_and_columns_that_no_rule_reads_change_nothing(make, order, fault, seed):
    record = make.healthy() if fault == "healthy" else make.spoilt(fault)
    rng = np.random.default_rng(seed)
    columns = {name: [row[name] for row in record.steps] for name in ("step", *order) if name in record.steps[0]}
    columns |= {f"noise/{at}": rng.normal(size=40) for at in range(3)}
    told = explain(make.record(columns, evaluations=record.evaluations))
    assert told == explain(record)


RATE = 0.01
"""Share of runs of pure noise that may get a problem."""


def test_runs_of_pure_noise_are_hardly_ever_called_a_problem(make):
    problems = sum(explain(noise(make, seed)).has_problem for seed in range(200))
    assert stats.binomtest(problems, 200, RATE, alternative="greater").pvalue > 0.01


def noise(make, seed):
    """A run whose every column is stationary noise about ordinary values, held-out answers included."""
    rng, columns = np.random.default_rng(seed), make.learning(seed)
    for name, (mean, deviation) in {
        "reward": (0.4, 0.08), "kl": (0.02, 0.006), "entropy": (0.3, 0.05), "grad_norm": (0.2, 0.06),
        "completions/mean_length": (30.0, 3.0), "frac_reward_zero_std": (0.3, 0.1), "answered": (0.9, 0.04),
        "completions/clipped_ratio": (0.05, 0.02), "reward_length_correlation": (0.1, 0.2), "reward_std": (0.45, 0.05),
    }.items():  # fmt: skip
        columns[name] = mean + deviation * rng.normal(size=40)
    columns["kl"][0] = 0.0
    return make.record(columns, evaluations=make.held_out(rng.binomial(64, 0.4, size=8) / 64))


def test_a_reward_that_drifts_as_noise_does_is_no_hack_without_a_harm(make):
    columns = make.learning()
    columns["completions/mean_length"] = make.ramp(10, 70, 1, 40)
    assert names(explain(make.record(columns, evaluations=make.healthy_curve))) == []
