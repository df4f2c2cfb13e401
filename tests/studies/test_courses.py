"""Columns of a run's course: what they are, and None where a run has no such moment."""

import pytest

from stablerank.dynamics.overfitting import Course, Moment
from stablerank.studies.courses import COLUMNS, PLAIN, UNIT_COLUMNS, columns_of

HELD_OUT = {10: 1.0, 20: 0.7, 30: 0.8, 40: 0.9, 50: 1.0}
TRAIN = {10: 0.9, 20: 0.5, 30: 0.2, 40: 0.05, 50: 0.01}


def course(moments, updates=None, norms=None):
    return Course(1.0, tuple(moments), updates or {}, {}, norms or {})


@pytest.fixture
def overfitted():
    moments = [Moment(step, HELD_OUT[step], HELD_OUT[step] - 0.05, TRAIN[step]) for step in HELD_OUT]
    updates = {step: {"0.q": 5 - step / 10, "1.q": 2.0 + step / 10} for step in HELD_OUT}
    return course(moments, updates, {step: step / 20 for step in HELD_OUT})


def test_every_column_is_there_whatever_the_run_has():
    values, units = columns_of(course([]))
    assert set(values) == COLUMNS == {*PLAIN, *UNIT_COLUMNS} and set(units) == UNIT_COLUMNS
    assert set(values.values()) == {None} and not any(units.values())


def test_ranks_at_moments_are_by_matrix_and_their_mean(overfitted):
    values, units = columns_of(overfitted)
    assert units["update_rank_at_half"] == {"0.q": 3.0, "1.q": 4.0}, "step 20"
    assert units["update_rank_at_tenth"] == {"0.q": 1.0, "1.q": 6.0}, "step 40"
    assert units["update_rank_at_norm_2"] == {"0.q": 1.0, "1.q": 6.0}, "step 40"
    assert units["update_rank_at_norm_4"] == {} and values["update_rank_at_norm_4"] is None
    assert units["update_rank_at_best"] == units["update_rank_at_half"]
    assert values["update_rank_at_end"] == pytest.approx((0 + 7) / 2)


def test_trends_are_from_the_best_moment_on(overfitted):
    values, units = columns_of(overfitted)
    assert units["update_rank_trend_after"] == {"0.q": pytest.approx(-1), "1.q": pytest.approx(1)}
    assert values["update_rank_trend_after"] == pytest.approx(0)
    assert units["update_rank_trend_before"] == {"0.q": None, "1.q": None}, "two measurements are no trend"
    assert values["update_rank_trend_before"] is None


def test_overfitting_and_when(overfitted):
    values, _ = columns_of(overfitted)
    assert (values["overfits"], values["best_step"]) == (1.0, 20.0)
    assert values["held_out_rise"] == pytest.approx(0.3)
