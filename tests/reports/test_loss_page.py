"""The page of a run with a held-out loss: its curve, its best step, and the change of its layers' outputs."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stablerank.reports.html import write_report
from stablerank.runs.atomic import write_json
from stablerank.runs.folder import RunFolder

CURVE = {0: 2.0, 5: 1.2, 10: 1.5, 15: 1.9}
LAYERS = 9


@pytest.fixture
def loss_run(make_run: Callable[..., Path]) -> RunFolder:
    """Language modelling that overfits from step 5; effects of every layer, one of them not defined at first."""
    folder = RunFolder(make_run("clm", steps=15))
    shutil.rmtree(folder.path / "rollouts")
    (folder.path / "evaluations.jsonl").unlink()
    manifest = folder.manifest()
    write_json(folder.manifest_path, {**manifest, "recipe": {**manifest["recipe"], "objective": "clm"}})
    for phase, steps in (("before", [0]), ("curve", [5, 10, 15]), ("after", [15])):
        for step in steps:
            folder.evaluations.append(evaluation(step, phase))
    ends = {f"loss_{phase}": {"value": 2.0, "low": 1.9, "high": 2.1} for phase in ("before", "after")}
    change = {"value": -0.1, "low": -0.2, "high": 0.1, "examples": 12}
    write_json(folder.summary_path, {**ends, "loss_change": change, "split": "test", "steps": 15})
    return folder


def evaluation(step: int, phase: str) -> dict[str, object]:
    held_out, train = CURVE[step], 2.0 - 0.1 * step
    bounds = {
        "loss_low": held_out - 0.1,
        "loss_high": held_out + 0.1,
        "loss_train_low": train,
        "loss_train_high": train,
    }
    return {"step": step, "phase": phase, "split": "validation", "loss": held_out, "loss_train": train, **bounds}


def measure_effects(folder: RunFolder) -> None:
    rows = folder.geometry.rows()
    for step in (5, 10, 15):
        like = next(row for row in rows if row["step"] == step and row["kind"] == "update")
        effects = [
            {
                **like,
                "kind": "effect",
                "module": "output",
                "layer": layer,
                "value": 2.0 + layer + step / 10,
                "null": 40.0,
            }
            for layer in range(LAYERS)
        ]
        if step == 5:
            effects[0] |= {"value": float("nan"), "status": "zero"}
        folder.geometry.write(step, effects, part="effects")


def section(folder: RunFolder, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', write_report(folder.path).read_text(), re.DOTALL)
    return found.group() if found else ""


def test_without_effects_there_is_no_section_of_them(loss_run: RunFolder) -> None:
    assert section(loss_run, "effects") == ""
    assert section(loss_run, "examples") == "", "nothing was answered"


def test_effects_are_a_line_a_layer_with_the_best_step(loss_run: RunFolder) -> None:
    measure_effects(loss_run)
    shown = section(loss_run, "effects")
    assert "of 9 layers&#39; outputs" in shown or "of 9 layers' outputs" in shown
    assert "mean 7.00 at the first measurement, 7.50 at the last" in shown, "the undefined layer is left out"
    assert "Random changes of the same shape have 40.00." in shown
    assert "best held-out loss: step 5" in shown
    assert len(re.findall(r">layer \d<", shown)) == 6, "a legend that fits, whatever the depth"


def test_the_mean_rank_of_updates_shows_the_best_step_too(loss_run: RunFolder) -> None:
    assert "best held-out loss: step 5" in section(loss_run, "geometry")


def test_a_run_judged_by_answers_marks_no_loss(shared_run: Path) -> None:
    assert "best held-out loss" not in section(RunFolder(shared_run), "geometry")


def test_overfitting_is_said_in_words(loss_run: RunFolder) -> None:
    assert "It overfits since step 5" in section(loss_run, "learning")


def test_margin_and_accuracy_of_pairs_stand_beside_the_loss(loss_run: RunFolder) -> None:
    assert "Beside the loss" not in section(loss_run, "learning")
    rows = loss_run.evaluations.rows()
    (loss_run.path / "evaluations.jsonl").unlink()
    for row in rows:
        step = row["step"]
        pairs = {"margin": 0.1 * step, "margin_train": 0.3 * step, "accuracy": 0.625}
        bounds = {f"{name}_{end}": value for name, value in pairs.items() for end in ("low", "high")}
        loss_run.evaluations.append({**row, **pairs, **bounds})
    shown = section(loss_run, "learning")
    assert "Margin, nats a pair: 0.5 at step 5, 1.5 at 15." in shown
    assert "Preferred answers ranked first, share of pairs: 0.625 at step 5, 0.625 at 15." in shown
    assert "KL" not in shown
