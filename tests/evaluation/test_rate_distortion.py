"""The Bjøntegaard delta against scipy's own interpolation, and against curves whose distance is known."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import PchipInterpolator

from stablerank.errors import DataError
from stablerank.evaluation.rate_distortion import Curve, delta_quality, delta_rate, seed_mean

RATES = (10_000, 21_000, 30_000, 44_000, 52_000, 80_000)
QUALITIES = (0.41, 0.52, 0.6, 0.63, 0.66, 0.67)
ANCHOR = Curve(RATES, QUALITIES)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_curve_of_other_sizes_is_that_much_away(factor):
    found = delta_rate(ANCHOR, Curve(tuple(factor * rate for rate in RATES), QUALITIES))
    assert found.value == pytest.approx(factor - 1, abs=1e-9)
    assert (found.status, found.overlap, found.points, found.dropped) == ("known", 1.0, (6, 6), (0, 0))


def test_a_curve_that_is_better_throughout_is_that_much_better():
    found = delta_quality(ANCHOR, Curve(RATES, tuple(quality + 0.03 for quality in QUALITIES)))
    assert found.value == pytest.approx(0.03, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_integral_of_scipys_interpolation(seed):
    rng = np.random.default_rng(seed)
    curves = []
    for count in (5, 8):
        rates, qualities = np.sort(rng.uniform(1e4, 1e5, count)), np.sort(rng.uniform(0.2, 0.8, count))
        curves.append((rates, qualities))
    (rate_a, quality_a), (rate_t, quality_t) = curves
    low, high = max(quality_a[0], quality_t[0]), min(quality_a[-1], quality_t[-1])
    means = [
        PchipInterpolator(q, np.log10(r)).integrate(low, high) / (high - low)
        for r, q in ((rate_a, quality_a), (rate_t, quality_t))
    ]
    found = delta_rate(*(Curve(tuple(r), tuple(q)) for r, q in curves))
    assert found.value == pytest.approx(10 ** (means[1] - means[0]) - 1, rel=1e-6)
    assert 0 < found.overlap < 1


def test_points_that_another_beats_are_dropped_and_counted():
    test = Curve((*RATES, 60_000, 44_000), (*QUALITIES, 0.5, 0.63))
    found = delta_rate(ANCHOR, test)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.dropped == (0, 2)
    assert test.front() == ANCHOR


def test_curves_that_cannot_be_compared_have_a_status():
    few = delta_rate(ANCHOR, Curve(RATES[:4], (0.5, 0.4, 0.6, 0.7)))
    assert (few.status, few.points) == ("too few points", (6, 3))
    apart = delta_rate(ANCHOR, Curve(RATES, tuple(1 + quality for quality in QUALITIES)))
    assert (apart.status, apart.overlap) == ("no overlap", 0)
    assert math.isnan(few.value)
    assert math.isnan(apart.value)
    assert delta_rate(ANCHOR, Curve((), ())).status == "too few points"


@pytest.mark.parametrize("points", [((1, 2), (1,)), ((0, 1), (1, 2)), ((1, 2), (1, math.nan))])
def test_points_that_are_none_are_refused(points):
    with pytest.raises(DataError):
        Curve(*points)


def test_a_mean_over_seeds_has_students_interval():
    values = [-0.41, -0.3, -0.36]
    found = seed_mean([*values, math.nan])
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.seeds == 3
    assert math.isnan(seed_mean([0.5]).low)
    assert math.isnan(seed_mean([]).value)
