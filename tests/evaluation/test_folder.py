"""The folder of an evaluation: the same settings go on, anything else is refused and stays as it is."""

import json

import pytest

from stablerank.errors import RunFolderError
from stablerank.evaluation.folder import EvaluationFolder

SETTINGS = {"model": "m", "samples": 8, "temperature": 1.0, "files": ["0" * 64]}


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_the_same_settings_go_on(tmp_path):
    folder = EvaluationFolder(tmp_path / "a" / "out")
    folder.claim(SETTINGS)
    folder.pool("model", "greedy").write(0, [{"problem": 0}])
    before = contents(folder.path)
    folder.claim(dict(reversed(SETTINGS.items())))
    assert contents(folder.path) == before
    folder.complete(SETTINGS, {"measures": []})
    folder.claim(SETTINGS)
    assert json.loads((folder.path / "evaluation.json").read_text()) == {
        "settings": SETTINGS,
        "complete": True,
        "measures": [],
    }


def test_what_a_killed_write_left_is_no_obstacle(tmp_path):
    (tmp_path / ".evaluation.json.x1").write_text('{"set')
    EvaluationFolder(tmp_path).claim(SETTINGS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 4}, "samples=8, not 4"),
        ({"temperature": 0.5}, "temperature=1.0, not 0.5"),
        ({"against": "b"}, 'against=null, not "b"'),
        ({"files": ["1" * 64]}, "files="),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, words):
    folder = EvaluationFolder(tmp_path)
    folder.claim(SETTINGS)
    before = contents(tmp_path)
    with pytest.raises(RunFolderError) as error:
        folder.claim({**SETTINGS, **change})
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "--out" in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("name", "text"), [("notes.txt", "x"), ("evaluation.json", "{"), ("evaluation.json", "[]")])
def test_a_folder_that_holds_something_else(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(RunFolderError, match="something else than an evaluation"):
        EvaluationFolder(tmp_path).claim(SETTINGS)
    assert contents(tmp_path) == {name: text.encode()}


def test_a_place_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be made a folder"):
        EvaluationFolder(tmp_path / "file" / "out").claim(SETTINGS)
