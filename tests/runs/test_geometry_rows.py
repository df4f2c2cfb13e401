"""The schema of the one geometry table."""

import dataclasses

import pytest

from stablerank.runs.geometry_rows import GeometryRow

ROW = GeometryRow(
    "r", 1, 10, 3, "mlp.up_proj", "update", "stable_rank", 2.0, 1.9, 2.1, 1.0, "exact", 1, 4.0, 3.0, 5.0, "none", None
)


def test_columns_come_in_the_order_of_the_design():
    columns = "run,seed,step,layer,module,kind,metric,value,lower,upper,confidence,status,passes"
    nulls = "null,null_low,null_high,null_kind,tokens"
    assert ",".join(dataclasses.asdict(ROW)) == f"{columns},{nulls}"


def test_a_row_cannot_be_edited_and_equal_rows_are_equal():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROW.value = 3.0
    assert dataclasses.replace(ROW) == ROW
