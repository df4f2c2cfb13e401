"""The overfitting rule on real training runs: ours, and TRL's own trainer with two lines."""

import json
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from stablerank import diagnose_run, watch_geometry, watch_overfitting
from stablerank.dynamics.overfitting_signals import signals_of
from stablerank.dynamics.stopping import StopRule
from stablerank.errors import RecipeError
from stablerank.facade import continue_training, train
from stablerank.runs.folder import COMPLETE
from stablerank.tasks.arithmetic import problems
from stablerank.training import overfitting
from stablerank.training.recipe import parse_recipe
from stablerank.zoo.resolve import resolve

EVERY = 4


def overfits(output: Any, **changes: Any) -> dict[str, Any]:
    """Language modelling on the solutions of a few other problems, which teach nothing: it overfits within steps."""
    raw: dict[str, Any] = {
        "objective": "clm",
        "model": {"path": "zoo:arith-student"},
        "adapter": {"kind": "lora", "r": 8, "alpha": 16},
        "data": {"kind": "arithmetic", "examples": 12, "random_labels": True},
        "optimiser": {"learning_rate": 3e-3},
        "trainer": {"max_steps": 24, "save_steps": EVERY, "per_device_train_batch_size": 4},
        "geometry": {"every": EVERY},
        "evaluation": {"split": "validation", "examples": 12, "every": EVERY, "curve_examples": 12},
        "overfitting": {"action": "stop"},
        "output": str(output),
    }
    return {**raw, **changes}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return train(overfits(tmp_path_factory.mktemp("overfits") / "run"))


def test_a_run_ends_where_its_rule_says_so(stopped):
    (row,) = stopped.alarms.rows()
    assert (row["alarm"], row["signal"], row["action"]) == ("overfitting", "held_out", "stop")
    assert stopped.summary()["steps"] == row["step"] < 24
    assert stopped.summary()["stopped_by"] == ["overfitting"]
    assert stopped.complete_checkpoints()[-1][0] == row["step"]
    rows = signals_of(stopped.evaluations.rows(), stopped.geometry.rows(), stopped.metrics.rows())
    assert overfitting.rule_of("clm", "held_out").stops_at(rows) == len(rows) - 1


def test_a_run_that_was_cut_off_before_its_rule_spoke_ends_at_the_same_step(stopped):
    expected = (stopped.alarms.rows(), stopped.evaluations.rows())
    last, place = stopped.complete_checkpoints()[-1]
    (place / COMPLETE).unlink()
    stopped.summary_path.unlink()
    continue_training(stopped.path)
    assert (stopped.alarms.rows(), stopped.evaluations.rows()) == expected
    assert stopped.summary()["steps"] == last


def test_the_report_and_diagnose_name_what_the_rule_saw(stopped):
    assert "overfit" in (stopped.path / "report.html").read_text(encoding="utf-8")
    told = diagnose_run(stopped.path)
    assert "overfitting" in {*told.clear, *(one.cause for one in told.found)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overfitting": {"signal": "update_rank"}, "geometry": {"every": 0}}, "set geometry.every above 0"),
        ({"overfitting": {"signal": "effect_rank"}}, "measured with geometry.effects; turn it on"),
        ({"evaluation": {"every": 0}}, "evaluation.every is 0; set it to some steps"),
        ({"overfitting": {"signal": "loss"}}, "held_out"),
        (
            {"overfitting": {"signal": "update_norm"}, "adapter": {"kind": "bitfit", "biases": "added"}},
            "choose held_out",
        ),
    ],
)
def test_a_rule_that_has_nothing_to_read_is_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(overfits(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_a_curve_loads_back_from_its_manifest(tmp_path):
    recipe = parse_recipe(overfits(tmp_path / "run", evaluation={"every": 0}, overfitting={}))
    assert parse_recipe(recipe.resolved()).resolved() == recipe.resolved()


# --- TRL's own trainer ----------------------------------------------------------------------------------------------


def trl_trainer(output, steps=12, **settings):
    path = resolve("zoo:arith-student")
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = [{"prompt": one.prompt, "completion": one.solution} for one in problems("train", 24)]
    wrong = [{**row, "completion": other["completion"]} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    arguments = SFTConfig(
        output_dir=str(output),
        **{"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_steps": steps},
        **{"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "learning_rate": 3e-3, "save_steps": 2},
        **settings,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(path),
        args=arguments,
        train_dataset=Dataset.from_list(wrong[:8]),
        eval_dataset=Dataset.from_list(rows[8:]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def test_two_lines_stop_a_trainer_of_trl_and_its_folder_is_diagnosed(tmp_path, monkeypatch):
    rule = StopRule("held_out", "rise", "above", 0.02)
    monkeypatch.setattr(overfitting, "rule_of", lambda objective, signal: rule)
    trainer = trl_trainer(tmp_path)
    watch_overfitting(trainer, objective="clm", action="stop")
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    best = min(losses)
    assert losses[-1] > 1.02 * min(losses[:-1]) and trainer.state.global_step < 12
    assert all(loss <= 1.02 * min(losses[: at + 1]) for at, loss in enumerate(losses[:-1]))
    state = json.loads((tmp_path / f"checkpoint-{trainer.state.global_step}" / "trainer_state.json").read_text())
    assert best in [row.get("eval_loss") for row in state["log_history"]]


def test_the_rank_of_the_update_is_read_where_the_geometry_is_watched(tmp_path, monkeypatch):
    rule = StopRule("update_rank", "value", "above", 0.0)
    monkeypatch.setattr(overfitting, "rule_of", lambda objective, signal: rule)
    trainer = trl_trainer(tmp_path)
    watch_geometry(trainer, tmp_path / "geometry", every=2)
    watch_overfitting(trainer, objective="clm", signal="update_rank", action="stop")
    trainer.train()
    # The geometry of a step is in the log before its evaluation.
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "grpo"}, "objective='grpo'; choose from clm, dpo"),
        ({"objective": "clm", "signal": "kl"}, "signal='kl'; choose from step, held_out"),
        ({"objective": "clm", "action": "explode"}, "action='explode'; choose from none, warn, stop"),
    ],
)
def test_what_no_rule_knows_is_refused(tmp_path, given, message):
    with pytest.raises(RecipeError, match=message):
        watch_overfitting(trl_trainer(tmp_path), **given)


def test_a_trainer_that_never_evaluates_is_refused(tmp_path):
    trainer = trl_trainer(tmp_path)
    trainer.args.eval_strategy = "no"
    with pytest.raises(RecipeError, match="eval_strategy is 'no'; set it to 'steps'"):
        watch_overfitting(trainer, objective="clm")
