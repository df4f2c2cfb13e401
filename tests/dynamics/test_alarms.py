"""Alarms on runs made by formula: each on its own fault, none on healthy learning, live as in the replay."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.dynamics.alarms import ALARMS, BASELINE, BY_NAME, Alarm, Guard, Rule, recorded_thresholds, rules
from stablerank.dynamics.signals import SIGNALS, Signals, signals_of_log
from stablerank.dynamics.watch import Gauge, Watch, replay, rows_of

CAP = 80
STEPS = 60
STEP_S = np.arange(1, STEPS + 1)
FAULT = 30
"""Step from which the faulty runs below go wrong."""
RULES = tuple(
    Rule(BY_NAME[name], threshold, window, hold)
    for name, threshold, window, hold in [
        ("advantage_spike", 2.0, 3, 2),
        ("length_drift", 0.8, 3, 2),
        ("truncation", 0.2, 3, 2),
        ("format_loss", -0.2, 3, 2),
        ("variance_death", 0.9, 3, 3),
        ("kl_spike", 0.2, 5, 2),
        ("reward_length", 0.25, 3, 3),
        ("rank_collapse", 1.2, 1, 2),
    ]
)


def made(**columns) -> Signals:
    """A run of these signals, the others not recorded."""
    size = len(next(iter(columns.values())))
    whole = {name: np.asarray(columns.get(name, np.full(size, np.nan)), float) for name in SIGNALS}
    return Signals(np.arange(1, size + 1), whole)


def healthy() -> dict[str, np.ndarray]:
    """Fast learning as the embedded student shows it: longer answers, equal groups at the end, single spikes of KL."""
    done_S = 1 / (1 + np.exp(-(STEP_S - 14) / 3))
    noise_S = np.random.default_rng(0).normal(size=STEPS)
    return {
        "reward": 0.35 + 0.63 * done_S + 0.01 * noise_S,
        "reward_std": 0.42 * (1 - 0.8 * done_S),
        "zero_std": 0.97 * done_S,
        "length": 10 + 25 * done_S + noise_S,
        "truncated": np.where(STEP_S % 9 == 0, 0.01, 0.0),
        "kl": 0.05 * done_S + np.where(STEP_S % 15 == 0, 0.45, 0.0),
        "advantage_scale": 1.0 - 0.6 * done_S,
        "answered": 0.85 + 0.15 * done_S,
        "reward_length": 0.45 * (1 - done_S) + 0.1 * noise_S,
        "stable_rank": np.where(STEP_S % 5 == 0, 2.4 - 0.5 * done_S, np.nan),
    }


def after_fault(wrong: float, right: np.ndarray) -> np.ndarray:
    return np.where(STEP_S < FAULT, right, np.where(np.isnan(right), np.nan, wrong))


FAULTS = {
    "advantage_spike": {"advantage_scale": 9.0},
    "length_drift": {"length": 76.0},
    "truncation": {"truncated": 0.6},
    "format_loss": {"answered": 0.2},
    "variance_death": {"zero_std": 0.96, "reward": 0.05},
    "kl_spike": {"kl": 0.6},
    "reward_length": {"reward_length": 0.9},
    "rank_collapse": {"stable_rank": 1.02},
}


def faulty(name: str) -> Signals:
    right = healthy()
    return made(**{**right, **{signal: after_fault(wrong, right[signal]) for signal, wrong in FAULTS[name].items()}})


def test_healthy_learning_raises_nothing():
    assert replay(RULES, made(**healthy()), CAP) == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_raises_its_alarm_and_no_other(name):
    (raised,) = replay(RULES, faulty(name), CAP)
    rule = next(rule for rule in RULES if rule.alarm.name == name)
    # Soon: the median has to turn over, then to hold; the stable rank has a value every fifth step.
    every = 5 if name == "rank_collapse" else 1
    assert FAULT <= raised.step <= FAULT + every * (rule.window // 2 + rule.hold)
    assert (raised.alarm, raised.signal, raised.threshold) == (name, rule.alarm.signal, rule.threshold)
    assert f"{raised.value:.3g}" in raised.sentence and f"{rule.threshold:.3g}" in raised.sentence
    assert raised.remedy == rule.alarm.remedy


def test_every_alarm_has_a_fault_above():
    assert [alarm.name for alarm in ALARMS] == list(FAULTS) == [rule.alarm.name for rule in RULES]
    assert {alarm.signal for alarm in ALARMS} - {*SIGNALS} == {"length_of_cap"}


def test_a_collapse_like_s4_raises_its_links_in_order():
    onset = {"advantage_scale": 20, "length": 28, "truncated": 36, "answered": 44}
    ends = {"advantage_scale": 9.0, "length": 80.0, "truncated": 0.9, "answered": 0.1}
    right = healthy()
    wrong = {s: right[s] + (ends[s] - right[s]) * np.clip((STEP_S - onset[s]) / 8, 0, 1) for s in ends}
    names = [raised.alarm for raised in replay(RULES, made(**{**right, **wrong}), CAP)]
    assert names == ["advantage_spike", "length_drift", "truncation", "format_loss"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("variance_death", {"zero_std": 0.98, "reward": 0.99}, id="equal groups at the top"),
        pytest.param("reward_length", {"reward_length": 0.9, "length": 10.0}, id="no growth"),
        pytest.param("length_drift", {"length": 76.0}, id="long from the start"),
    ],
)
def test_guards_keep_alarms_down(name, changes):
    right = healthy()
    run = {**right, **{signal: after_fault(value, right[signal]) for signal, value in changes.items()}}
    if name == "length_drift":
        run["length"] = np.full(STEPS, 76.0)
    assert name not in {raised.alarm for raised in replay(RULES, made(**run), CAP)}


def test_groups_that_begin_to_differ_are_no_spike():
    """A hard task: first nearly all groups fail alike and the advantages are nearly all zero."""
    run = {**healthy(), "advantage_scale": np.linspace(0.1, 0.95, STEPS)}
    assert replay(RULES, made(**run), CAP) == []


@pytest.mark.parametrize("signal", sorted({alarm.signal for alarm in ALARMS} - {"length_of_cap"}))
def test_a_missing_signal_switches_off_its_own_alarm_only(signal):
    lacking = {name for name, alarm in BY_NAME.items() if alarm.signal == signal}
    for name in FAULTS:
        run = faulty(name)
        without = Signals(run.step_S, {**run.columns, signal: np.full(STEPS, np.nan)})
        watch = Watch(RULES, CAP)
        raised = {found.alarm for step, values in rows_of(without) for found in watch.see(step, values)}
        assert raised == {name} - lacking
        assert set(watch.off()) == lacking
        assert all(f"`{signal}`" in reason for reason in watch.off().values())


def test_without_a_cap_the_alarms_on_length_are_off():
    watch = Watch(RULES)
    raised = {found.alarm for step, values in rows_of(faulty("length_drift")) for found in watch.see(step, values)}
    assert raised == set()
    assert set(watch.off()) == {"length_drift", "reward_length"}


@pytest.mark.parametrize(("start", "is_on"), [(0.2, False), (0.9, True)])
def test_a_format_that_was_never_there_cannot_be_lost(start, is_on):
    watch = Watch(RULES, CAP)
    run = made(**{**healthy(), "answered": np.where(STEP_S < FAULT, start, 0.0)})
    raised = {found.alarm for step, values in rows_of(run) for found in watch.see(step, values)}
    assert raised == ({"format_loss"} if is_on else set())
    assert ("format_loss" in watch.off()) is not is_on


def test_an_alarm_is_raised_again_only_after_it_was_down():
    kl_S = np.zeros(STEPS)
    kl_S[9:20] = kl_S[39:50] = 0.7
    first, second = replay([RULES[5]], made(kl=kl_S))
    assert 10 < first.step < 16 and 40 < second.step < 46


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_breaks_nothing(value):
    for signal, right in healthy().items():
        run = {**healthy(), signal: after_fault(value, right)}
        raised = replay(RULES, made(**run), CAP)
        if math.isnan(value):
            assert raised == []
        assert all(not math.isnan(found.value) and "nan" not in found.sentence for found in raised)
    exploded = replay(RULES, made(**{**healthy(), "kl": after_fault(math.inf, healthy()["kl"])}), CAP)
    assert [found.alarm for found in exploded] == ["kl_spike"]
    from_the_start = {**healthy(), "advantage_scale": np.full(STEPS, math.inf)}
    assert replay(RULES, made(**from_the_start), CAP) == []


def test_a_constant_zero_start_has_no_ratio():
    watch = Watch(RULES, CAP)
    run = made(advantage_scale=np.where(STEP_S < FAULT, 0.0, 5.0))
    assert [found for step, values in rows_of(run) for found in watch.see(step, values)] == []
    assert "starts at 0" in watch.off()["advantage_spike"]


SIDES = st.sampled_from(["above", "below"])
WAYS = st.sampled_from(["value", "ratio", "difference"])
NUMBERS = st.one_of(st.just(math.nan), st.floats(-3, 3), st.integers(-3, 3).map(float), st.sampled_from([math.inf]))


@st.composite
def cases(draw):
    size = draw(st.integers(0, 25))
    columns = {name: draw(st.lists(NUMBERS, min_size=size, max_size=size)) for name in ("kl", "reward")}
    guard = draw(st.none() | st.builds(Guard, st.sampled_from(["kl", "reward"]), WAYS, SIDES, st.floats(-1, 1)))
    least = draw(st.none() | st.floats(-1, 1))
    alarm = Alarm("any", "kl", draw(WAYS), draw(SIDES), "{value}", "", "", guard, least)
    rule = Rule(alarm, draw(st.floats(-2, 2)), draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 3)))
    return made(**columns) if size else Signals(np.array([], int), {n: np.array([]) for n in SIGNALS}), rule


def read_whole(column_S, against, window, least=None):
    """Every reading at once from the definition: the median of the window, against the median of the first values."""
    there_V = np.flatnonzero(~np.isnan(column_S))
    values_V, found_S = column_S[there_V], np.full(column_S.size, np.nan)
    needs_start = against != "value" or least is not None
    start = np.median(values_V[:BASELINE]) if values_V.size >= BASELINE else np.nan
    if needs_start and (not np.isfinite(start) or (least is not None and start < least)):
        return found_S
    if against == "ratio" and start <= 0:
        return found_S
    for place in range(window - 1, values_V.size):
        if not needs_start or place >= BASELINE - 1:
            middle = np.sort(values_V[place - window + 1 : place + 1])[window // 2]
            with np.errstate(all="ignore"):
                found_S[there_V[place]] = {"value": middle, "ratio": middle / start, "difference": middle - start}[
                    against
                ]
    return found_S


def raised_steps(signals, rule):
    """When an alarm comes up, from whole columns."""
    alarm, guard = rule.alarm, rule.alarm.guard
    value_S = read_whole(signals["kl"], alarm.against, rule.window, alarm.least_start)
    open_S = np.full(value_S.size, True)
    if guard is not None:
        read_S = read_whole(signals[guard.signal], guard.against, rule.window)
        latest = [next((v for v in read_S[s::-1] if not np.isnan(v)), np.nan) for s in range(read_S.size)]
        side = np.greater_equal if guard.direction == "above" else np.less_equal
        open_S = side(np.array(latest, float), guard.bound)  # NaN compares false
    seen_V = np.flatnonzero(~np.isnan(value_S))
    past = np.greater if alarm.direction == "above" else np.less
    past_V = past(value_S[seen_V], rule.threshold) & open_S[seen_V]
    up_V = [v + 1 >= rule.hold and past_V[v + 1 - rule.hold : v + 1].all() for v in range(seen_V.size)]
    came_V = [v for v in range(len(up_V)) if up_V[v] and not (v and up_V[v - 1])]
    return [(int(signals.step_S[seen_V[v]]), value_S[seen_V[v]]) for v in came_V]


@given(cases())
@settings(max_examples=200, deadline=None)
def test_streaming_equals_replay_and_the_definition(case):
    signals, rule = case
    live, found = Watch([rule]), []
    for row, step in enumerate(signals.step_S):
        logged = {SIGNALS[name]: float(signals[name][row]) for name in SIGNALS}
        found += live.see(int(step), signals_of_log(logged))
    assert found == replay([rule], signals)
    assert [(raised.step, raised.value) for raised in found] == raised_steps(signals, rule)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_the_level_is_the_threshold_just_below_which_an_alarm_is_raised(case):
    signals, rule = case
    gauge = Gauge(rule.alarm, rule.window, rule.hold)
    level = max(
        [found for _, values in rows_of(signals) if not math.isnan(found := gauge.see(values))], default=-math.inf
    )
    if math.isfinite(level):
        at, under = (rule.alarm.sign * bound for bound in (level, math.nextafter(level, -math.inf)))
        assert replay([Rule(rule.alarm, at, rule.window, rule.hold)], signals) == []
        assert replay([Rule(rule.alarm, under, rule.window, rule.hold)], signals) != []


def test_recorded_thresholds_fit_the_alarms():
    recorded = recorded_thresholds()
    assert list(recorded["alarms"]) == list(BY_NAME)
    assert recorded["origin"]["note"] and {"commit", "date", "stable", "collapsed"} <= set(recorded["origin"])
    for rule in rules():
        assert rule.window % 2 == 1 and rule.hold >= 1 and rule.window <= BASELINE
        assert json.dumps(rule.threshold, allow_nan=False)
    assert replay(rules(), made(**healthy()), CAP) == []


def test_thresholds_can_be_replaced_by_name():
    changed = {rule.alarm.name: rule.threshold for rule in rules({"kl_spike": 7.5})}
    assert changed == {**{rule.alarm.name: rule.threshold for rule in rules()}, "kl_spike": 7.5}
