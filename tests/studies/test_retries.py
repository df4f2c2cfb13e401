"""A cell that dies starts again, then is a failure, and the matrix goes on; the next run takes up the rest."""

import json
import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stablerank.errors import RecipeError
from stablerank.studies.executors.local import Local, LocalPool, how_it_ended
from stablerank.studies.layout import StudyFolder
from stablerank.studies.runner import run
from stablerank.studies.status import status
from stablerank.studies.verdict import verdict


def write_study(folder, **arm):
    """Two arms that measure a tiny checkpoint each, exploratory and never locked."""
    torch.manual_seed(0)
    folder.mkdir()
    for name in ("one", "other"):
        save_file({"matrix": torch.randn(8, 8)}, folder / f"{name}.safetensors")
    rule = {"kind": "difference", "column": "stable_rank", "arm": "one", "against": "other"}
    plan = {
        "question": "?",
        "mode": "exploratory",
        "seeds": [0],
        "arms": {name: {"kind": "measure", "spec": f"{name}.safetensors", **arm} for name in ("one", "other")},
        "hypotheses": {"h": {"claim": "?", "rule": rule}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return StudyFolder(folder)


class Killer:
    """Kills a cell's process group on its first ``times`` starts; keeps the steps."""

    def __init__(self, study, cell, times):
        self.study, self.cell, self.times, self.steps = study, cell, times, []

    def __call__(self, cell, state):
        self.steps.append((cell, state))
        if (cell, state) == (self.cell, "running") and self.times:
            self.times -= 1
            os.killpg(json.loads(self.study.running_path.read_text())[cell], signal.SIGKILL)

    def of(self, cell):
        return [state for name, state in self.steps if name == cell]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study whose first cell was killed once, and the steps of its run."""
    study = write_study(tmp_path_factory.mktemp("retries") / "study")
    killer = Killer(study, "one--0", 1)
    assert {cell.state for cell in run(study.path, progress=killer)} == {"done"}
    return study, killer


def test_a_cell_that_died_starts_again(ran):
    _, killer = ran
    assert killer.of("one--0") == ["running", "missing", "running", "done"]
    assert killer.of("other--0") == ["running", "done"]


def test_only_what_is_stale_runs_again(ran):
    study, _ = ran
    assert verdict(study.path).state == "decided"
    save_file({"matrix": torch.eye(8)}, study.path / "other.safetensors")
    assert {cell.cell: cell.state for cell in status(study.path)} == {"one--0": "done", "other--0": "stale"}
    assert verdict(study.path).state == "incomplete"
    begun = []
    run(study.path, progress=lambda *step: begun.append(step))
    assert begun == [("one--0", "done"), ("other--0", "running"), ("other--0", "done")]
    result = json.loads(study.result_path("other--0").read_text())
    assert result["units"]["stable_rank"]["matrix"] == pytest.approx(8, rel=1e-3)
    assert verdict(study.path).state == "decided"


def test_a_cell_that_keeps_dying_is_a_failure_and_the_matrix_goes_on(tmp_path):
    study = write_study(tmp_path / "study")
    killer = Killer(study, "one--0", 2)
    found = {cell.cell: cell for cell in run(study.path, progress=killer, retries=1)}
    assert killer.of("one--0") == ["running", "missing", "running", "failed"]
    assert (found["one--0"].state, found["other--0"].state) == ("failed", "done")
    assert found["one--0"].error == (
        "its process was killed by SIGKILL, as one that runs out of memory is, the last of 2 starts"
    )
    assert verdict(study.path).state == "invalid"
    begun = []
    run(study.path, progress=lambda *step: begun.append(step))
    assert sorted(begun) == [("one--0", "done"), ("one--0", "running"), ("other--0", "done")]


def test_a_selection_runs_nothing_else(tmp_path):
    study = write_study(tmp_path / "study")
    (cell,) = run(study.path, cells=["other--0"])
    assert (cell.cell, cell.state) == ("other--0", "done")
    assert not study.cell_path("one--0").exists()
    with pytest.raises(RecipeError, match="retries is -1"):
        run(study.path, retries=-1)


class Waiting:
    def __init__(self, memory):
        self.memory = memory


def test_room_is_made_of_cores_and_memory(tmp_path):
    pool = LocalPool(StudyFolder(tmp_path), 0, 3, 10.0)
    assert pool.has_room(10.0, [])
    assert pool.has_room(4.0, [Waiting(6.0)])
    assert not pool.has_room(4.1, [Waiting(6.0)])
    assert not pool.has_room(0.0, [Waiting(0.0)] * 3)


def test_a_cell_that_can_never_fit_is_refused_before_anything_runs(tmp_path):
    study = write_study(tmp_path / "study", memory=3)
    with pytest.raises(RecipeError, match=r"arm one asks for 3 GiB, but all cells together have 2 GiB here"):
        run(study.path, executor=Local(memory=2))
    assert not study.cell_path("one--0").exists()


def test_endings_in_words():
    assert how_it_ended(-signal.SIGTERM) == "was killed by SIGTERM"
    assert how_it_ended(3) == "ended with exit code 3 and no result"
