import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from scipy.signal import lfilter

from stablerank.dynamics.onsets import Falls, LeavesStart, Onset, long_enough, onset, running_median

STEPS = 100
STEP_S = np.arange(1, STEPS + 1)
UP, DOWN, FALL = LeavesStart(1), LeavesStart(-1), Falls(level=0.8)


def noise(rng, correlation, deviation):
    """Stationary Gaussian noise of one lag-1 correlation."""
    innovations = rng.normal(size=STEPS + 50) * deviation * np.sqrt(1 - correlation**2)
    return lfilter([1], [1, -correlation], innovations)[50:]


def jump(change):
    return np.where(change <= STEP_S, 2.0, 1.0)


def drop(change):
    return np.where(change <= STEP_S, 0.4, 1.0)


def ramp(change):
    return np.interp(STEP_S, [change, change + 20], [1, 3])


def errors_of(rule, shape, correlation, count=100):
    """Onset less true change over simulated signals that change once, with 10 % noise; how many had no onset."""
    rng, errors, missed = np.random.default_rng(1), [], 0
    for _ in range(count):
        change = int(rng.integers(15, 75))
        found = onset(STEP_S, shape(change) * (1 + noise(rng, correlation, 0.1)), rule)
        missed += found is None
        errors += [] if found is None else [found.upper - change]
    return np.array(errors), missed


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize(("rule", "shape"), [(UP, jump), (DOWN, drop), (FALL, drop)])
def test_a_jump_is_found_where_it_is(rule, shape, correlation):
    errors, missed = errors_of(rule, shape, correlation)
    assert missed <= 1
    assert np.median(errors) == 0
    assert np.percentile(np.abs(errors), 90) <= 2


def test_a_ramp_is_found_when_it_leaves_the_band():
    errors, missed = errors_of(UP, ramp, 0.0)
    assert missed == 0
    assert 2 <= np.median(errors) <= 6
    assert np.percentile(errors, 95) <= 10


@pytest.mark.parametrize("rule", [UP, DOWN, FALL])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_stationary_noise_rarely_has_an_onset(rule, correlation):
    rng = np.random.default_rng(2)
    false = sum(onset(STEP_S, 1 + noise(rng, correlation, 0.3), rule) is not None for _ in range(150))
    assert false <= 7  # 5 %


def test_without_the_noise_floor_that_noise_would_have_onsets():
    rng, rule = np.random.default_rng(2), LeavesStart(1, share=0.0, deviations=1.0)
    assert sum(onset(STEP_S, 1 + noise(rng, 0.5, 0.2), rule) is not None for _ in range(100)) > 15


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_share_that_stays_near_zero_has_no_onset(correlation):
    rng, rule = np.random.default_rng(3), LeavesStart(1, share=0.0, change=0.1)
    assert not any(onset(STEP_S, rng.binomial(64, 0.02, STEPS) / 64, rule) for _ in range(200))


@pytest.mark.parametrize(("share", "found"), [(0.08, False), (0.2, True)])
def test_the_least_change_of_a_share_that_starts_at_zero(share, found):
    value_S = np.where(STEP_S >= 50, share, 0.0)
    assert onset(STEP_S, value_S, LeavesStart(1, share=0.0, change=0.1)) == (Onset(49, 50) if found else None)


def test_a_start_that_moves_has_a_wider_band():
    moved_S = np.interp(STEP_S, [1, 8], [1.0, 2.0])
    assert onset(STEP_S, moved_S + 0.1, UP) is None
    assert onset(STEP_S, np.where(STEP_S <= 8, 1.5, moved_S), UP) == Onset(8, 9)


def test_slow_learning_within_the_least_change_that_reverses_is_no_onset():
    rng = np.random.default_rng(4)
    hump_S = 1 + 0.15 * np.exp(-(((STEP_S - 50) / 20) ** 2))
    assert not any(onset(STEP_S, hump_S * (1 + noise(rng, 0.0, 0.05)), UP) for _ in range(100))


@pytest.mark.parametrize(("length", "found"), [(2, False), (5, False), (8, True), (20, True)])
def test_an_excursion_must_last(length, found):
    value_S = np.where((STEP_S >= 40) & (length + 40 > STEP_S), 3.0, 1.0)
    assert onset(STEP_S, value_S, UP) == (Onset(39, 40) if found else None)


def test_a_lasting_rule_asks_for_the_rest_of_the_record():
    value_S = np.where((STEP_S >= 40) & (STEP_S < 60), 3.0, 1.0)
    assert onset(STEP_S, value_S, LeavesStart(1, lasting=True)) is None
    assert onset(STEP_S, np.where(STEP_S >= 40, 3.0, 1.0), LeavesStart(1, lasting=True)) == Onset(39, 40)


def test_a_fall_is_relative_to_the_peak_and_not_to_the_start():
    value_S = np.interp(STEP_S, [1, 40, 60, 100], [0.1, 9, 9, 0.0])
    found = onset(STEP_S, value_S, Falls(level=0.5, deviations=0.0))
    assert found is not None
    assert value_S[found.lower - 1] > 4.5 >= value_S[found.upper - 1]
    assert onset(STEP_S, value_S, DOWN) is None or onset(STEP_S, value_S, DOWN).upper > 95


def test_a_dip_before_the_peak_is_no_fall():
    value_S = np.where((STEP_S > 20) & (STEP_S < 40), 0.0, np.where(STEP_S < 60, 1.0, 2.0))
    assert onset(STEP_S, value_S, Falls(level=0.5)) is None


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_without_a_positive_peak_nothing_falls(value):
    assert onset(STEP_S, np.full(STEPS, value), Falls(level=0.5)) is None


def test_sparse_evaluations_give_the_gap_between_two():
    step_E = np.arange(5, 101, 5)
    rule = Falls(level=0.5, deviations=0.0, start=1, width=1, hold=2, held=1.0, lasting=True)
    assert onset(step_E, np.where(step_E > 62, 0.1, 0.5), rule) == Onset(60, 65)


@pytest.mark.parametrize(("change", "edge"), [(7, "start"), (8, "start"), (9, ""), (50, ""), (93, ""), (94, "end")])
def test_the_edges_of_the_record_censor(change, edge):
    found = onset(STEP_S, np.where(change <= STEP_S, 3.0, 1.0), UP)
    assert found == Onset(0 if edge == "start" else change - 1, change, edge)


def test_a_change_in_the_first_half_of_the_start_cannot_be_seen():
    assert onset(STEP_S, np.where(STEP_S >= 4, 3.0, 1.0), UP) is None


@pytest.mark.parametrize("rule", [UP, FALL])
@pytest.mark.parametrize("size", [0, 1, 8])
def test_a_short_record_says_nothing(rule, size):
    assert onset(STEP_S[:size], np.ones(size), rule) is None
    assert not long_enough(np.ones(size), rule)
    assert long_enough(np.ones(9), rule)


def test_infinite_values_are_as_if_not_recorded():
    value_S = np.where(STEP_S >= 50, 3.0, 1.0)
    value_S[[3, 30, 49, 60]] = np.inf, -np.inf, np.nan, np.nan
    assert onset(STEP_S, value_S, UP) == Onset(49, 51)


@given(st.integers(10, 90), st.floats(1e-3, 1e3), st.integers(-50, 50), st.integers(0, 2**32 - 1))
def test_scale_and_clock_do_not_matter(change, scale, shift, seed):
    value_S = np.where(change <= STEP_S, 2.5, 1.0) * (1 + noise(np.random.default_rng(seed), 0.0, 0.1))
    for rule in (UP, FALL):
        plain, moved = onset(STEP_S, value_S, rule), onset(STEP_S + shift, scale * value_S, rule)
        assert (plain is None) == (moved is None)
        if plain is not None and moved is not None:
            assert (moved.lower - shift, moved.upper - shift, moved.edge) == (plain.lower, plain.upper, plain.edge)


@given(st.lists(st.booleans(), min_size=9, max_size=40), st.integers(1, 12), st.sampled_from([0.5, 0.8, 1.0]))
def test_the_first_stay_is_that_of_a_plain_search(out, hold, held):
    rule = LeavesStart(1, share=0.25, start=1, deviations=0.0, width=1, hold=hold, held=held)
    value_S = np.array([1.0, *(2.0 if one else 1.0 for one in out)])
    flags = [False, *out]

    def stays(place):
        window = flags[place : place + hold]
        return flags[place] and sum(window) >= held * len(window)

    wanted = next((place for place in range(len(flags)) if stays(place)), None)
    found = onset(np.arange(len(flags)), value_S, rule)
    assert (None if found is None else found.upper) == wanted
    if found is not None:
        assert found.lower == wanted - 1
        assert (found.edge == "end") == (wanted + hold > len(flags))


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=30), st.sampled_from([1, 3, 5]))
def test_the_running_median_is_scipys_inside(values, width):
    half = width // 2
    inside = slice(half, len(values) - half)
    np.testing.assert_array_equal(
        running_median(np.array(values), width)[inside], median_filter(np.array(values), width)[inside]
    )


def test_order_of_onsets():
    early, late = Onset(3, 4), Onset(4, 5)
    assert early.before(late) and not late.before(early)
    coarse = Onset(0, 5)
    assert not coarse.before(late) and not late.before(coarse)
    assert coarse.before(Onset(5, 6))
    assert coarse.middle == 2.5
