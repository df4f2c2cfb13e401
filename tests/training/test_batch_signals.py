"""Answers and length in the trainer's log: what the rollouts of the same run say, averaged as TRL averages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from scipy.stats import pearsonr
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig

from stablerank.dynamics.signals import signals_of_record
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout
from stablerank.runs.record import read_record
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.training.grpo import CreditGRPOTrainer
from stablerank.training.recipe import parse_recipe
from stablerank.training.scoring import WeightedReward
from stablerank.training.session import start
from stablerank.zoo.resolve import resolve

KEYS = {"answered": "answered", "reward_length": "reward_length_correlation"}


def test_log_and_rollouts_of_a_run_agree(small_recipe, tmp_path: Path) -> None:
    trainer = {"max_steps": 3, "save_steps": 3, "temperature": 1.3, "max_completion_length": 24}
    raw = small_recipe(tmp_path / "run", data={"level": "mixed"}, trainer=trainer, evaluation={"every": 0})
    logged = read_record(start(parse_recipe(raw)).path)
    bare = tuple({key: row[key] for key in row.keys() - KEYS.values()} for row in logged.steps)
    from_log = signals_of_record(replace(logged, completions=()))
    from_rollouts = signals_of_record(replace(logged, steps=bare))
    for name in KEYS:
        np.testing.assert_array_equal(from_log[name], from_rollouts[name])
        assert len({*from_log[name][np.isfinite(from_log[name])]}) > 1, "steps that differ, or nothing was compared"


class EveryOther(Reward):
    """Pays for length in the batches of ``paid``, and one and all alike in the others."""

    name = "every_other"

    def __init__(self, *paid: bool) -> None:
        self.paid = list(paid)

    def __call__(self, rollout: Rollout) -> Deposit:
        is_paid = self.paid.pop(0)
        rewards = [len(ids) % 7 if is_paid else 1.0 for ids in rollout.completion_ids]
        return trajectory_deposit(rewards, rollout.completion_mask_NT)


@pytest.fixture
def trained(tmp_path: Path):
    """``trained(*paid)``: the log row of that many steps, logged as one, and the rollouts behind it."""

    def train(*paid: bool):
        set_seed(0)
        config = GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
            save_strategy="no", max_steps=len(paid), logging_steps=len(paid), per_device_train_batch_size=8,
            num_generations=4, max_completion_length=48, temperature=2.0, gradient_checkpointing=False,
        )  # fmt: skip
        rollouts = []
        place = resolve("zoo:arith-student")
        trainer = CreditGRPOTrainer(
            rewards=[WeightedReward(EveryOther(*paid))],
            rollout_sink=lambda step, rows: rollouts.append(pd.DataFrame(rows)),
            model=AutoModelForCausalLM.from_pretrained(place),
            args=config,
            train_dataset=Dataset.from_list(ArithmeticSpec(kind="arithmetic").train_rows()[:64]),
            processing_class=AutoTokenizer.from_pretrained(place),
        )
        trainer.train()
        return next(row for row in trainer.state.log_history if "loss" in row), rollouts

    return train


def correlation(batch: pd.DataFrame) -> float:
    centred = batch[["reward", "tokens"]] - batch.groupby("group")[["reward", "tokens"]].transform("mean")
    return pearsonr(centred.reward, centred.tokens).statistic


def test_batches_logged_together_average_and_those_without_a_value_stay_out(trained) -> None:
    row, batches = trained(True, False, True)
    shares = [batch.completion.str.contains(r"\boxed{", regex=False).mean() for batch in batches]
    assert row["answered"] == pytest.approx(np.mean(shares))
    assert 0 < row["answered"] < 1
    expected = np.mean([correlation(batches[0]), correlation(batches[2])])
    assert row["reward_length_correlation"] == pytest.approx(expected)


def test_a_correlation_that_is_not_defined_is_not_logged(trained) -> None:
    row, _ = trained(False)
    assert "reward_length_correlation" not in row and "answered" in row
    json.dumps(row, allow_nan=False)
