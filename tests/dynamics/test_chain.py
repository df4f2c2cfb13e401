import gc
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from stablerank.dynamics.chain import (
    LINKS,
    Chain,
    LengthChange,
    chain_of,
    collapse_step,
    lags,
    precedence,
    s4_events,
    told,
)
from stablerank.dynamics.onsets import Onset
from stablerank.dynamics.signals import SIGNALS, Signals

NAMES = [link.name for link in LINKS]
SPIKE, GROWTH, TRUNCATION, ANSWER, COLLAPSE, GONE = NAMES
STEP_S = np.arange(1, 101)


def signals_of(rng=None, **columns):
    rng = rng or np.random.default_rng(0)
    noisy = {name: np.asarray(value) * (1 + 0.05 * rng.normal(size=STEP_S.size)) for name, value in columns.items()}
    return Signals(STEP_S, {name: noisy.get(name, np.full(STEP_S.size, np.nan)) for name in SIGNALS})


def curve_of(steps, scores):
    return [{"step": int(step), "pass_at_1": score} for step, score in zip(steps, scores, strict=True)]


def s4(rng=None):
    """A run as S4 tells it: spike from 20, longer from 30, truncated from 52, no answers from 62, wrong by 75."""
    signals = signals_of(
        rng,
        advantage_scale=np.interp(STEP_S, [1, 20, 28, 60, 90, 100], [1, 1, 9, 5, 0, 0]),
        length=np.interp(STEP_S, [1, 30, 70, 100], [200, 200, 1500, 1500]),
        truncated=np.interp(STEP_S, [1, 50, 80, 100], [0, 0, 1, 1]),
        answered=np.interp(STEP_S, [1, 60, 80, 100], [0.9, 0.9, 0, 0]),
    )
    step_E = np.arange(5, 101, 5)
    return signals, curve_of(step_E, np.interp(step_E, [5, 30, 65, 85], [0.38, 0.48, 0.45, 0.02]).tolist())


def made(bounds, length="unknown"):
    """A chain with these onsets; a number stands for the step of a signal of every step."""
    onsets = {name: Onset(*(one if isinstance(one, tuple) else (one - 1, one))) for name, one in bounds.items()}
    ordered = {name: onsets[name] for name in NAMES if name in onsets}
    return Chain(ordered, tuple(name for name in NAMES if name not in onsets), (), LengthChange(length))


@given(st.lists(st.one_of(st.floats(0, 1), st.none()), max_size=12))
def test_the_collapse_step_is_that_of_its_words(scores):
    rows = [(step, score) for step, score in enumerate(scores) if score is not None]
    wanted = None
    for place, (step, _) in enumerate(rows):
        best = max((score for _, score in rows[:place]), default=0.0)
        if best > 0 and all(score <= best / 2 for _, score in rows[place:]):
            wanted = step
            break
    assert collapse_step(curve_of(range(len(scores)), scores)) == wanted


def test_a_dip_that_recovers_is_no_collapse():
    assert collapse_step(curve_of([5, 10, 15, 20], [0.5, 0.2, 0.1, 0.4])) is None
    assert collapse_step(curve_of([5, 10, 15, 20], [0.5, 0.2, 0.4, 0.25])) == 20
    assert collapse_step([]) is None


def test_the_chain_of_s4_is_found_whole_and_in_order():
    for seed in range(20):
        signals, curve = s4(np.random.default_rng(seed))
        chain = chain_of(signals, curve)
        assert chain.whole and chain.kind == "length" and chain.order in ("kept", "tied")
        found = {name: one.upper for name, one in chain.onsets.items()}
        assert abs(found[SPIKE] - 21) <= 2
        assert 31 <= found[GROWTH] <= 37
        assert abs(found[TRUNCATION] - 53) <= 2
        assert abs(found[ANSWER] - 64) <= 3
        assert chain.onsets[COLLAPSE] == Onset(70, 75)
        assert abs(found[GONE] - 85) <= 2
        assert chain.length.way == "grows"


def test_s4s_own_events():
    signals, curve = s4()
    events = s4_events(signals, curve)
    assert abs(events["advantage peak"] - 28) <= 3
    assert 60 <= events["length saturation"] <= 75
    assert events[COLLAPSE] == 75
    assert s4_events(signals_of(), []) == {}


def test_another_collapse_is_named_as_such():
    """Healthy learning lengthens answers, then the policy leaves out operations."""
    signals = signals_of(
        advantage_scale=np.ones(100),
        length=np.interp(STEP_S, [1, 10, 30, 60, 90, 100], [11, 11, 33, 33, 24, 24]),
        truncated=np.zeros(100),
        answered=np.ones(100),
    )
    chain = chain_of(signals, curve_of([20, 40, 60, 80, 100], [0.6, 0.99, 0.9, 0.3, 0.1]))
    assert list(chain.onsets) == [COLLAPSE]
    assert set(chain.absent) == {*NAMES} - {COLLAPSE}
    assert (chain.kind, chain.order, chain.length.way) == ("other", "none", "shrinks")
    assert chain.length.before == pytest.approx(33, rel=0.1) and chain.length.after == pytest.approx(28.5, rel=0.1)
    assert "another kind" in told(chain) and "shrinks, from" in told(chain) and "truncation" in told(chain)


def test_growth_counts_where_the_length_stays():
    signals = signals_of(length=np.interp(STEP_S, [1, 10, 30, 100], [11, 11, 33, 33]), truncated=np.zeros(100))
    chain = chain_of(signals, curve_of([20, 40, 60, 80, 100], [0.6, 0.99, 0.9, 0.3, 0.1]))
    assert chain.length.way == "steady" and GROWTH in chain.onsets
    assert chain.unrecorded == (SPIKE, ANSWER, GONE)


def test_a_healthy_run_has_no_collapse():
    signals = signals_of(
        advantage_scale=np.ones(100), length=np.full(100, 30.0), truncated=np.zeros(100), answered=np.ones(100)
    )
    chain = chain_of(signals, curve_of([20, 40, 60, 80, 100], [0.4, 0.6, 0.8, 0.9, 0.9]))
    assert not chain.onsets and chain.kind == "none" and told(chain).startswith("No collapse: no link of the chain")


def test_what_was_not_recorded_is_told_from_what_did_not_happen():
    chain = chain_of(signals_of(advantage_scale=np.ones(100)), curve_of([5, 10, 15], [0.4, 0.1, 0.1]))
    assert chain.unrecorded == (GROWTH, TRUNCATION, ANSWER) and chain.absent == (SPIKE, GONE)
    assert chain.kind == "unknown" and chain.length.way == "unknown"
    assert chain_of(signals_of(), []).unrecorded == tuple(NAMES)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_order_over_every_permutation(size):
    for places in permutations(range(size)):
        chain = made({name: 10 + 7 * place for name, place in zip(NAMES, places, strict=False)})
        assert chain.order == ("kept" if list(places) == sorted(places) else "broken")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=2, max_size=6))
def test_order_says_no_more_than_the_intervals(intervals):
    """Each onset may lie anywhere in its interval: kept if all choices are in order, broken if no choice is."""
    chain = made({name: (low, low + width) for name, (low, width) in zip(NAMES, intervals, strict=False)})
    bounds = [(low + 1, low + width) for low, width in intervals]
    pairs = [(one, two) for place, one in enumerate(bounds) for two in bounds[place + 1 :]]
    surely = all(one[1] < two[0] for one, two in pairs)
    never = any(one[0] > two[1] for one, two in pairs)
    assert chain.order == ("broken" if never else "kept" if surely else "tied")


def test_ties_count_neither_way():
    chains = [made({TRUNCATION: 22, COLLAPSE: (20, 25)})] * 4 + [made({TRUNCATION: 20, COLLAPSE: (20, 25)})] * 3
    order = precedence(chains, n=99)
    forward = next(pair for pair in order.pairs if pair.first == TRUNCATION)
    assert (forward.runs, forward.before, forward.after) == (7, 3, 0)
    assert forward.share == 3 / 7
    assert (order.kept, order.tied, order.broken) == (3, 4, 0)


@pytest.mark.parametrize(("before", "after"), [(9, 1), (6, 6), (3, 8), (5, 0)])
def test_two_links_are_the_exact_sign_test(before, after):
    chains = [made({GROWTH: 10, ANSWER: 30})] * before + [made({GROWTH: 30, ANSWER: 10})] * after
    order = precedence(chains, n=19999)
    (forward, backward) = order.pairs
    total = before + after
    assert forward.p_value == pytest.approx(binomtest(before, total, alternative="greater").pvalue, abs=0.012)
    assert backward.p_value == pytest.approx(binomtest(after, total, alternative="greater").pvalue, abs=0.012)
    low, high = sorted((forward.p_value, backward.p_value))
    assert {forward.holm, backward.holm} == {min(1, 2 * low), min(1, max(high, 2 * low))}
    assert order.p_value == pytest.approx(binomtest(before, total, alternative="greater").pvalue, abs=0.012)


def shuffled(rng, names, runs):
    """Runs whose events have nothing to do with each other, but "advantage gone" is after the spike by rule."""
    chains = []
    for _ in range(runs):
        time = dict(zip(names, rng.choice(np.arange(5, 95), len(names), replace=False).tolist(), strict=True))
        if {SPIKE, GONE} <= time.keys() and time[GONE] < time[SPIKE]:
            time[SPIKE], time[GONE] = time[GONE], time[SPIKE]
        chains.append(made(time))
    return chains


@pytest.fixture
def quick_collections():
    """Statsmodels collects garbage in every call, which takes as long as there are objects."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_p_values_hold_their_level_under_the_null(quick_collections):
    rng, simulations, runs = np.random.default_rng(5), 200, 9
    small: dict[tuple[str, str], int] = {}
    families = kept = 0
    for _ in range(simulations):
        order = precedence(shuffled(rng, NAMES, runs), n=199, seed=int(rng.integers(2**31)))
        for pair in order.pairs:
            key = (pair.first, pair.second)
            small[key] = small.get(key, 0) + (pair.p_value <= 0.1)
        families += any(pair.holm <= 0.1 for pair in order.pairs)
        kept += order.p_value <= 0.1
    assert len(small) == 28 and (SPIKE, GONE) not in small
    assert max(small.values()) <= binom.ppf(1 - 1e-3 / 28, simulations, 0.1)
    assert families <= binom.ppf(0.999, simulations, 0.1)
    assert kept <= binom.ppf(0.999, simulations, 0.1)
    # Not an empty promise either: about a tenth of the pairs are as small, less what whole counts lose.
    assert sum(small.values()) >= 0.03 * simulations * 28


def test_an_order_that_is_always_kept_is_significant():
    order = precedence([made({name: 10 * place for place, name in enumerate(NAMES, 1)}) for _ in range(12)])
    assert (order.kept, order.broken) == (12, 0) and order.p_value == 1 / 10_000
    forward = [pair for pair in order.pairs if NAMES.index(pair.first) < NAMES.index(pair.second)]
    assert len(forward) == 14
    assert all(pair.share == 1 and pair.p_value <= pair.holm for pair in forward)
    middle = next(pair for pair in forward if (pair.first, pair.second) == (TRUNCATION, ANSWER))
    assert middle.holm < 0.05


def test_no_p_value_is_below_what_the_permutations_can_show():
    pairs = precedence([made({TRUNCATION: 10, ANSWER: 30})] * 40, n=99).pairs
    assert sorted(pair.p_value for pair in pairs) == [1 / 100, 1.0]


def test_the_spike_is_not_called_first_because_of_its_rule():
    """Where the spike has a second, later event, it beats a third one by chance in two runs of three."""
    pairs = precedence([made({SPIKE: 10, ANSWER: 20, GONE: 30})] * 5, n=19999).pairs
    first = next(pair for pair in pairs if (pair.first, pair.second) == (SPIKE, ANSWER))
    assert first.p_value == pytest.approx((2 / 3) ** 5, abs=0.012)


def test_nothing_to_compare():
    order = precedence([], n=9)
    assert (order.pairs, order.kept, order.p_value) == ((), 0, 1.0)
    assert precedence([made({COLLAPSE: 5}), made({SPIKE: 7})], n=9).pairs == ()


def test_lags_are_medians_between_middles_over_the_runs_that_have_both():
    chains = [made({TRUNCATION: 10, ANSWER: 10 + lag, COLLAPSE: (20 + lag, 25 + lag)}) for lag in (4, 6, 6, 9, 12)]
    found = {(lag.first, lag.second): lag for lag in lags([*chains, made({TRUNCATION: 3})])}
    assert list(found) == list(pairwise(NAMES))
    lag = found[TRUNCATION, ANSWER]
    assert (lag.runs, lag.median) == (5, 6) and (lag.low, lag.high) == (4, 12)
    assert found[ANSWER, COLLAPSE].median == 13  # from 9.5 + lag to 22.5 + lag
    assert found[SPIKE, GROWTH].runs == 0 and np.isnan(found[SPIKE, GROWTH].median)


def test_the_interval_of_a_lag_covers():
    rng, hits = np.random.default_rng(6), 0
    for _ in range(60):
        chains = [made({SPIKE: 20, GROWTH: 20 + int(lag)}) for lag in rng.integers(5, 26, 15)]
        lag = lags(chains)[0]
        hits += lag.low <= 15 <= lag.high
    assert hits >= 51
