"""Rules that stop a run, on courses whose answer can be seen; recorded rules against the runs they were chosen on."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.dynamics.overfitting_signals import SIGNALS, signals_of, signals_of_history
from stablerank.dynamics.stopping import StopRule, readings, recorded_rules, regret, rule_of

TRACES = Path(__file__).parents[2] / "benchmarks" / "results" / "overfitting_traces.json"


def rows(*values):
    return [{"held_out": value} for value in values]


def test_readings_are_what_they_say():
    course = rows(2.0, 1.0, None, 4.0)
    assert readings("held_out", "value", course) == pytest.approx([2, 1, math.nan, 4], nan_ok=True)
    assert readings("held_out", "ratio", course) == pytest.approx([1, 0.5, math.nan, 2], nan_ok=True)
    assert readings("held_out", "fall", course) == pytest.approx([0, 0.5, math.nan, 0], nan_ok=True)
    assert readings("held_out", "rise", course) == pytest.approx([0, 0, math.nan, 3], nan_ok=True)


def test_what_cannot_be_divided_by_is_no_reading():
    assert all(math.isnan(value) for value in readings("held_out", "ratio", rows(0.0, 1.0)))
    assert all(math.isnan(value) for value in readings("held_out", "rise", rows(0.0, 1.0)))
    assert readings("other", "value", rows(1.0)) == pytest.approx([math.nan], nan_ok=True)


def test_a_rule_stops_at_the_last_of_enough_readings_in_a_row():
    course = rows(1.0, 0.8, 0.9, 0.8, 0.9, 1.0, 1.1)
    assert StopRule("held_out", "rise", "above", 0.1).stops_at(course) == 2
    assert StopRule("held_out", "rise", "above", 0.1, patience=2).stops_at(course) == 5
    assert StopRule("held_out", "rise", "above", 0.1, patience=4).stops_at(course) is None
    assert StopRule("held_out", "value", "below", 0.85).stops_at(course) == 1


def test_a_missing_value_neither_counts_nor_breaks_the_row():
    rule = StopRule("held_out", "value", "above", 1.0, patience=2)
    assert rule.stops_at(rows(2.0, None, 2.0)) == 2
    assert rule.stops_at(rows(2.0, 0.5, 2.0)) is None


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.integers(0, 12))
def test_a_rule_never_looks_ahead(values, cut):
    rule = StopRule("held_out", "fall", "above", 0.2, patience=2)
    whole = rule.stops_at(rows(*values))
    part = rule.stops_at(rows(*values[:cut]))
    assert part == (whole if whole is not None and whole < cut else None)


def test_regret_is_the_share_of_what_the_run_offered():
    judge = [3.0, 1.0, 2.0]
    assert [regret(judge, place) for place in (0, 1, 2, None)] == [1, 0, 0.5, 0.5]
    assert math.isnan(regret([1.0, 1.0], 0))


def test_signals_are_read_from_the_tables_of_a_run():
    evaluations = [
        {"step": 0, "phase": "before", "loss": 2.0, "loss_low": 1.9, "loss_train": 2.0, "kl": 0.0},
        {"step": 4, "phase": "curve", "loss": 1.5, "loss_low": 1.4, "loss_train": 1.0, "kl": 0.2},
        {"step": 8, "phase": "curve", "loss": 1.7, "loss_low": 1.6, "loss_train": 0.5, "kl": 0.4},
    ]
    place = {"layer": 0, "module": "q_proj"}
    geometry = [
        {"step": 4, **place, "kind": "update", "metric": "stable_rank", "value": 3.0},
        {"step": 4, **place, "kind": "update", "metric": "frobenius", "value": 2.0},
        {"step": 4, **place, "kind": "effect", "metric": "relative_norm", "value": 0.25},
    ]
    metrics = [{"step": step, "grad_norm": float(step)} for step in range(1, 9)]
    first, last = signals_of(evaluations, geometry, metrics)
    assert tuple(first) == SIGNALS
    assert (first["grad_norm"], last["grad_norm"]) == (2.5, 6.5)
    assert (last["held_out"], last["train"], last["kl"], last["step"]) == (1.7, 0.5, 0.4, 8)
    assert (last["update_rank"], last["update_norm"], last["effect_norm"], last["effect_rank"]) == (
        3.0,
        2.0,
        0.25,
        None,
    )


def test_signals_of_a_trainers_log_are_means_since_the_last_evaluation():
    history = [
        {"step": 1, "loss": 2.0, "grad_norm": 1.0, "geometry/stable_rank_mean": 4.0},
        {"step": 2, "loss": 1.0, "grad_norm": 3.0},
        {"step": 2, "eval_loss": 1.5},
        {"step": 3, "loss": 0.5, "grad_norm": 5.0, "geometry/stable_rank_mean": 2.0},
        {"step": 4, "eval_loss": 1.8},
    ]
    first, last = signals_of_history(history)
    assert (first["held_out"], first["train"], first["grad_norm"], first["update_rank"]) == (1.5, 1.5, 2.0, 4.0)
    assert (last["step"], last["train"], last["update_rank"], last["kl"]) == (4, 0.5, 2.0, None)


@pytest.mark.parametrize("objective", ["clm", "dpo"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_recorded_rule_loses_what_it_says_on_the_runs_that_it_was_chosen_on(objective, signal):
    kept, traces = recorded_rules(), json.loads(TRACES.read_text(encoding="utf-8"))
    rule = rule_of(objective, signal)
    runs = [traces[name]["rows"] for name in kept["origin"]["runs"] if name.startswith(objective)]
    lost = [regret([row["judge"] for row in run], rule.stops_at(run)) for run in runs]
    assert sum(lost) / len(lost) == pytest.approx(kept["rules"][objective][signal]["regret"], abs=1e-4)
