"""SIGKILL at any moment, resume, and the tables equal those of an unbroken run.

Twenty kills of the whole demo are in benchmarks/kill_resume.py; this is the same check on a run of six steps.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stablerank.facade import continue_training, train
from stablerank.runs.folder import COMPLETE, RunFolder


def tables(folder: RunFolder) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions."""
    geometry = [{k: v for k, v in row.items() if k != "run"} for row in folder.geometry.rows()]
    return {
        "metrics": folder.metrics.rows(),
        "evaluations": folder.evaluations.rows(),
        "geometry": sorted(map(json.dumps, geometry)),
        "rollouts": sorted(json.dumps(row) for row in folder.rollouts.rows()),
        "weights": (folder.model_path / "adapter_model.safetensors").read_bytes(),
    }


def kill_when(folder: RunFolder, recipe_path: Path, is_time: Callable[[], bool]) -> None:
    """Start the command line on a recipe and SIGKILL it as soon as ``is_time``."""
    command = [sys.executable, "-m", "stablerank", "train", str(recipe_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not is_time():
        assert process.poll() is None, "the run ended before the moment to kill it came"
        assert time.monotonic() < deadline, "the moment to kill the run never came"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.is_complete()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in a step", "inside a checkpoint"])
def test_a_killed_run_resumes_to_the_same_tables(small_recipe, tmp_path: Path, moment: str) -> None:
    settings = {"max_steps": 6, "save_steps": 2, "num_iterations": 2}
    unbroken = train(small_recipe(tmp_path / "unbroken", trainer=settings))
    raw = small_recipe(tmp_path / "killed", trainer=settings)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    folder = RunFolder(tmp_path / "killed")

    def is_time() -> bool:
        if moment == "in a step":
            return len(folder.metrics.rows()) == 3
        return any(not (path / COMPLETE).exists() for path in folder.checkpoints_path.glob("checkpoint-*"))

    kill_when(folder, tmp_path / "recipe.yaml", is_time)
    assert tables(continue_training(folder.path)) == tables(unbroken)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(small_recipe, tmp_path: Path) -> None:
    raw = small_recipe(tmp_path / "run", trainer={"max_steps": 200, "save_steps": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "stablerank", "train", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(tmp_path / "run")
    while not folder.complete_checkpoints():
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stablerank train --resume {tmp_path / 'run'}" in told
    assert "Traceback" not in told and not folder.is_complete()


def test_debris_of_a_checkpoint_is_not_resumed_from(small_recipe, tmp_path: Path) -> None:
    unbroken = train(small_recipe(tmp_path / "run"))
    expected = tables(unbroken)
    unbroken.summary_path.unlink()
    (unbroken.checkpoints_path / "checkpoint-4" / COMPLETE).unlink()
    # The last checkpoint is now debris: the run goes back to step 2 and finds the same way again.
    resumed = continue_training(unbroken.path)
    assert tables(resumed)["metrics"] == expected["metrics"]
    assert tables(resumed)["weights"] == expected["weights"]


def test_a_run_killed_before_its_summary_only_finishes(small_recipe, tmp_path: Path) -> None:
    folder = train(small_recipe(tmp_path / "run"))
    expected = tables(folder)
    folder.summary_path.unlink()
    assert tables(continue_training(folder.path)) == expected
