"""Telemetry in trainers that are not ours, in two lines."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from stablerank import watch_geometry
from stablerank.probes.updates import NamedUpdate, measure_updates, snapshot
from stablerank.runs.tables import ShardedTable
from stablerank.spectral.operators import Difference
from stablerank.tasks.arithmetic import problems
from stablerank.training.telemetry import geometry_scalars
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
    update = NamedUpdate("layers.0.mlp", Difference(before + 1 + before.sin(), before))
    rows = measure_updates([update], run="run", seed=0, step=1)
    assert rows[0].status == "certified"
    assert geometry_scalars(rows)["geometry/stable_rank_mean"] == rows[0].value
