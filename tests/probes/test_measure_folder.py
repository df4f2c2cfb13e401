"""The folder of a measurement: what survives a kill, what is refused, and tables that say the same twice."""

import csv
import math
import os
from dataclasses import fields

import pyarrow.parquet as pq
import pytest

from stablerank.errors import RunFolderError
from stablerank.probes.measure import MeasuredMatrix, MeasuredTensor
from stablerank.probes.measure_folder import COLUMNS, MeasureFolder, fingerprint, rows_table
from stablerank.probes.sources.stored import Problem
from stablerank.runs.geometry_rows import GeometryRow

QUESTION = {"path": "model", "against": None, "metrics": ["stable_rank"], "rtol": 1e-3, "files": "0123"}
NAN = math.nan


def row(module, layer=0, value=2.5, status="exact", upper=2.75):
    nulls = (5.0, 4.5, 5.5, "gaussian_matrix")
    return GeometryRow(
        "run", 0, 0, layer, module, "weight", "stable_rank", value, value, upper, 1.0, status, 2, *nulls, None
    )


def tensor(name, *rows, problems=()):
    return MeasuredTensor(name, "BF16", 96, (MeasuredMatrix(name, (6, 8), rows),), tuple(problems))


TENSORS = (
    tensor("a", row('a,"quoted"\nname', None, 0.1 + 0.2), row("a", None, math.pi, upper=math.inf)),
    tensor("b", row("q", 3, NAN, "non_finite", NAN), problems=[Problem("file", "b", "It holds NaN.")]),
    tensor("ü", row("k", 4, 1e-300)),
)


def folder_with(path, *tensors):
    folder = MeasureFolder(path)
    assert folder.claim(QUESTION) == []
    for measured in tensors:
        folder.keep(measured)
    return folder


def contents(path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def test_what_was_kept_is_there_at_the_next_start(tmp_path):
    folder_with(tmp_path / "deep" / "out", *TENSORS)
    # NaN is no equal of itself, but prints alike.
    assert repr(MeasureFolder(tmp_path / "deep" / "out").claim(QUESTION)) == repr(list(TENSORS))


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_cut_short_is_forgotten_and_never_glued_to_the_next(tmp_path, cut):
    folder_with(tmp_path, *TENSORS)
    parts = tmp_path / "tensors.jsonl"
    parts.write_bytes(parts.read_bytes()[:-cut])
    again = MeasureFolder(tmp_path)
    assert repr(again.claim(QUESTION)) == repr(list(TENSORS[:2]))
    again.keep(TENSORS[2])
    assert repr(MeasureFolder(tmp_path).claim(QUESTION)) == repr(list(TENSORS))


def test_a_kill_before_the_first_tensor(tmp_path):
    folder_with(tmp_path)
    assert MeasureFolder(tmp_path).claim(QUESTION) == []


def test_a_kill_while_the_first_file_was_written(tmp_path):
    (tmp_path / ".measure.json.left-over").write_text('{"ques')
    folder_with(tmp_path, *TENSORS)
    assert repr(MeasureFolder(tmp_path).claim(QUESTION)) == repr(list(TENSORS))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "thesis.tex").write_text("x"), "something else than a measurement"),
        (lambda path: (path / "measure.json").write_text("["), "something else than a measurement"),
        (lambda path: (path / "measure.json").write_text("[]"), "something else than a measurement"),
    ],
    ids=["foreign", "broken", "no object"],
)
def test_a_folder_that_holds_something_else(tmp_path, spoil, words):
    spoil(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=words) as error:
        MeasureFolder(tmp_path).claim(QUESTION)
    assert str(tmp_path) in str(error.value) and "--out" in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "words"), [({"rtol": 1e-2}, "differs in rtol"), ({"files": "4", "against": "b"}, "in against, files")]
)
def test_another_question_is_refused_and_nothing_overwritten(tmp_path, change, words):
    folder_with(tmp_path, *TENSORS)
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=words):
        MeasureFolder(tmp_path).claim({**QUESTION, **change})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("line", ["no JSON\n", "[]\n", '{"step": 0}\n', "{}\n"])
def test_damaged_lines(tmp_path, line):
    folder_with(tmp_path, *TENSORS)
    with (tmp_path / "tensors.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(RunFolderError, match=r"tensors.jsonl is damaged: delete .* and measure again\.$"):
        MeasureFolder(tmp_path).claim(QUESTION)


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/out"):
        with pytest.raises(RunFolderError, match="cannot be written"):
            MeasureFolder(tmp_path / place).claim(QUESTION)


def test_both_tables_hold_the_same(tmp_path):
    folder = folder_with(tmp_path, *TENSORS)
    folder.complete({"kind": "weight"}, TENSORS)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert tuple(table.column_names) == COLUMNS
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == table.num_rows == 4
    for line, cells in zip(lines, table.to_pylist(), strict=True):
        for column, cell in cells.items():
            if cell is None or cell != cell:
                assert line[column] == ""
            else:
                assert type(cell)(line[column]) == cell


def test_the_table_holds_every_row_and_its_matrix():
    cells = rows_table(TENSORS).to_pylist()
    expected = [(m, r) for t in TENSORS for m in t.matrices for r in m.rows]
    for line, (matrix, measured) in zip(cells, expected, strict=True):
        assert (line["name"], line["rows"], line["columns"], line["dtype"]) == (matrix.name, 6, 8, "BF16")
        for field in fields(GeometryRow):
            assert repr(line[field.name]) == repr(getattr(measured, field.name))


def test_columns_keep_their_types_whatever_the_rows_hold(tmp_path):
    types = {field.name: field.type for field in rows_table(()).schema}
    assert types == {field.name: field.type for field in rows_table((tensor("a", row("a", None, NAN)),)).schema}
    folder = folder_with(tmp_path)
    folder.complete({}, ())
    assert {field.name: field.type for field in pq.read_table(tmp_path / "rows.parquet").schema} == types


def test_only_a_completed_folder_is_finished(tmp_path):
    folder = folder_with(tmp_path, *TENSORS)
    assert folder.finished() is None
    folder.complete({"kind": "weight", "seconds": 1.5}, TENSORS)
    assert folder.finished() == {"kind": "weight", "seconds": 1.5}
    before = contents(tmp_path)
    assert repr(MeasureFolder(tmp_path).claim(QUESTION)) == repr(list(TENSORS))
    assert contents(tmp_path) == before


def test_the_fingerprint_sees_a_file_written_again(tmp_path):
    file, other = tmp_path / "a", tmp_path / "b"
    for path in (file, other):
        path.write_bytes(b"0123")
    first = fingerprint([str(file), str(other)])
    assert first == fingerprint([str(other), str(file), str(file)])
    assert first != fingerprint([str(file)])
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert first != fingerprint([str(file), str(other)])
