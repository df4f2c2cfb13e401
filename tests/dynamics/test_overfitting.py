"""The course of a run with a held-out loss, on tables whose answer is known."""

import math
from typing import Any

import pytest

from stablerank.dynamics.overfitting import Course, ranks_at

Row = dict[str, Any]


def evaluation(step: int, held_out: float, train: float, *, width: float = 0.0, phase: str = "curve") -> Row:
    return {
        "step": step,
        "phase": phase,
        "loss": held_out,
        "loss_low": held_out - width,
        "loss_train": train,
    }


def rank(step: int, value: float, *, layer: int | None = 0, kind: str = "update", metric: str = "stable_rank") -> Row:
    return {"step": step, "layer": layer, "module": "q_proj", "kind": kind, "metric": metric, "value": value}


def course(held_out: list[float], train: list[float], geometry: list[Row] | None = None, width: float = 0.0) -> Course:
    curve = [evaluation(10 * (at + 1), *pair, width=width) for at, pair in enumerate(zip(held_out, train, strict=True))]
    return Course.of([evaluation(0, 2.0, 1.0, phase="before"), *curve], geometry or [])


def test_a_run_overfits_when_the_held_out_loss_rises_and_that_of_training_falls() -> None:
    assert course([1.0, 0.8, 1.2], [0.9, 0.5, 0.1]).overfits is True
    assert course([1.0, 0.8, 0.8], [0.9, 0.5, 0.1]).overfits is False


def test_a_rise_inside_the_interval_is_no_overfitting() -> None:
    assert course([1.0, 0.8, 1.2], [0.9, 0.5, 0.1], width=0.5).overfits is False


def test_a_run_whose_training_loss_rises_too_diverges_and_does_not_overfit() -> None:
    assert course([1.0, 0.8, 1.2], [0.9, 0.5, 0.6]).overfits is False


def test_without_a_curve_nothing_is_said() -> None:
    bare = course([], [])
    assert bare.overfits is None and bare.best is None and bare.at_loss(0.5) is None


def test_moments_are_the_first_that_reach_a_share_of_the_loss_or_a_norm() -> None:
    norms = [
        rank(step, value, layer=layer, metric="frobenius") for step, value in ((10, 3.0), (20, 6.0)) for layer in (0, 1)
    ]
    found = course([1.0, 0.8], [0.5, 0.1], norms)
    assert (found.at_loss(0.5), found.at_loss(0.1), found.at_loss(0.05)) == (10, 20, None)
    assert found.norms[10] == pytest.approx(math.hypot(3, 3))
    assert (found.at_norm(4.0), found.at_norm(5.0), found.at_norm(9.0)) == (10, 20, None)


def test_ranks_are_those_of_the_last_measurement_by_a_step_and_of_one_kind() -> None:
    rows = [rank(10, 2.0), rank(20, 3.0), rank(20, 9.0, kind="effect"), rank(20, math.nan, layer=1)]
    found = course([1.0], [1.0], rows)
    assert ranks_at(found.updates, 19) == {"0.q_proj": 2.0} and ranks_at(found.updates, 25) == {"0.q_proj": 3.0}
    assert ranks_at(found.updates, 5) == ranks_at(found.updates, None) == {}
    assert ranks_at(found.effects, 20) == {"0.q_proj": 9.0}


def test_a_trend_is_the_order_of_values_with_steps() -> None:
    falls = [rank(step, 10 - step / 10) for step in range(10, 60, 10)]
    mixed = [rank(step, value, layer=1) for step, value in zip(range(10, 60, 10), (1, 5, 2, 4, 3), strict=True)]
    outside = [rank(step, float(step), layer=None) for step in (10, 20, 30)]
    trend = course([1.0], [1.0], falls + mixed + outside).trend
    updates = course([1.0], [1.0], falls + mixed + outside).updates
    assert trend(updates) == {"0.q_proj": pytest.approx(-1), "1.q_proj": pytest.approx(0.2), "q_proj": None}
    assert trend(updates, first=30)["0.q_proj"] is None, "three measurements are no trend"
    assert trend(updates, last=40)["0.q_proj"] == pytest.approx(-1)


def test_a_constant_has_no_trend() -> None:
    found = course([1.0], [1.0], [rank(step, 2.0) for step in range(10, 60, 10)])
    assert found.trend(found.updates) == {"0.q_proj": None}
