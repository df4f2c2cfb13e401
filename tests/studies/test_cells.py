"""One cell of each kind, run here, its numbers against numpy, PEFT and the run's own tables."""

import json
import shutil
import statistics

import numpy as np
import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors.torch import save_file

from stablerank.errors import RunFolderError
from stablerank.runs.folder import RunFolder
from stablerank.studies.cells import run_cell
from stablerank.studies.layout import StudyFolder
from stablerank.studies.sealing import is_sealed

RECIPE = {
    "model": {"path": "zoo:arith-student"},
    "adapter": {"kind": "lora", "r": 4, "alpha": 8},
    "data": {"kind": "arithmetic", "level": "mixed", "problems": 64},
    "reward": {"kind": "math_verify"},
    "optimiser": {"learning_rate": 2e-2},
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


def told(study, kind, spec, **changes):
    """The cell file that a runner would write."""
    cell = {"cell": "arm--3", "arm": "arm", "seed": 3, "kind": kind, "spec": spec, "overrides": []}
    place = StudyFolder(study).cell_path("arm--3")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({**cell, "study_sha256": "0" * 64, "exploratory": False, **changes}))
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study whose training cell has run, and its result."""
    study = tmp_path_factory.mktemp("study")
    (study / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return study, run_cell(told(study, "train", "recipe.yaml", overrides=["adapter.r=3"]))


def test_measure_gives_the_stable_rank_of_every_matrix(tmp_path):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(9, 5), "b": torch.randn(4, 30), "c": torch.randn(7, 7), "bias": torch.randn(7)}
    save_file(tensors, tmp_path / "model.safetensors")
    result = run_cell(told(tmp_path, "measure", "model.safetensors"))
    norms = {
        name: (np.linalg.norm(tensor.double()) / np.linalg.norm(tensor.double(), 2)) ** 2
        for name, tensor in tensors.items()
        if name != "bias"
    }
    assert result["units"] == {"stable_rank": pytest.approx(norms, rel=1e-3)}
    assert result["values"] == {
        "median_stable_rank": statistics.median(result["units"]["stable_rank"].values()),
        "matrices": 3,
    }
    assert (result["status"], result["error"], result["seconds"] > 0) == ("done", None, True)


def test_the_result_is_sealed_and_names_its_lock(tmp_path):
    save_file({"a": torch.eye(3)}, tmp_path / "model.safetensors")
    result = run_cell(told(tmp_path, "measure", "model.safetensors"))
    stored = json.loads((tmp_path / "results" / "arm--3.json").read_text())
    assert stored == result
    assert is_sealed(stored)
    assert not is_sealed({**stored, "values": {"median_stable_rank": 2.0}})
    own = ("cell", "arm", "seed", "kind", "study_sha256", "exploratory")
    assert [stored[key] for key in own] == ["arm--3", "arm", 3, "measure", "0" * 64, False]
    assert stored["provenance"]["packages"]["torch"] == torch.__version__


def test_what_is_not_defined_is_null(tmp_path):
    save_file({"zero": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    result = run_cell(told(tmp_path, "measure", "model.safetensors"))
    assert result["units"] == {"stable_rank": {"zero": None}}
    assert result["values"] == {"median_stable_rank": None, "matrices": 1}


def test_a_matrix_that_cannot_be_measured_fails_the_whole_cell(tmp_path):
    save_file({"good": torch.eye(3), "bad": torch.full((3, 3), torch.nan)}, tmp_path / "model.safetensors")
    result = run_cell(told(tmp_path, "measure", "model.safetensors"))
    assert (result["status"], result["values"], result["units"]) == ("failed", {}, {})
    assert "bad" in result["error"]
    assert is_sealed(json.loads((tmp_path / "results" / "arm--3.json").read_text()))


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("measure", {"spec": "nowhere"}, "nowhere"),
        ("measure", {"spec": "zoo:arith-student", "overrides": ["seed=1"]}, "no setting 'seed'"),
        ("train", {"spec": "nowhere.yaml"}, "nowhere.yaml"),
        ("train", {"spec": "recipe.yaml", "overrides": ["optimiser.rate=1"]}, "optimiser.rate"),
    ],
)
def test_a_failure_is_a_sealed_result_with_one_sentence(tmp_path, kind, changes, named):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    result = run_cell(told(tmp_path, kind, **changes))
    assert result["status"] == "failed"
    assert is_sealed(result)
    assert named in result["error"]
    assert "\n" not in result["error"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"cell": "a--0", "surprise": 1}'])
def test_what_is_no_cell_is_refused(tmp_path, text):
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(RunFolderError, match="is not a cell of a study"):
        run_cell(tmp_path / "cell.json")
    with pytest.raises(RunFolderError, match="No such file"):
        run_cell(tmp_path / "missing.json")


def test_train_gives_a_pass_a_problem(trained):
    study, result = trained
    rows = RunFolder(study / "runs" / "arm--3").rollouts.rows()
    rewards = {phase: [row["reward"] for row in rows if row["phase"] == phase] for phase in ("before", "after")}
    for phase in ("before", "after"):
        passes = result["units"][f"pass_at_1_{phase}"]
        assert list(passes.values()) == rewards[phase], "math_verify gives 1.0 to what passes and 0.0 to the rest"
        assert result["values"][f"pass_at_1_{phase}"] == pytest.approx(np.mean(rewards[phase]))
    gains = result["units"]["pass_at_1_gain"]
    assert list(gains.values()) == [after - before for before, after in zip(*rewards.values(), strict=True)]
    assert result["values"]["pass_at_1_gain"] == pytest.approx(np.mean(list(gains.values())))
    assert len(gains) == RECIPE["evaluation"]["problems"]


def test_units_are_known_by_their_prompt(trained, tmp_path):
    """Another arm that asks fewer problems shares the unit of each problem that both asked.

    Its run folder holds what a kill before the manifest leaves.
    """
    study, result = trained
    prompts = [
        row["prompt"] for row in RunFolder(study / "runs" / "arm--3").rollouts.rows() if row["phase"] == "before"
    ]
    assert len(set(prompts)) == len(result["units"]["pass_at_1_before"])
    (tmp_path / "runs" / "arm--3").mkdir(parents=True)
    (tmp_path / "runs" / "arm--3" / ".manifest.json.x1").write_text("{")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    other = run_cell(told(tmp_path, "train", "recipe.yaml", overrides=["evaluation.problems=4", "trainer.max_steps=1"]))
    assert list(other["units"]["pass_at_1_before"]) == list(result["units"]["pass_at_1_before"])[:4]


def test_train_gives_the_stable_rank_of_the_update_at_the_end(trained):
    study, result = trained
    model = AutoPeftModelForCausalLM.from_pretrained(study / "runs" / "arm--3" / "model")
    ranks = []
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            delta_OI = module.get_delta_weight("default").double().detach().numpy()
            ranks.append((np.linalg.norm(delta_OI) / np.linalg.norm(delta_OI, 2)) ** 2)
    assert len(ranks) == 28
    assert result["values"]["mean_stable_rank"] == pytest.approx(np.mean(ranks), rel=1e-5)


def test_the_cell_decides_seed_and_place_and_the_arm_the_rest(trained):
    study, result = trained
    recipe = RunFolder(study / "runs" / "arm--3").manifest()["recipe"]
    assert (recipe["seed"], recipe["adapter"]["r"]) == (3, 3)
    assert result["values"]["train_seconds"] > 0
    assert result["values"]["peak_memory_bytes"] > 100e6


def test_a_finished_run_is_not_trained_again(trained):
    study, result = trained
    again = run_cell(StudyFolder(study).cell_path("arm--3"))
    assert (again["values"], again["units"]) == (result["values"], result["units"])


def test_a_run_of_another_recipe_is_not_taken_up(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "study")
    result = run_cell(told(tmp_path / "study", "train", "recipe.yaml", overrides=["adapter.r=2"]))
    assert "was begun with another recipe" in result["error"]
