"""The optimiser section's routes in whole runs: what goes where, resumption, dry run, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stablerank.cli.dry_run import print_plan
from stablerank.errors import ModelError, RecipeError
from stablerank.facade import continue_training, train
from stablerank.runs.folder import COMPLETE, RunFolder
from stablerank.training.recipe import parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
MUON = {"kind": "muon", "learning_rate": 1e-3, "spectral_learning_rate": 0.01}
Made = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def routed_recipe() -> Made:
    """Four steps of language modelling or preferences with the optimiser section given."""

    def made(output: Path, adapter: dict[str, Any], objective: str = "clm", **optimiser: Any) -> dict[str, Any]:
        return {
            "objective": objective,
            "model": {"path": "zoo:arith-student"},
            "adapter": adapter,
            "data": {"kind": "arithmetic"},
            "optimiser": {**MUON, **optimiser},
            "trainer": {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4},
            "geometry": {"every": 0},
            "evaluation": {"split": "validation", "examples": 4, "curve_examples": 4},
            "output": str(output),
        }

    return made


def route_of(folder: RunFolder) -> dict[str, str]:
    return {row["name"]: row["optimiser"] for row in json.loads(folder.route_path.read_text())}


def weights_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    (path,) = folder.model_path.glob("*.safetensors")
    return load_file(path)


CASES = [
    ({"kind": "full"}, "hidden", lambda name: ".layers." in name),
    ({"kind": "lora", "r": 4}, "lora_B", lambda name: ".lora_B." in name),
    ({"kind": "dora", "r": 4}, ["down_proj.*lora_A"], lambda name: "down_proj.lora_A" in name),
]


@pytest.mark.parametrize(("adapter", "route", "expected"), CASES, ids=["full", "lora", "patterns"])
def test_matrices_go_where_the_rule_says(routed_recipe, tmp_path, adapter, route, expected) -> None:
    folder = train(routed_recipe(tmp_path / "run", adapter, route=route))
    found = route_of(folder)
    assert {name for name, kind in found.items() if kind == "muon"} == {name for name in found if expected(name)}
    assert {"muon", "adamw"} >= set(found.values())
    state = torch.load(folder.checkpoints_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    moved = [name for name, kind in found.items() if kind == "muon"]
    assert len(state["muon"]["state"]) == len(moved) and state["route"] == moved
    assert [row["learning_rate"] for row in folder.metrics.rows()] == [1e-3] * 4


@pytest.mark.parametrize(
    ("adapter", "objective", "kind"),
    [({"kind": "full"}, "clm", "muon"), ({"kind": "lora", "r": 4}, "dpo", "specgd")],
    ids=["full-clm", "lora-dpo"],
)
def test_a_route_by_the_condition_survives_a_resume(routed_recipe, tmp_path, adapter, objective, kind) -> None:
    optimiser = {"kind": kind, "route": "condition", "spectral_learning_rate": 1e-3}
    folder = train(routed_recipe(tmp_path / "run", adapter, objective, **optimiser))
    expected, weights = folder.metrics.rows(), weights_of(folder)
    rows = json.loads(folder.route_path.read_text())
    unmeasured = [row["name"] for row in rows if "favours" not in row]
    assert unmeasured == (["lm_head.weight"] if adapter["kind"] == "full" else [])
    assert all(row["optimiser"] == "adamw" for row in rows if row["name"] in unmeasured)
    for row in [row for row in rows if "favours" in row]:
        favoured = row["favours"] == "spectral"
        assert (row["optimiser"] == kind) == favoured
        assert favoured == (row["nuclear_rank"] is not None and row["nuclear_rank"] >= row["stable_rank"])
    if adapter["kind"] == "lora":
        assert {row["favours"] for row in rows if ".lora_A." in row["name"]} == {"undecided"}
    assert any(row["optimiser"] == kind for row in rows)
    folder.summary_path.unlink()
    (folder.checkpoints_path / "checkpoint-4" / COMPLETE).unlink()
    resumed = continue_training(folder.path)
    assert resumed.metrics.rows() == expected
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(resumed).items())
    assert json.loads(resumed.route_path.read_text()) == rows


def test_the_control_routes_what_the_condition_does_not(routed_recipe, tmp_path) -> None:
    full = {"kind": "full"}
    found = [
        route_of(train(routed_recipe(tmp_path / route, full, route=route)))
        for route in ("condition", "against_condition")
    ]
    assert set(found[0]) == set(found[1])
    assert not any(found[0][name] == found[1][name] == "muon" for name in found[0])


def test_grpo_routes_too(small_recipe, tmp_path) -> None:
    folder = train(small_recipe(tmp_path / "run", optimiser={"kind": "muon", **MUON, "route": "lora"}))
    assert set(route_of(folder).values()) == {"muon"}
    assert len(folder.metrics.rows()) == 4


def test_the_dry_run_says_what_goes_where(capsys) -> None:
    start = ["optimiser.kind=muon", "optimiser.spectral_learning_rate=0.02"]
    print_plan(str(RECIPES / "clm.yaml"), [*start, "optimiser.route=lora_A"])
    printed = capsys.readouterr().out
    assert "muon                  base_model.model.model.layers.*.mlp.down_proj.lora_A.default.weight (" in printed
    assert "lora_B" not in printed
    print_plan(str(RECIPES / "clm.yaml"), [*start, "optimiser.route=condition"])
    assert "those that the first batch favours spectral steps for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("adapter", "changes", "words"),
    [
        ({"kind": "full"}, {"route": None}, "optimiser.route is missing"),
        ({"kind": "full"}, {"route": "hidden", "spectral_learning_rate": None}, "spectral_learning_rate is missing"),
        ({"kind": "full"}, {"route": "middle"}, "'middle' is no route"),
        ({"kind": "full"}, {"route": []}, "is no route"),
        ({"kind": "full"}, {"kind": "adamw", "route": "hidden"}, "optimiser.kind=adamw takes no spectral step"),
        ({"kind": "polar"}, {"route": "lora"}, "follow the landing field"),
        ({"kind": "sparse"}, {"route": "hidden"}, "off the mask"),
        ({"kind": "bitfit"}, {"route": "hidden"}, "no matrix is trained"),
    ],
)
def test_what_contradicts_itself_is_refused(routed_recipe, tmp_path, adapter, changes, words) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(routed_recipe(tmp_path / "run", adapter, **changes))


@pytest.mark.parametrize(
    ("route", "words"),
    [("hidden", "'hidden' finds no trained matrix"), (["gate"], "gate"), (["lora_C"], "'lora_C' finds no trained")],
)
def test_a_rule_that_finds_nothing_is_refused_before_the_folder(routed_recipe, tmp_path, route, words) -> None:
    recipe = routed_recipe(tmp_path / "run", {"kind": "lora", "r": 4, "targets": ["q_proj"]}, route=route)
    with pytest.raises(ModelError, match=words):
        train(recipe)
    assert not (tmp_path / "run").exists()
