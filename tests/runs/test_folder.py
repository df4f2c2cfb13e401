"""The run folder: claimed once, never overwritten, cut back to a checkpoint."""

import json

import pytest

from stablerank.errors import RunFolderError
from stablerank.runs.atomic import write_json
from stablerank.runs.folder import COMPLETE, RunFolder, claim

MANIFEST = {"recipe": {"seed": 0}}


def refusal(call, *arguments):
    with pytest.raises(RunFolderError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ";" in text, "a remedy follows the fault"
    return text


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_claimed_with_its_manifest(tmp_path, exists):
    path = tmp_path / "runs" / "a"
    if exists:
        path.mkdir(parents=True)
    folder = claim(path, MANIFEST)
    assert folder.manifest() == MANIFEST
    assert list(contents(path)) == ["manifest.json"]
    assert not folder.is_complete()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["notes.txt"], ["is not empty and is not a run folder", "output=FOLDER"]),
        (["manifest.json"], ["holds an unfinished run", "stablerank train --resume {path}", "output=FOLDER"]),
        (["manifest.json", "summary.json"], ["holds a finished run", "stablerank report {path}", "output=FOLDER"]),
    ],
)
def test_an_occupied_folder_is_refused_and_left_as_it_is(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_text(json.dumps(MANIFEST))
    before = contents(tmp_path)
    text = refusal(claim, tmp_path, {"recipe": {"seed": 1}})
    for word in words:
        assert word.format(path=tmp_path) in text
    assert contents(tmp_path) == before


def test_a_place_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be made a folder" in refusal(claim, place, MANIFEST)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "null", '{"recipe": 3}'])
def test_what_is_no_run_folder(tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    assert "is not a run folder" in refusal(RunFolder(tmp_path).manifest)


def test_the_summary_marks_a_finished_run(tmp_path):
    folder = claim(tmp_path / "a", MANIFEST)
    assert "is not finished" in refusal(folder.summary)
    write_json(folder.summary_path, {"steps": 3})
    assert folder.is_complete()
    assert folder.summary() == {"steps": 3}


def test_only_checkpoints_with_the_marker_count_and_in_the_order_of_steps(tmp_path):
    folder = RunFolder(tmp_path)
    for step, is_whole in ((2, True), (10, True), (9, True), (20, False)):
        place = folder.checkpoints_path / f"checkpoint-{step}"
        place.mkdir(parents=True)
        if is_whole:
            write_json(place / COMPLETE, {"step": step})
    assert [step for step, _ in folder.complete_checkpoints()] == [2, 9, 10]
    assert [path.name for _, path in folder.complete_checkpoints()] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]


def test_truncating_cuts_every_table(tmp_path):
    folder = RunFolder(tmp_path)
    tables = (folder.metrics, folder.timings, folder.evaluations, folder.geometry, folder.rollouts)
    for step in range(1, 6):
        for table in tables[:3]:
            table.append({"step": step})
        for table in tables[3:]:
            table.write(step, [{"step": step}])
    folder.truncate(3)
    for table in tables:
        assert [row["step"] for row in table.rows()] == [1, 2, 3]
    folder.truncate(0)
    for table in tables:
        assert table.rows() == []
