"""Telemetry in trainers that are not ours, in two lines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from stablerank import watch_geometry
from stablerank.errors import ModelError
from stablerank.peft import SpectralLoraConfig
from stablerank.probes.updates import NamedUpdate, measure_updates, snapshot
from stablerank.runs.tables import ShardedTable
from stablerank.spectral.operators import Difference
from stablerank.tasks.arithmetic import problems
from stablerank.training.telemetry import GeometryCallback, geometry_scalars
from stablerank.zoo.resolve import resolve

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "bf16": False}


class Tracker(TrainerCallback):
    """What a tracker of ``report_to`` sees: the logs it is called with."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.seen.append({"step": state.global_step, **logs})


@pytest.fixture
def student():
    place = resolve("zoo:arith-student")
    return AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)


def test_two_lines_in_trl_sft(student, tmp_path: Path) -> None:
    model, tokenizer = student
    tracker = Tracker()
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            logging_steps=2,
            max_length=128,
            **QUIET,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": p.prompt, "completion": p.solution} for p in problems("train", 32)]
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[tracker],
    )
    watch_geometry(trainer, tmp_path / "geometry", every=2)
    trainer.train()

    rows = ShardedTable(tmp_path / "geometry").rows()
    assert {row["step"] for row in rows} == {2, 4}
    assert len({(row["layer"], row["module"]) for row in rows}) == 4 * 7
    shown = [row["geometry/stable_rank_mean"] for row in tracker.seen if "geometry/stable_rank_mean" in row]
    ranks = [r["value"] for r in rows if r["metric"] == "stable_rank" and r["step"] == 4]
    assert shown[-1] == pytest.approx(sum(ranks) / len(ranks))
    assert "loss" in next(row for row in tracker.seen if "geometry/stable_rank_mean" in row)


def test_two_lines_in_a_plain_trainer_with_all_weights(student, tmp_path: Path) -> None:
    model, tokenizer = student
    texts = [p.prompt + p.solution for p in problems("train", 8)]
    rows = [
        {**(ids := tokenizer(t, padding="max_length", truncation=True, max_length=64)), "labels": ids["input_ids"]}
        for t in texts
    ]
    before = snapshot(model)
    tracker = Tracker()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, logging_steps=1, **QUIET
        ),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        callbacks=[tracker],
    )
    watch_geometry(trainer, tmp_path / "geometry", every=1)
    trainer.train()

    row = next(
        r
        for r in ShardedTable(tmp_path / "geometry").rows()
        if (r["step"], r["layer"], r["module"], r["metric"]) == (2, 0, "mlp.up_proj", "stable_rank")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    sigma = torch.linalg.svdvals((model.state_dict()[name] - before[name]).double())
    assert row["value"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-5)
    assert any("geometry/stable_rank_mean" in seen for seen in tracker.seen)


def test_certified_rows_of_full_weights_reach_the_trackers() -> None:
    before = torch.randn(160, 200, generator=torch.Generator().manual_seed(0))
    update = NamedUpdate("layers.0.mlp", lambda: Difference(before + 1 + before.sin(), before), lambda: before)
    rows = measure_updates([update], run="run", seed=0, step=1)
    assert rows[0].status == "certified"
    assert geometry_scalars(rows)["geometry/stable_rank_mean"] == rows[0].value


PISSA = {"r": 4, "lora_alpha": 4, "task_type": "CAUSAL_LM", "spectral": {"method": "pissa", "svd": "exact"}}
TARGETS = r".*layers\.[01]\..*(q_proj|down_proj)"


def plain_trainer(model, tokenizer, folder: Path, **settings) -> Trainer:
    texts = [p.prompt + p.solution for p in problems("train", 8)]
    rows = [tokenizer(text, padding="max_length", truncation=True, max_length=48) for text in texts]
    arguments = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
    return Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **arguments, **settings, **QUIET),
        train_dataset=Dataset.from_list([{**row, "labels": row["input_ids"]} for row in rows]),
    )


def test_along_a_run_against_the_base(student, tmp_path: Path) -> None:
    """The rows of the last step against numpy, on the matrices that the trained model really has."""
    model, tokenizer = student
    model = get_peft_model(model, SpectralLoraConfig(target_modules=TARGETS, **PISSA))
    trainer = plain_trainer(model, tokenizer, tmp_path)
    tracker = Tracker()
    trainer.add_callback(tracker)
    watch_geometry(trainer, tmp_path / "geometry", every=2, against_base=True, head=4, nss=True)
    trainer.train()

    rows = ShardedTable(tmp_path / "geometry").rows()
    always = {"stable_rank", "frobenius", "relative_norm", "head_energy", "head_energy_two_sided"}
    always |= {f"alignment_{k}" for k in range(1, 5)}
    found = {
        (step, kind): {r["metric"] for r in rows if (r["step"], r["kind"]) == (step, kind)}
        for step, kind in {(r["step"], r["kind"]) for r in rows}
    }
    assert found == {(0, "initial"): always, (2, "update"): always, (3, "update"): always | {"nss"}}
    first = [r["value"] for r in rows if (r["step"], r["metric"]) == (0, "head_energy")]
    assert first == pytest.approx([1.0] * 4, abs=1e-4)

    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    delta = layer.get_delta_weight("default").double().numpy()
    weight = layer.base_layer.weight.detach().double().numpy()
    _, sigma, vh = np.linalg.svd(weight)
    last = {r["metric"]: r["value"] for r in rows if (r["step"], r["layer"], r["module"]) == (3, 1, "mlp.down_proj")}
    squares = np.square(delta @ vh[:4].T).sum(0) / np.linalg.norm(delta) ** 2
    shift = np.linalg.norm(np.linalg.svd(weight + delta, compute_uv=False) - sigma) / np.linalg.norm(sigma)
    assert {r["null_kind"] for r in rows if r["metric"] == "head_energy"} == {"gaussian_factors"}
    assert [last[f"alignment_{k}"] for k in range(1, 5)] == pytest.approx(squares, rel=1e-3)
    assert last["head_energy"] == pytest.approx(squares.sum(), rel=1e-3)
    assert last["relative_norm"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(weight), rel=1e-3)
    assert last["nss"] == pytest.approx(shift, rel=1e-2)
    shown = {name: value for row in tracker.seen for name, value in row.items()}
    for name, column in (("geometry/head_energy_mean", "value"), ("geometry/head_energy_null", "null")):
        energies = [r[column] for r in rows if (r["step"], r["metric"]) == (3, "head_energy")]
        assert shown[name] == pytest.approx(np.mean(energies))


def test_all_weights_against_their_snapshot(student, tmp_path: Path) -> None:
    model, tokenizer = student
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.0.mlp.up_proj" in name)
    before = model.model.layers[0].mlp.up_proj.weight.detach().double().numpy().copy()
    trainer = plain_trainer(model, tokenizer, tmp_path)
    watch_geometry(trainer, tmp_path / "geometry", every=3, against_base=True)
    trainer.train()
    rows = {row["metric"]: row for row in ShardedTable(tmp_path / "geometry").rows()}
    delta = model.model.layers[0].mlp.up_proj.weight.detach().double().numpy() - before
    v = np.linalg.svd(before)[2][:16].T
    assert rows["head_energy"]["value"] == pytest.approx(np.linalg.norm(delta @ v) ** 2 / np.linalg.norm(delta) ** 2)
    assert rows["head_energy"]["null_kind"] == "gaussian_matrix"
    assert {row["step"] for row in rows.values()} == {3}


def test_a_run_without_a_trained_matrix_says_so_once_and_has_no_rows(student, tmp_path: Path) -> None:
    model, tokenizer = student
    for name, weight in model.named_parameters():
        weight.requires_grad_("norm" in name)
    trainer = plain_trainer(model, tokenizer, tmp_path)
    watch_geometry(trainer, tmp_path / "geometry", every=1, against_base=True, nss=True)
    with pytest.warns(UserWarning, match="trains no matrix") as seen:
        trainer.train()
    assert sum("trains no matrix" in str(warning.message) for warning in seen) == 1
    assert ShardedTable(tmp_path / "geometry").rows() == []


def test_an_adapter_that_cannot_be_measured_is_refused_before_training(student, tmp_path: Path) -> None:
    model, tokenizer = student
    model = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS, alora_invocation_tokens=[1]))
    trainer = plain_trainer(model, tokenizer, tmp_path)
    watch_geometry(trainer, tmp_path / "geometry")
    with pytest.raises(ModelError, match="can be measured"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(("step", "written"), [(0, [0]), (2, [])])
def test_a_resumed_run_does_not_measure_its_first_product_again(student, tmp_path: Path, step, written) -> None:
    model = get_peft_model(student[0], SpectralLoraConfig(target_modules=TARGETS, **PISSA))
    steps: list[int] = []
    callback = GeometryCallback(lambda at, rows: steps.append(at))
    state = TrainerState(global_step=step, max_steps=4)
    callback.on_train_begin(TrainingArguments(str(tmp_path), **QUIET), state, TrainerControl(), model=model)
    assert steps == written


def test_the_drift_of_polar_is_in_every_measurement(student, tmp_path: Path) -> None:
    model, tokenizer = student
    polar = {**PISSA, "spectral": {"method": "polar"}}
    trainer = plain_trainer(
        get_peft_model(model, SpectralLoraConfig(target_modules=TARGETS, **polar)), tokenizer, tmp_path
    )
    watch_geometry(trainer, tmp_path / "geometry", every=2)
    trainer.train()
    drifts = [row for row in ShardedTable(tmp_path / "geometry").rows() if row["metric"] == "orthogonality_drift"]
    assert [row["step"] for row in drifts] == [2] * 4 + [3] * 4
    assert all(0 < row["value"] < 1 for row in drifts)
