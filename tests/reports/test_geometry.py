"""Aggregates of stable ranks, against pandas."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stablerank.reports import geometry
from stablerank.reports.read import UpdateRanks, read_run


@pytest.fixture
def ranks(shared_run: Path) -> UpdateRanks:
    found = read_run(shared_run).ranks
    assert found is not None
    return found


@pytest.fixture
def frame(ranks: UpdateRanks) -> pd.DataFrame:
    return pd.DataFrame({name.removesuffix("_R"): column for name, column in vars(ranks).items()}).dropna()


def test_the_curve_is_the_mean_of_each_step_and_starts_where_an_update_exists(
    ranks: UpdateRanks, frame: pd.DataFrame
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = geometry.mean_curve(ranks)
    by_step = frame.groupby("step")
    assert curve.step_S.tolist() == list(range(5, 61, 5))
    np.testing.assert_allclose(curve.mean_S, by_step["value"].mean())
    np.testing.assert_allclose(curve.low_S, by_step["value"].quantile(0.1))
    np.testing.assert_allclose(curve.null_high_S, by_step["null_high"].mean())


def test_a_grid_holds_every_measurement_of_its_module(ranks: UpdateRanks, frame: pd.DataFrame) -> None:
    grids = {grid.module: grid for grid in geometry.grids(ranks)}
    expected = frame[frame.module == "mlp.up_proj"].pivot(index="layer", columns="step", values="value")
    np.testing.assert_array_equal(grids["mlp.up_proj"].value_LS, expected)
    assert grids["lm_head"].layer_names == ["-"] and grids["mlp.up_proj"].layer_names == ["0", "1", "2", "3"]


def test_a_cell_that_was_not_measured_is_nan(ranks: UpdateRanks) -> None:
    hole = (ranks.module_R == "mlp.up_proj") & (ranks.layer_R == 2) & (ranks.step_R == 60)
    grid = next(g for g in geometry.grids(ranks.where(~hole)) if g.module == "mlp.up_proj")
    assert np.argwhere(np.isnan(grid.value_LS)).tolist() == [[2, 11]]


def test_a_reading_counts_the_matrices_outside_their_null() -> None:
    ranks = UpdateRanks(
        step_R=np.array([5, 5, 10, 10, 10]),
        layer_R=np.array([0, 1, 0, 1, 2]),
        module_R=np.array(["m"] * 5),
        value_R=np.array([2.0, 4.0, 1.0, 5.0, 9.0]),
        null_R=np.full(5, 5.0),
        null_low_R=np.full(5, 4.0),
        null_high_R=np.full(5, 6.0),
    )
    reading = geometry.overall(ranks)
    assert (reading.below, reading.within, reading.above) == (1, 1, 1)
    assert (reading.first, reading.last, reading.null) == (3.0, 5.0, 5.0)
