"""Files that are whole or absent."""

import json
import stat

import pytest

from stablerank.runs.atomic import write_json, write_text


def test_writes_folders_text_and_permissions(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "ünï\n")
    assert path.read_text(encoding="utf-8") == "ünï\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_failure_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new, then a lone surrogate: \ud800")
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path):
    (tmp_path / "report.html" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "report.html", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_json_comes_back(tmp_path):
    value = {"text": "ü", "number": 0.1, "nothing": None, "list": [1, 2]}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value
    write_json(tmp_path / "x.json", float("nan"))
    assert (tmp_path / "x.json").read_text() == "NaN\n"
