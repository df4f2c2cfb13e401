"""Reading a measurement and turning its rows into groups, heat maps and words; pandas and numpy are the oracles."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.errors import DataError
from stablerank.reports import measure, measure_figures
from stablerank.reports.measure import MeasuredRow
from stablerank.reports.measure_figures import LEVELS, draw, scale_of

Rows = tuple[MeasuredRow, ...]


def frame(rows: Rows) -> pd.DataFrame:
    table = pd.DataFrame([asdict(row) for row in rows])
    return table[table.metric == "stable_rank"]


def test_a_folder_reads_back_as_the_rows_that_were_written(
    weight_rows: Rows, write_measurement: Callable[..., Path], tmp_path: Path
) -> None:
    read = measure.read_measurement(write_measurement(tmp_path, weight_rows))
    pd.testing.assert_frame_equal(frame(read.rows), frame(weight_rows))
    assert read.meta["matrices"] == 73 and measure.metrics(read.rows)[0] == "stable_rank"


@pytest.mark.parametrize("damage", ["measure.json", "rows.parquet"])
def test_a_damaged_folder_is_named_with_the_remedy(
    damage: str, weight_rows: Rows, write_measurement: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_measurement(tmp_path / "out", weight_rows)
    (folder / damage).write_bytes(b"[]")
    with pytest.raises(DataError, match=r"out does not hold a whole measurement .*: write it with `stablerank measure"):
        measure.read_measurement(folder)
    (folder / damage).unlink()
    with pytest.raises(DataError):
        measure.read_measurement(folder)


def test_groups_are_the_module_types_with_their_medians(weight_rows: Rows) -> None:
    medians = frame(weight_rows).groupby("module")["value"].median()
    groups = measure.groups(weight_rows, "stable_rank")
    assert {group.module: group.median for group in groups} == pytest.approx(medians.to_dict())
    assert groups[-1].module == "lm_head", "matrices outside the layers come last"
    assert [measure.measured(group) for group in groups] == ["12", "11 of 12", "12", "12", "12", "12", "1"]


def test_outliers_are_the_planted_matrices_first(weight_rows: Rows) -> None:
    (first, more), (second, less), *_ = measure.outliers(weight_rows, "stable_rank")
    assert (first.name, second.name) == ("model.layers.4.mlp.gate_proj", "model.layers.9.mlp.down_proj")
    medians = frame(weight_rows).groupby("module")["value"].median()
    assert more == pytest.approx(first.value / medians["mlp.gate_proj"]) and more > 1 > less


def test_a_heat_map_holds_every_matrix_once(weight_rows: Rows) -> None:
    found = measure.heat_map(weight_rows, "stable_rank")
    inside = frame(weight_rows).dropna(subset="layer")
    expected = inside.pivot(index="module", columns="layer", values="value")
    assert [row.name for row in found.outside] == ["lm_head"] and len(found.cells) == len(inside)
    for cell in found.cells:
        value = expected.loc[found.modules[cell.row], found.layers[cell.column]]
        np.testing.assert_equal(cell.value, value)


def test_experts_share_a_cell_that_says_so(weight_rows: Rows) -> None:
    one = [row for row in weight_rows if row.metric == "stable_rank" and row.module == "mlp.down_proj"][:3]
    experts = [replace(row, layer=0, module=f"mlp.experts.{place}.down_proj") for place, row in enumerate(one)]
    found = measure.heat_map(experts, "stable_rank")
    (cell,) = found.cells
    assert found.modules == ("mlp.experts.*.down_proj",) and cell.value == np.median([row.value for row in one])
    drawing = draw(found)
    assert drawing is not None and "layer 0: 3 matrices, median [range]" in drawing.boxes[0].words


def test_updates_are_coloured_by_their_ratio_to_the_null(update_rows: Rows, weight_rows: Rows) -> None:
    updates, weights = (measure.heat_map(rows, "stable_rank") for rows in (update_rows, weight_rows))
    assert updates.against_null and not weights.against_null
    scale = scale_of(updates)
    assert scale is not None and scale.low * scale.high == pytest.approx(1) and scale.position(1.0) == 0.5
    collapsed = [cell for cell in updates.cells if scale.colour(cell.ratio) in ("d0", "d1")]
    assert sorted(updates.layers[cell.column] for cell in collapsed) == [3, 4, 5, 6, 7, 9]
    assert scale.colour(1.0) == f"d{LEVELS // 2}" and scale.colour(math.nan) == "none"


def test_a_stable_rank_is_drawn_on_a_logarithmic_scale_with_round_ticks(weight_rows: Rows) -> None:
    scale = scale_of(measure.heat_map(weight_rows, "stable_rank"))
    assert scale is not None and scale.is_log and (scale.low, scale.high) == pytest.approx((1.017, 24.4), rel=1e-3)
    assert [label for _, label in scale.ticks()] == ["2", "5", "10", "20"]
    assert scale.position(math.sqrt(scale.low * scale.high)) == pytest.approx(0.5)


def test_a_zero_does_not_bend_a_logarithmic_scale(weight_rows: Rows) -> None:
    known = [replace(row, metric="relative_norm") for row in weight_rows if row.metric == "stable_rank"]
    with_zero = [replace(known[0], value=0.0), *known[1:]]
    scale, other = (scale_of(measure.heat_map(rows, "relative_norm")) for rows in (with_zero, known[1:]))
    assert scale == other and scale is not None and scale.is_log and scale.colour(0.0) == "v0"


def test_a_map_without_a_value_is_not_drawn(weight_rows: Rows) -> None:
    nothing = [row for row in weight_rows if math.isnan(row.value)]
    assert nothing and draw(measure.heat_map(nothing, "stable_rank")) is None
    assert measure_figures.strips(nothing, "stable_rank") == []


def test_strips_name_the_null_and_leave_out_single_matrices(weight_rows: Rows) -> None:
    strips = measure_figures.strips(weight_rows, "stable_rank")
    assert [strip.title for strip in strips] == list(measure.heat_map(weight_rows, "stable_rank").modules)
    null = next(row for row in weight_rows if row.module == "mlp.gate_proj").null
    assert strips[4].caption.startswith(f"random: {null:.3g} (")


def test_text_on_every_colour_is_legible() -> None:
    for page in (0, 1):
        for _, colour in measure_figures._levels(page):
            ink = 1.0 if "#fff" in measure_figures._level_css(("v0", colour)) else 0.0
            ground = measure_figures._luminance(colour)
            contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
            assert contrast >= 4.5, "WCAG AA"


@pytest.mark.parametrize(
    ("value", "lower", "upper", "status", "expected"),
    [
        (13.4218, 13.4152, 13.4222, "certified", "13.42 ±0.007"),
        (13.4218, 13.4217, 13.4219, "certified", "13.42"),
        (13.4218, 12.0, 15.1, "open", "13.42 ±2"),
        (0.5, math.nan, math.nan, "estimated", "~0.5000"),
        (64.0, 64.0, 64.0, "exact", "64"),
        (math.inf, 1e17, math.inf, "exact", "≥1.000e+17"),
        (2e5, 123456.0, math.inf, "exact", "≥1.235e+05"),
        (math.nan, math.nan, math.nan, "zero", "all zero"),
        (math.nan, math.nan, math.nan, "non_finite", "non finite"),
    ],
)
def test_numbers_carry_their_bound_or_their_status(
    weight_rows: Rows, value: float, lower: float, upper: float, status: str, expected: str
) -> None:
    row = replace(weight_rows[0], value=value, lower=lower, upper=upper, status=status)
    assert measure.bounded(row) == expected


@given(st.floats(1.0, 1e4), st.floats(1e-5, 1.0))
def test_a_shown_bound_never_understates(value: float, relative: float) -> None:
    shown = measure._rounded_up(value * relative)
    assert float(shown) >= value * relative * (1 - 1e-9)


def test_sizes_are_in_decimal_units() -> None:
    sizes = [measure.size(count) for count in (17, 5_678, 269_060_552, 8e9, math.nan)]
    assert sizes == ["17 bytes", "5.68 kB", "269 MB", "8.00 GB", "not recorded"]


def test_a_headline_of_nothing_says_so() -> None:
    assert measure.headline((), {"kind": "update"}) == "No updates could be measured"
