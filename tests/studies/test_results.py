import json

import numpy as np
import pytest

from stablerank.errors import DataError
from stablerank.studies.results import WHOLE, load_results, read_results, tabulate
from stablerank.studies.sealing import seal


def result(arm="a", seed=1, status="done", values=None, units=None):
    return seal(
        {
            "cell": f"{arm}--{seed}",
            "arm": arm,
            "seed": seed,
            "kind": "train",
            "study_sha256": None,
            "exploratory": True,
            "status": status,
            "error": None if status == "done" else "RuntimeError: out of luck",
            "seconds": 1.0,
            "values": values or {},
            "units": units or {},
            "provenance": {},
        }
    )


def write(folder, *results):
    for content in results:
        (folder / f"{content['cell']}.json").write_text(json.dumps(content))


def test_every_number_becomes_one_row(tmp_path):
    first = result("a", 1, values={"gain": 0.5, "rank": None}, units={"gain": {"p1": 1.0, "p2": 0.0, "p3": None}})
    write(tmp_path, first, result("b", 2, values={"gain": 0.25}))
    table = load_results(tmp_path)
    rows = zip(table.cell_R, table.arm_R, table.seed_R, table.unit_R, table.column_R, table.value_R, strict=True)
    found = {tuple(row[:5]): row[5] for row in rows}
    known = {key: value for key, value in found.items() if not np.isnan(value)}
    assert known == {
        ("a--1", "a", 1, WHOLE, "gain"): 0.5,
        ("a--1", "a", 1, "p1", "gain"): 1.0,
        ("a--1", "a", 1, "p2", "gain"): 0.0,
        ("b--2", "b", 2, WHOLE, "gain"): 0.25,
    }
    assert found.keys() - known.keys() == {("a--1", "a", 1, WHOLE, "rank"), ("a--1", "a", 1, "p3", "gain")}
    assert table.value_R[table.rows("b", "gain")].tolist() == [0.25]
    assert list(table.arms("gain")) == ["a", "b"]
    assert table.rows("b", "rank").size == 0


def test_failed_cells_are_read_but_have_no_numbers(tmp_path):
    write(tmp_path, result("a", 1, status="failed", values={"gain": 9.0}), result("a", 2, values={"gain": 1.0}))
    results = read_results(tmp_path)
    assert {cell: content["status"] for cell, content in results.items()} == {"a--1": "failed", "a--2": "done"}
    assert tabulate(results.values()).value_R.tolist() == [1.0]


def test_some_cells_only(tmp_path):
    write(tmp_path, result("a", 1), result("a", 2))
    assert list(read_results(tmp_path, ["a--2", "a--3"])) == ["a--2"]
    assert list(read_results(tmp_path)) == ["a--1", "a--2"]


def test_no_results_are_an_empty_table(tmp_path):
    assert load_results(tmp_path / "nowhere").value_R.size == 0


def test_files_under_way_are_not_results(tmp_path):
    (tmp_path / ".a--1.json.k3j").write_text("{")
    (tmp_path / ".a--1.json").write_text("{")
    assert read_results(tmp_path) == {}


def edited(content):
    return json.dumps({**content, "seconds": 2.0})


def renamed(content):
    return json.dumps(result("b", 7))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: json.dumps(content)[:-9], "cannot be read as JSON"),
        (lambda content: "[]", "lacks 'cell'"),
        (lambda content: json.dumps(seal({"cell": "a--1"})), "lacks 'arm'"),
        (edited, "changed after it was sealed"),
        (renamed, "is the result of cell b--7"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, said):
    write(tmp_path, result())
    path = tmp_path / "a--1.json"
    path.write_text(damage(result()))
    with pytest.raises(DataError) as refused:
        read_results(tmp_path)
    assert said in str(refused.value) and str(path) in str(refused.value)
