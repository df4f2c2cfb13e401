"""Tables that survive a kill at any moment and can be cut back to a step."""

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stablerank.runs.tables import JsonlTable, ShardedTable

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ROWS = st.lists(st.dictionaries(st.text(), VALUES), max_size=8).map(
    lambda rows: [{**row, "step": step} for step, row in enumerate(rows)]
)
NO_RESET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@pytest.fixture
def table(tmp_path):
    return JsonlTable(tmp_path / "metrics.jsonl")


@pytest.fixture
def shards(tmp_path):
    return ShardedTable(tmp_path / "rollouts")


def fill(shards, steps, count=2):
    rows = {step: [{"step": step, "row": row, "text": f"{step}:{row}"} for row in range(count)] for step in steps}
    for step in steps:
        shards.write(step, rows[step])
    return [row for step in sorted(steps) for row in rows[step]]


@NO_RESET
@given(rows=ROWS)
def test_rows_come_back_as_they_were_written(tmp_path, rows):
    table = JsonlTable(tmp_path / "rows.jsonl")
    table.path.unlink(missing_ok=True)
    for row in rows:
        table.append(row)
    assert table.rows() == rows


@NO_RESET
@given(rows=ROWS, last=st.integers(-1, 9))
def test_truncating_keeps_the_bytes_of_the_rows_that_stay(tmp_path, rows, last):
    """Two runs are compared byte for byte, one of them interrupted."""
    whole, short = JsonlTable(tmp_path / "whole.jsonl"), JsonlTable(tmp_path / "short.jsonl")
    for table, kept in ((whole, rows), (short, [row for row in rows if row["step"] <= last])):
        table.path.write_bytes(b"")
        for row in kept:
            table.append(row)
    whole.truncate(last)
    assert whole.path.read_bytes() == short.path.read_bytes()


def test_a_table_that_was_never_written_is_empty(table, shards):
    assert table.rows() == []
    assert shards.rows() == []
    assert shards.read() is None
    table.truncate(3)
    shards.truncate(3)
    shards.compact()
    assert table.rows() == []
    assert shards.rows() == []


def test_a_number_that_is_not_one_survives(table):
    table.append({"step": 1, "loss": float("nan"), "ratio": float("inf")})
    (row,) = table.rows()
    assert row["loss"] != row["loss"]
    assert row["ratio"] == float("inf")


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_last_line_is_no_row_and_goes_with_a_truncation(table, cut):
    for step in (1, 2, 3):
        table.append({"step": step, "loss": 0.5})
    table.path.write_bytes(table.path.read_bytes()[:-cut])
    assert [row["step"] for row in table.rows()] == [1, 2]
    table.truncate(9)
    table.append({"step": 3, "loss": 0.25})
    assert [row["step"] for row in table.rows()] == [1, 2, 3]


def test_a_killed_writer_leaves_whole_rows(table):
    code = f"""
from pathlib import Path
from stablerank.runs.tables import JsonlTable
table = JsonlTable(Path({str(table.path)!r}))
for step in range(10**9):
    table.append({{"step": step, "text": "x" * 2000}})
    if step == 50:
        print("go", flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    rows = table.rows()
    assert len(rows) > 50
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert {len(row["text"]) for row in rows} == {2000}


def test_shards_are_read_in_the_order_of_steps_and_written_again_in_place(shards):
    rows = fill(shards, [2, 10, 1])
    assert shards.rows() == rows
    fill(shards, [2])
    assert shards.rows() == rows


def test_parts_of_one_step_stand_side_by_side(shards):
    shards.write(0, [{"step": 0, "phase": "before"}], part="before")
    shards.write(3, [{"step": 3, "phase": "train"}])
    shards.write(3, [{"step": 3, "phase": "after"}], part="after")
    assert {row["phase"] for row in shards.rows()} == {"before", "train", "after"}


@pytest.mark.parametrize("last", [0, 1, 5, 10])
def test_shards_after_the_step_are_cut(shards, last):
    rows = fill(shards, [0, 1, 2, 5, 10])
    shards.truncate(last)
    assert shards.rows() == [row for row in rows if row["step"] <= last]


def test_a_shard_without_rows_does_no_harm(shards):
    shards.write(1, [])
    assert shards.rows() == []
    rows = fill(shards, [2])
    assert shards.rows() == rows
    shards.compact()
    assert shards.rows() == rows


def test_a_column_without_values_takes_its_type_from_another_shard(shards):
    shards.write(0, [{"step": 0, "advantage": None}])
    shards.write(1, [{"step": 1, "advantage": 0.5}])
    shards.write(2, [{"step": 2, "advantage": None}])
    for _ in range(2):
        assert [row["advantage"] for row in shards.rows()] == [None, 0.5, None]
        assert str(shards.read().schema.field("advantage").type) == "double"
        shards.compact()


def test_whole_numbers_and_fractions_share_a_column(shards):
    shards.write(1, [{"step": 1, "reward": 1}])
    shards.write(2, [{"step": 2, "reward": 0.5}])
    assert [row["reward"] for row in shards.rows()] == [1.0, 0.5]


def test_compacting_leaves_one_file_with_the_same_rows(shards):
    rows = fill(shards, [1, 2, 3])
    shards.compact()
    assert [path.name for path in shards.folder.iterdir()] == ["all.parquet"]
    assert shards.rows() == rows
    shards.compact()
    assert shards.rows() == rows


def test_compacting_killed_at_any_call_of_the_system_ends_the_same(tmp_path):
    """The kill comes before the n-th rename or deletion, in a process of its own; then somebody compacts again."""
    code = """
import os, signal, sys
from pathlib import Path
from stablerank.runs.tables import ShardedTable
left = int(sys.argv[2])
def audit(event, arguments):
    global left
    if event in ("os.rename", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
ShardedTable(Path(sys.argv[1])).compact()
"""
    killed = 0
    for calls in range(5):
        shards = ShardedTable(tmp_path / str(calls))
        rows = fill(shards, [1, 2, 3])
        done = subprocess.run([sys.executable, "-c", code, str(shards.folder), str(calls)], check=False)
        killed += done.returncode == -signal.SIGKILL
        assert shards.rows() == rows, "a reader in between sees every row once"
        shards.compact()
        assert shards.rows() == rows
        assert shards.shards() == []
    assert killed == 4, "one rename and three deletions"


def test_debris_of_a_killed_write_is_no_shard(shards):
    rows = fill(shards, [1])
    (shards.folder / ".step-00000002-rows.parquet.tmp").write_bytes(b"half")
    assert shards.rows() == rows
    shards.compact()
    assert shards.rows() == rows


def test_stock_readers_open_the_files(table, shards):
    table.append({"step": 1, "text": "ünïcode\n"})
    assert json.loads(table.path.read_text(encoding="utf-8").splitlines()[0]) == {"step": 1, "text": "ünïcode\n"}
    fill(shards, [1])
    assert pq.read_table(shards.folder).num_rows == 2
    assert os.listdir(shards.folder) == ["step-00000001-rows.parquet"]
