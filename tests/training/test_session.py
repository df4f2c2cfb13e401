"""Whole runs of the real trainer on the embedded student."""

import math
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import RunFolderError
from stablerank.facade import continue_training, export, train
from stablerank.runs.folder import COMPLETE, RunFolder
from stablerank.training.recipe import LOSS_SETTINGS
from stablerank.zoo.resolve import resolve


@pytest.fixture(scope="module")
def finished(small_recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(small_recipe(tmp_path_factory.mktemp("finished") / "run"))


def test_a_run_leaves_every_table(finished: RunFolder) -> None:
    assert [row["step"] for row in finished.metrics.rows()] == [1, 2, 3, 4]
    assert [(r["phase"], r["step"]) for r in finished.evaluations.rows()] == [
        ("before", 0),
        ("curve", 2),
        ("curve", 4),
        ("after", 4),
    ]
    assert {row["step"] for row in finished.geometry.rows()} == {2, 4}
    shown = [row["step"] for row in finished.metrics.rows() if "geometry/stable_rank_mean" in row]
    assert shown == [2, 4], "the trainer's own log row, which every tracker gets, carries the geometry"
    rollouts = finished.rollouts.rows()
    assert {(r["phase"], r["step"]) for r in rollouts} == {
        ("before", 0),
        *(("train", step) for step in (1, 2, 3, 4)),
        ("after", 4),
    }
    phases = [row["phase"] for row in rollouts]
    assert (phases.count("train"), phases.count("before"), phases.count("after")) == (64, 16, 16)
    assert finished.report_path.read_text().startswith("<!doctype html>")


def test_inputs_and_gradients_of_every_block_change_nothing(small_recipe, finished: RunFolder, tmp_path: Path) -> None:
    folder = train(small_recipe(tmp_path / "run", geometry={"blocks_every": 2}))
    kinds = ("activation", "gradient")
    rows = [row for row in folder.geometry.rows() if row["kind"] in kinds]
    assert {(row["step"], row["kind"]) for row in rows} == {(step, kind) for step in (0, 2) for kind in kinds}
    assert {"q_proj", "down_proj"} <= {row["module"].rpartition(".")[2] for row in rows}
    assert any(row["kind"] == "gradient" and math.isfinite(row["value"]) for row in rows)
    assert [row["loss"] for row in folder.metrics.rows()] == [row["loss"] for row in finished.metrics.rows()]


def test_the_peak_is_chosen_on_validation_and_scored_on_the_held_out_split(small_recipe, tmp_path: Path) -> None:
    """After the curve's first point no other high than a higher one; a run cut in between ends the same."""
    changes = {"every": 1, "peak": True, "curve_problems": 12}
    folder = train(small_recipe(tmp_path / "run", evaluation=changes, geometry={"every": 0}))
    rows, summary = folder.evaluations.rows(), folder.summary()
    curve = {row["step"]: row["pass_at_1"] for row in rows if row["phase"] == "curve"}
    peaks = {row["step"]: row for row in rows if row["phase"] == "peak"}
    highs = [step for step in curve if all(curve[step] > curve[earlier] for earlier in range(1, step))]
    assert list(curve) == [1, 2, 3, 4] and list(peaks) == highs
    assert summary["peak_step"] == highs[-1] and curve[highs[-1]] == max(curve.values())
    last = peaks[highs[-1]]
    assert summary["pass_at_1_peak"] == {key: last[key] for key in ("low", "high", "problems")} | {
        "value": last["pass_at_1"]
    }
    answers = [r for r in folder.rollouts.rows() if (r["phase"], r["step"]) == ("peak", highs[-1])]
    assert len(answers) == 16 == last["problems"]
    assert last["pass_at_1"] == sum(row["reward"] == 1 for row in answers) / 16
    folder.summary_path.unlink()
    (folder.checkpoints_path / "checkpoint-4" / COMPLETE).unlink()
    continue_training(folder.path)
    assert folder.evaluations.rows() == rows and folder.summary()["pass_at_1_peak"] == summary["pass_at_1_peak"]


def test_the_summary_is_what_the_tables_say(finished: RunFolder) -> None:
    summary = finished.summary()
    rows = [row for row in finished.rollouts.rows() if row["phase"] == "after"]
    assert summary["pass_at_1_after"]["value"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
    change = summary["pass_at_1_after"]["value"] - summary["pass_at_1_before"]["value"]
    assert summary["pass_at_1_gain"]["value"] == pytest.approx(change)
    assert 0 < summary["telemetry_seconds"] < summary["train_seconds"]
    assert summary["peak_memory_bytes"] > 100e6


def test_every_loss_shaping_value_is_in_the_manifest(finished: RunFolder) -> None:
    manifest = finished.manifest()
    asked, given = manifest["recipe"]["trainer"], manifest["trainer_config"]
    assert asked.keys() >= LOSS_SETTINGS.keys()
    # None means that TRL derives the value from the others; what it came to is in the manifest all the same.
    assert {key: given[key] for key, value in asked.items() if value is not None} == {
        key: value for key, value in asked.items() if value is not None
    }
    assert given.keys() >= asked.keys()


def test_the_adapter_measured_is_the_adapter_saved(finished: RunFolder) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(finished.model_path)
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    sigma = torch.linalg.svdvals(layer.get_delta_weight("default").double())
    last = [r for r in finished.geometry.rows() if (r["step"], r["layer"], r["module"]) == (4, 1, "self_attn.q_proj")]
    rank = next(row for row in last if row["metric"] == "stable_rank")
    assert rank["value"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-5)
    assert rank["lower"] <= rank["value"] <= rank["upper"]
    assert not (finished.model_path / "ref").exists()


def test_the_merged_export_needs_no_peft(finished: RunFolder, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(export(finished.path, tmp_path / "merged"))
    adapted = AutoPeftModelForCausalLM.from_pretrained(finished.model_path)
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("3+4=?\n", return_tensors="pt").input_ids
    assert (plain(ids).logits - adapted(ids).logits).abs().max() < 1e-4


def test_same_recipe_same_seed_same_metrics(finished: RunFolder, small_recipe, tmp_path: Path) -> None:
    again = train(small_recipe(tmp_path / "again"))
    for table in ("metrics.jsonl", "evaluations.jsonl"):
        assert (again.path / table).read_bytes() == (finished.path / table).read_bytes()


def test_another_seed_is_another_run(finished: RunFolder, small_recipe, tmp_path: Path) -> None:
    other = train(small_recipe(tmp_path / "other", seed=1, trainer={"max_steps": 2}))
    assert (other.path / "metrics.jsonl").read_bytes() != (finished.path / "metrics.jsonl").read_bytes()


def test_a_finished_folder_is_neither_overwritten_nor_trained_again(finished: RunFolder, small_recipe) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.path.rglob("*.json*")}
    assert continue_training(finished.path).summary() == finished.summary()
    with pytest.raises(RunFolderError, match="holds a finished run"):
        train(small_recipe(finished.path))
    assert {p: p.stat().st_mtime_ns for p in finished.path.rglob("*.json*")} == before


def test_the_reference_at_step_one_is_the_untouched_student(finished: RunFolder) -> None:
    assert finished.metrics.rows()[0]["kl"] == 0.0


BFLOAT16 = {"path": "zoo:arith-student", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model": BFLOAT16}, id="lora-bfloat16"),
        pytest.param({"trainer": {"gradient_checkpointing": True}}, id="gradient-checkpointing"),
        pytest.param({"adapter": {"kind": "full"}}, id="full"),
    ],
)
def test_variants_train(small_recipe, tmp_path: Path, changes: dict) -> None:
    changes["trainer"] = {"max_steps": 2, **changes.get("trainer", {})}
    folder = train(small_recipe(tmp_path / "run", evaluation={"every": 0, "problems": 8}, **changes))
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in folder.metrics.rows())
    ranks = [r["value"] for r in folder.geometry.rows() if r["metric"] == "stable_rank" and r["status"] == "exact"]
    assert ranks and all(rank >= 1 for rank in ranks)


def test_full_fine_tuning_in_bfloat16_keeps_fp32_masters(small_recipe, tmp_path: Path) -> None:
    short = {"trainer": {"max_steps": 1, "save_steps": 1}, "evaluation": {"every": 0, "problems": 8}}
    folder = train(small_recipe(tmp_path / "run", adapter={"kind": "full"}, model=BFLOAT16, **short))
    trained = AutoModelForCausalLM.from_pretrained(folder.model_path)
    untouched = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))
    assert trained.dtype == torch.float32
    moved = [(a != b).float().mean().item() for a, b in zip(trained.parameters(), untouched.parameters(), strict=True)]
    # A first AdamW step has size 1e-3 everywhere a gradient is; bf16 masters would lose it for most weights.
    assert sum(moved) / len(moved) > 0.8
