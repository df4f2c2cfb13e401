"""Real processes and real SIGKILLs: whatever is killed, the next start finishes what is missing, with one verdict."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stablerank.errors import RecipeError, RunFolderError, StablerankError
from stablerank.runs.folder import RunFolder
from stablerank.studies.cells import run_cell
from stablerank.studies.killing import KillWatch, killed_hypotheses
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import lock
from stablerank.studies.plan import Plan
from stablerank.studies.processes import claimed, is_claimed, threads_for
from stablerank.studies.runner import run
from stablerank.studies.status import status
from stablerank.studies.verdict import verdict

PATIENCE = 120


def write_study(folder, recipe=None, **sections):
    """Two arms that measure small checkpoints with two seeds, unless told otherwise; locked."""
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, columns in (("flat", 40), ("steep", 8)):
        save_file({f"matrix{i}": torch.randn(40, columns) for i in range(6)}, folder / f"{name}.safetensors")
    plan = {
        "question": "Is the square matrix flatter than the tall one?",
        "mode": "exploratory",
        "seeds": [0, 1],
        "arms": {
            "steep": {"kind": "measure", "spec": "steep.safetensors"},
            "flat": {"kind": "measure", "spec": "flat.safetensors", "difficulty": 1},
        },
        "hypotheses": {
            "flatter": {
                "claim": "It is.",
                "rule": {"kind": "difference", "column": "stable_rank", "arm": "flat", "against": "steep"},
            }
        },
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, **sections}))
    lock(folder)
    return StudyFolder(folder)


@pytest.fixture(autouse=True)
def same_threads_everywhere(monkeypatch):
    """The last bits depend on the number of threads, and some cells run in this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


def start(study):
    """`stablerank study run` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "stablerank", "study", "run", str(study.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def wait_until(is_so, process):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert process.poll() is None, f"the runner ended early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cells_under_way(study):
    """Process ids by cell, as a living runner notes them."""
    alive = is_claimed(study) and study.running_path.exists()
    return json.loads(study.running_path.read_text()) if alive else {}


def is_alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def numbers(study):
    """What a verdict rests on, cell by cell, but for times and memory."""
    found = {}
    for path in sorted(study.results_path.iterdir()):
        result = json.loads(path.read_text())
        own = {k: v for k, v in result["values"].items() if k not in ("train_seconds", "peak_memory_bytes")}
        found[path.stem] = result["status"], own, result["units"]
    return found


def run_here(study, place):
    """The cells of a study, one after the other in this process and without a runner, in a folder of their own."""
    shutil.copytree(study.path, place, ignore=shutil.ignore_patterns("results", "runs", "logs", "verdict*"))
    for cell in sorted((place / "cells").glob("*.json")):
        run_cell(cell)
    return StudyFolder(place)


def judged(study):
    """The whole verdict: no time and no place stands in it."""
    found = verdict(study.path)
    assert found.state == "decided"
    return found


@pytest.mark.slow
def test_killing_runner_and_cells_anywhere_changes_nothing(tmp_path):
    study = write_study(tmp_path / "study")
    killed = start(study)
    wait_until(lambda: cells_under_way(study), killed)
    (orphan,) = cells_under_way(study).values()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()

    stopped = start(study)
    wait_until(lambda: set(cells_under_way(study).values()) - {orphan}, stopped)
    assert not is_alive(orphan), "a second runner never works beside a cell of the first"
    (cell,) = cells_under_way(study).values()
    stopped.terminate()
    _, told = stopped.communicate(timeout=PATIENCE)
    assert (stopped.returncode, is_alive(cell)) == (130, False)
    assert "stablerank study run" in told.splitlines()[-1]

    steps = []

    def kill_the_first(cell, state):
        if state == "running" and not steps:
            os.killpg(cells_under_way(study)[cell], signal.SIGKILL)
        steps.append((cell, state))

    bereft = run(study.path, progress=kill_the_first, retries=0)
    (lost,) = (cell.cell for cell in bereft if cell.state != "done")
    assert steps[:2] == [(lost, "running"), (lost, "failed")]
    assert next(cell.error for cell in bereft if cell.cell == lost).startswith("its process was killed by SIGKILL")

    steps.clear()
    finished = run(study.path, progress=lambda *step: steps.append(step))
    assert {cell.state for cell in finished} == {"done"}
    others = [(cell.cell, "done") for cell in finished if cell.cell != lost]
    assert steps == [*others, (lost, "running"), (lost, "done")], "only what is missing is run"
    unbroken = run_here(study, tmp_path / "unbroken")
    assert numbers(study) == numbers(unbroken)
    assert judged(study) == judged(unbroken)


@pytest.mark.slow
def test_a_killed_training_cell_goes_on_from_its_checkpoint(tmp_path):
    recipe = {
        "model": {"path": "zoo:arith-student"},
        "data": {"kind": "arithmetic", "level": "mixed", "problems": 64},
        "reward": {"kind": "math_verify"},
        "optimiser": {"learning_rate": 1e-2},
        "trainer": {
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 48,
            "save_steps": 1,
        },
        "geometry": {"every": 1},
        "evaluation": {"split": "validation", "problems": 8},
        "output": "decided by the study",
    }
    gain = {"kind": "difference", "column": "pass_at_1_gain", "arm": "tune"}
    study = write_study(
        tmp_path / "study",
        recipe,
        seeds=[5],
        arms={"tune": {"kind": "train", "spec": "recipe.yaml"}},
        hypotheses={"gain": {"claim": "It learns.", "rule": gain}},
    )
    process, trained = start(study), RunFolder(study.run_path("tune--5"))
    wait_until(trained.complete_checkpoints, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not trained.is_complete()
    assert [cell.state for cell in run(study.path)] == ["done"]
    log = study.log_path("tune--5").read_text()
    assert log.count("evaluation before") == 1, "what the first start evaluated is not evaluated again"
    unbroken = run_here(study, tmp_path / "unbroken")
    assert numbers(study) == numbers(unbroken)
    assert judged(study) == judged(unbroken)


def test_one_runner_at_a_time(tmp_path):
    study = write_study(tmp_path / "study")
    assert not is_claimed(study)
    with claimed(study):
        assert is_claimed(study)
        with pytest.raises(RunFolderError, match="is being run by another process"), claimed(study, patience=0.1):
            pass
    assert not is_claimed(study)


def test_a_failure_is_told_and_tried_again(tmp_path):
    rule = {"kind": "difference", "column": "stable_rank", "arm": "flat"}
    study = write_study(
        tmp_path / "study",
        seeds=[0],
        arms={"flat": {"kind": "measure", "spec": "flat.safetensors"}},
        hypotheses={"flat": {"claim": "It is.", "rule": rule}},
    )
    cell = {"cell": "flat--0", "arm": "flat", "seed": 0, "kind": "measure", "spec": "nowhere", "overrides": []}
    study.cell_path("flat--0").parent.mkdir()
    study.cell_path("flat--0").write_text(
        json.dumps({**cell, "study_sha256": lock(study.path).sha256, "exploratory": True})
    )
    run_cell(study.cell_path("flat--0"))
    (failed,) = status(study.path)
    assert (failed.state, "nowhere" in failed.error) == ("failed", True)
    (done,) = run(study.path, jobs=2)
    assert (done.state, done.error) == ("done", None)


@pytest.mark.parametrize("place", ["plan.yaml", "flat.safetensors", "results/flat--0.json"])
def test_nothing_runs_on_what_was_tampered_with(tmp_path, place):
    study = write_study(tmp_path / "study", seeds=[0])
    study.results_path.mkdir()
    study.result_path("flat--0").write_text("{}")
    if place != "results/flat--0.json":
        study.result_path("flat--0").unlink()
        with (study.path / place).open("ab") as file:
            file.write(b"#")
    with pytest.raises(StablerankError, match=place.replace(".", r"\.")):
        run(study.path)
    assert not study.cell_path("steep--0").exists()


def test_a_run_needs_a_plan_and_a_job(tmp_path):
    study = write_study(tmp_path / "study", seeds=[0])
    with pytest.raises(RecipeError, match="jobs is 0"):
        run(study.path, jobs=0)
    with pytest.raises(RecipeError, match="nowhere"):
        run(tmp_path / "nowhere")


def test_cells_share_the_cores():
    assert threads_for(1) == len(os.sched_getaffinity(0))
    assert threads_for(10_000) == 1


# --- kill rules --------------------------------------------------------------------------------------------------

HOPELESS = {"kind": "difference", "column": "median_stable_rank", "arm": "a", "direction": "less"}
PLAN = Plan.model_validate(
    {
        "question": "?",
        "seeds": [3, 1, 2, 4],
        "hardening": None,
        "arms": {name: {"kind": "measure", "spec": "m"} for name in "abcd"},
        "hypotheses": {
            "better": {
                "claim": "a is above c",
                "rule": {**HOPELESS, "against": "c", "direction": "greater"},
                "kill": HOPELESS,
            },
            "beats": {
                "claim": "b beats c",
                "rule": {"kind": "difference", "column": "median_stable_rank", "arm": "b", "against": "c"},
            },
        },
        "traps": {"lucky": {"kind": "difference", "column": "median_stable_rank", "arm": "c"}},
    }
)


def result(arm, seed, value):
    return {
        "cell": f"{arm}--{seed}",
        "arm": arm,
        "seed": seed,
        "status": "done",
        "values": {"median_stable_rank": value},
        "units": {},
    }


def results_of(values, arm="a"):
    return {f"{arm}--{seed}": result(arm, seed, value) for seed, value in values.items()}


def test_a_hypothesis_dies_in_the_first_round_in_which_its_kill_rule_holds():
    dead = {1: -1.0, 2: -1.01, 3: -0.99, 4: -1.0}
    assert killed_hypotheses(PLAN, results_of(dead)) == {"better": (1, 2)}
    assert killed_hypotheses(PLAN, results_of({1: -1.0})) == {}
    # With seed 1 unsettled, the rounds of later seeds are not complete.
    assert killed_hypotheses(PLAN, results_of({seed: dead[seed] for seed in (2, 3, 4)})) == {}
    assert killed_hypotheses(PLAN, results_of({seed: -value for seed, value in dead.items()})) == {}


def test_only_what_the_living_need_is_run():
    watch = KillWatch(PLAN)
    assert watch.unneeded_arms() == frozenset()
    watch.look(results_of({1: -1.0, 2: -1.01}))
    assert watch.killed == {"better": (1, 2)}
    assert watch.unneeded_arms() == {"a"}, "b and c serve a living hypothesis and a trap, and d nobody from the start"


@given(st.permutations([1, 2, 3, 4]), st.lists(st.floats(-1.2, 0.2), min_size=4, max_size=4))
def test_who_dies_does_not_depend_on_what_finishes_first(order, values):
    value_of = dict(zip((1, 2, 3, 4), values, strict=True))
    watch = KillWatch(PLAN)
    for count in range(1, 5):
        watch.look(results_of({seed: value_of[seed] for seed in order[:count]}))
    assert watch.killed == killed_hypotheses(PLAN, results_of(value_of))
