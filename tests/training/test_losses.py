"""Whole runs of language modelling and preferences on the embedded student, in TRL's own trainers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from scipy.special import log_expit
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.facade import continue_training, train
from stablerank.runs.folder import COMPLETE, RunFolder
from stablerank.tasks.arithmetic import problems
from stablerank.zoo.resolve import resolve

RawRecipe = dict[str, Any]
BITFIT = {"kind": "bitfit", "biases": "added"}


@pytest.fixture(scope="session")
def loss_recipe() -> Callable[..., RawRecipe]:
    """Four steps of an objective with a held-out loss; ``loss_recipe(objective, output, section={...})``."""

    def made(objective: str, output: Path, **changes: Any) -> RawRecipe:
        raw: RawRecipe = {
            "objective": objective,
            "model": {"path": "zoo:arith-student"},
            "adapter": {"kind": "lora", "r": 4, "alpha": 8},
            "data": {"kind": "arithmetic"},
            "optimiser": {"learning_rate": 1e-3},
            "trainer": {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4},
            "geometry": {"every": 2},
            "evaluation": {"split": "validation", "examples": 12, "every": 2, "curve_examples": 8, "batch_size": 5},
            "output": str(output),
        }
        for section, value in changes.items():
            raw[section] = value if "kind" in value else {**raw[section], **value}
        return raw

    return made


@pytest.fixture(scope="module", params=["clm", "dpo"])
def finished(request: pytest.FixtureRequest, loss_recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(loss_recipe(request.param, tmp_path_factory.mktemp(request.param) / "run"))


BLOCK_KINDS = ("activation", "gradient")


def block_rows(folder: RunFolder) -> dict[tuple[Any, ...], dict[str, Any]]:
    keys = ("step", "layer", "module", "kind", "metric")
    return {tuple(row[key] for key in keys): row for row in folder.geometry.rows() if row["kind"] in BLOCK_KINDS}


@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_inputs_and_gradients_of_every_block_change_nothing_and_survive_a_kill(
    objective: str, loss_recipe, tmp_path: Path
) -> None:
    """Killed after a checkpoint at which blocks were measured once more: the table ends equal, and no row twice."""
    raw = loss_recipe(objective, tmp_path / "watched", geometry={"blocks_every": 2})
    watched = train(raw)
    plain = train(loss_recipe(objective, tmp_path / "plain"))
    assert [row["loss"] for row in watched.metrics.rows()] == [row["loss"] for row in plain.metrics.rows()]
    assert sum(row["blocks_seconds"] for row in plain.timings.rows()) == 0
    assert [row["blocks_seconds"] > 0 for row in watched.timings.rows()] == [True, False, True, False]
    rows = block_rows(watched)
    values = {key: row["value"] for key, row in rows.items()}
    assert {key[0] for key in rows} == {0, 2} and len(rows) == sum(
        row["kind"] in BLOCK_KINDS for row in watched.geometry.rows()
    )
    assert {"q_proj", "down_proj"} <= {module.rpartition(".")[2] for _, _, module, _, _ in rows}
    # As a kill right after the passes of step 3 would leave it; what is measured again must be what stood there.
    (watched.path / "geometry" / "all.parquet").unlink()
    watched.geometry.write(0, [row for key, row in rows.items() if key[0] == 0], part="blocks")
    (watched.path / "geometry" / "step-00000002-blocks.parquet").write_bytes(b"half")
    watched.summary_path.unlink()
    (watched.checkpoints_path / "checkpoint-4" / COMPLETE).unlink()
    again = {key: row["value"] for key, row in block_rows(continue_training(watched.path)).items()}
    assert again == pytest.approx(values, rel=0, abs=0, nan_ok=True)


def test_a_run_leaves_every_table(finished: RunFolder) -> None:
    assert [row["step"] for row in finished.metrics.rows()] == [1, 2, 3, 4]
    phases = [(row["phase"], row["step"]) for row in finished.evaluations.rows()]
    assert phases == [("before", 0), ("curve", 2), ("curve", 4), ("after", 4)]
    assert {row["step"] for row in finished.geometry.rows()} == {2, 4}
    counts = {}
    for row in finished.examples.rows():
        key = row["phase"], row["step"], row["part"]
        counts[key] = counts.get(key, 0) + 1
    assert counts[("before", 0, "validation")] == counts[("after", 4, "validation")] == 12
    assert counts[("curve", 2, "curve")] == counts[("curve", 4, "train")] == 8
    assert AutoPeftModelForCausalLM.from_pretrained(finished.model_path)


def test_the_summary_is_what_the_tables_say(finished: RunFolder) -> None:
    summary, rows = finished.summary(), {row["phase"]: row for row in finished.evaluations.rows()}
    assert summary["loss_before"]["value"] == rows["before"]["loss"]
    assert summary["loss_change"]["value"] == pytest.approx(rows["after"]["loss"] - rows["before"]["loss"])
    assert summary["loss_change"]["low"] < summary["loss_change"]["value"] < summary["loss_change"]["high"]
    assert summary["verdict"] == "improved"
    assert 0 < summary["telemetry_seconds"] < summary["train_seconds"]


def test_a_run_cut_back_to_a_checkpoint_finds_the_same_way_again(finished: RunFolder) -> None:
    tables = [finished.path / name for name in ("metrics.jsonl", "evaluations.jsonl")]
    expected = [table.read_bytes() for table in tables]
    measured = sorted(map(str, [*finished.geometry.rows(), *finished.examples.rows()]))
    weights = load_file(finished.model_path / "adapter_model.safetensors")
    finished.summary_path.unlink()
    (finished.checkpoints_path / "checkpoint-4" / COMPLETE).unlink()
    continue_training(finished.path)
    assert [table.read_bytes() for table in tables] == expected
    assert sorted(map(str, [*finished.geometry.rows(), *finished.examples.rows()])) == measured
    again = load_file(finished.model_path / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_the_held_out_loss_of_language_modelling_is_that_of_plain_transformers(loss_recipe, tmp_path: Path) -> None:
    folder = train(loss_recipe("clm", tmp_path / "run", trainer={"max_steps": 1}, evaluation={"every": 0}))
    model = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    rows = [row for row in folder.examples.rows() if (row["phase"], row["part"]) == ("before", "validation")]
    for row, problem in zip(rows, problems("validation", 256)[:12], strict=True):
        prompt = tokenizer(problem.prompt).input_ids
        ids = torch.tensor([prompt + tokenizer(problem.solution + tokenizer.eos_token).input_ids])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        loss = float(model(input_ids=ids, labels=labels).loss)
        assert row["nll"] / row["tokens"] == pytest.approx(loss, rel=1e-5)


def test_the_training_loss_of_language_modelling_is_that_of_plain_transformers(loss_recipe, tmp_path: Path) -> None:
    """One batch of all the data: the first logged loss is transformers' own on the same texts."""
    changes = {"trainer": {"max_steps": 1, "per_device_train_batch_size": 8}, "evaluation": {"every": 0}}
    folder = train(loss_recipe("clm", tmp_path / "run", data={"kind": "arithmetic", "examples": 8}, **changes))
    rows = [row for row in folder.examples.rows() if (row["phase"], row["part"]) == ("before", "train")]
    expected = sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    assert folder.metrics.rows()[0]["loss"] == pytest.approx(expected, rel=1e-5)


ADAPTERS = [
    {"kind": "lora", "r": 4, "alpha": 8},
    {"kind": "rslora", "r": 4},
    {"kind": "dora", "r": 4},
    {"kind": "eva", "r": 4},
    {"kind": "olora", "r": 4},
    {"kind": "corda", "r": 4},
    {"kind": "pissa", "r": 4},
    {"kind": "milora", "r": 4},
    {"kind": "geora", "r": 4},
    {"kind": "polar", "r": 4},
    {"kind": "sinelora", "r": 4, "omega": 100.0},
    {"kind": "sparse"},
    {"kind": "full"},
    BITFIT,
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter["kind"])
def test_the_first_loss_of_dpo_is_ln_2(loss_recipe, tmp_path: Path, adapter: dict[str, Any]) -> None:
    changes = {"adapter": adapter, "trainer": {"max_steps": 1}, "geometry": {"every": 0}, "evaluation": {"every": 0}}
    folder = train(loss_recipe("dpo", tmp_path / "run", **changes))
    assert folder.metrics.rows()[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    before = next(row for row in folder.evaluations.rows() if row["phase"] == "before")
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["margin"] == pytest.approx(0, abs=1e-5)


def test_the_first_loss_of_dpo_is_ln_2_where_an_adapter_goes_on(
    finished: RunFolder, loss_recipe, tmp_path: Path
) -> None:
    """The reference is the adapter as it was loaded, which is far from the base."""
    changes = {"adapter": {"kind": "saved", "path": str(finished.model_path)}, "trainer": {"max_steps": 1}}
    folder = train(loss_recipe("dpo", tmp_path / "run", geometry={"every": 0}, evaluation={"every": 0}, **changes))
    assert folder.metrics.rows()[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_bitfit_trains_biases_and_nothing_else(loss_recipe, tmp_path: Path, objective: str) -> None:
    folder = train(loss_recipe(objective, tmp_path / "run", adapter=BITFIT, geometry={"every": 0}))
    trained = load_file(folder.model_path / "model.safetensors")
    stored = dict(AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student")).named_parameters())
    biases = [name for name in trained if name.endswith(".bias")]
    assert biases and all(trained[name].abs().max() > 0 for name in biases)
    others = {name for name in trained if name not in biases}
    assert others == {name for name in stored if name in trained}
    assert all(torch.equal(trained[name], stored[name]) for name in others)


def test_a_margin_is_what_two_models_say(loss_recipe, tmp_path: Path) -> None:
    """The log-ratios of a trained run, once more from the base and the saved adapter alone."""
    folder = train(loss_recipe("dpo", tmp_path / "run", evaluation={"every": 0, "examples": 4}))
    place = resolve("zoo:arith-student")
    tokenizer, base = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    policy = AutoPeftModelForCausalLM.from_pretrained(folder.model_path)

    def logprob(model: Any, prompt: str, answer: str) -> float:
        before = tokenizer(prompt).input_ids
        ids = torch.tensor([before + tokenizer(answer + tokenizer.eos_token).input_ids])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return float(logprobs[range(len(ids[0]) - 1), ids[0, 1:]][len(before) - 1 :].sum())

    rows = [row for row in folder.examples.rows() if (row["phase"], row["part"]) == ("after", "validation")]
    losses = []
    for row, problem in zip(rows, problems("validation", 256)[:4], strict=True):
        assert row["chosen"] == pytest.approx(logprob(policy, problem.prompt, problem.solution), abs=1e-3)
        assert row["chosen_reference"] == pytest.approx(logprob(base, problem.prompt, problem.solution), abs=1e-3)
        ratio = row["chosen"] - row["chosen_reference"] - row["rejected"] + row["rejected_reference"]
        losses.append(-log_expit(0.1 * ratio))
    after = next(row for row in folder.evaluations.rows() if row["phase"] == "after")
    assert after["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize("adapter", [{"kind": "pissa", "r": 4}, BITFIT], ids=lambda adapter: adapter["kind"])
def test_effects_and_drift_exist_for_every_adapter(loss_recipe, tmp_path: Path, adapter: dict[str, Any]) -> None:
    geometry = {"every": 2, "effects": True}
    folder = train(loss_recipe("dpo", tmp_path / "run", adapter=adapter, geometry=geometry))
    ranks = [r for r in folder.geometry.rows() if (r["kind"], r["metric"]) == ("effect", "stable_rank")]
    assert [(row["step"], row["layer"]) for row in ranks] == [(step, layer) for step in (2, 4) for layer in range(4)]
    assert all(1 <= row["value"] < row["null_low"] for row in ranks)
    kl = {row["phase"]: row["kl"] for row in folder.evaluations.rows()}
    assert kl["before"] == pytest.approx(0, abs=1e-6) and kl["after"] > 1e-6


@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_other_texts_say_what_was_forgotten(loss_recipe, tmp_path: Path, objective: str) -> None:
    evaluation = {"every": 2, "forgetting": {"kind": "arithmetic", "level": "easy"}}
    folder = train(loss_recipe(objective, tmp_path / "run", evaluation=evaluation))
    losses = {row["phase"]: row["loss_forgetting"] for row in folder.evaluations.rows()}
    assert set(losses) == {"before", "curve", "after"} and losses["before"] != losses["after"]
