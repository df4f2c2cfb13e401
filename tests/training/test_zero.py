"""Zeros explained during real runs of TRL's trainer, its own log and gradient being the judge."""

import logging
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from stablerank.dynamics.zero import zeros_of_record
from stablerank.errors import ModelError
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit, Reward
from stablerank.rewards.rollout import Rollout
from stablerank.runs.record import read_record
from stablerank.tasks.arithmetic import problems
from stablerank.training.grpo import CreditGRPOTrainer
from stablerank.training.scoring import WeightedReward
from stablerank.training.zero import ZeroCallback, explain_zero
from stablerank.zoo.resolve import resolve

SETTINGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
}
GROUPS = 2
"""Of a step."""


class Run:
    """One short training: its explanations, its counts, and what TRL logged a step."""

    def __init__(self, trainer, caplog, **explained):
        caplog.clear()
        self.before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        self.callback = explain_zero(trainer, **explained)
        with caplog.at_level(logging.WARNING, "stablerank"):
            trainer.train()
        self.said = [record.message for record in caplog.records if record.name == "stablerank.training.zero"]
        self.log = [row for row in trainer.state.log_history if "loss" in row]
        self.model = trainer.model

    def moved(self):
        after = self.model.named_parameters()
        return max(float((value.detach() - self.before[name]).abs().max()) for name, value in after)

    def silent_by_trl(self):
        """Groups that TRL itself counted, from the shares that it logged."""
        return sum(row["frac_reward_zero_std"] * GROUPS for row in self.log)


@pytest.fixture
def run(tmp_path: Path, caplog):
    def train(reward, explained=None, adapter=None, kind=GRPOTrainer, **changes):
        set_seed(1)
        place = resolve("zoo:arith-student")
        rewards = {"reward_funcs": reward} if kind is GRPOTrainer else {"rewards": reward}
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(place),
            args=GRPOConfig(output_dir=str(tmp_path), **{**SETTINGS, **changes}),
            train_dataset=Dataset.from_list([{"prompt": p.prompt} for p in problems("train", 16)]),
            eval_dataset=Dataset.from_list([{"prompt": p.prompt} for p in problems("validation", 2)]),
            processing_class=AutoTokenizer.from_pretrained(place),
            peft_config=adapter,
            **rewards,
        )
        return Run(trainer, caplog, **(explained or {}))

    return train


def always(value):
    return lambda completions, **columns: [value] * len(completions)


def alternating(completions, **columns):
    return [float(place % 2) for place in range(len(completions))]


def one_of_a_group(completions, **columns):
    return [1.0 if place % 4 == 0 else None for place in range(len(completions))]


def one_prompt_right(completions, **columns):
    return [float(place < 4) for place in range(len(completions))]


@pytest.mark.parametrize(
    ("reward", "changes", "counts", "words"),
    [
        (always(0.5), {"max_steps": 2}, {"equal": 4}, "Every reward of this run so far is 0.5"),
        (always(0.0), {}, {"wrong": 2}, "a reward function that always returns 0 would look the same"),
        (one_prompt_right, {}, {"correct": 1, "wrong": 1}, "Rewards differ between prompts"),
        (always(0.0), {"max_completion_length": 2}, {"truncated": 2}, "reach max_completion_length=2 before their end"),
    ],
)
def test_equal_rewards_are_explained_once_and_counted_as_trl_counts(run, reward, changes, counts, words):
    found = run(reward, **changes)
    assert len(found.said) == 2
    assert found.said[0].startswith("No learning signal in step 1: ")
    assert words in found.said[0]
    batches, groups = len(found.log), sum(counts.values())
    assert found.said[1].startswith(f"Without learning signal: {batches} of {batches} generation batches (")
    assert found.said[1].endswith(f", and {groups} of {groups} groups.")
    assert dict(found.callback.groups) == counts
    assert found.silent_by_trl() == groups
    assert found.moved() == 0


@pytest.mark.parametrize(
    ("reward", "changes", "cause", "words"),
    [
        (one_of_a_group, {}, "one_sample", "return a number, not None"),
        (
            alternating,
            {"max_completion_length": 2, "mask_truncated_completions": True},
            "masked",
            "kept out of the loss by mask_truncated_completions",
        ),
    ],
)
def test_zeros_that_trl_does_not_count(run, reward, changes, cause, words):
    """TRL's share of groups without deviation is 0; that nothing moves is its word too."""
    found = run(reward, **changes)
    assert found.silent_by_trl() == 0
    assert [(row["loss"], row["grad_norm"]) for row in found.log] == [(0, 0)]
    assert found.moved() == 0
    assert dict(found.callback.groups) == {cause: GROUPS}
    assert len(found.said) == 2
    assert words in found.said[0]


def test_healthy_run_says_nothing_and_evaluations_do_not_count(run):
    def alternating_in_training(completions, **columns):
        evaluated.append(columns["trainer_state"].global_step == 1)
        return [0.0] * len(completions) if evaluated[-1] else alternating(completions)

    evaluated = []
    found = run(alternating_in_training, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8)
    assert evaluated == [False, True]
    assert found.said == []
    assert dict(found.callback.groups) == {None: GROUPS}
    assert found.moved() > 0


def test_part_of_the_groups_without_signal_is_no_zero(run):
    found = run(lambda completions, **columns: [float(place in (0, 1)) for place in range(len(completions))])
    assert dict(found.callback.groups) == {None: 1, "wrong": 1}
    assert found.silent_by_trl() == 1
    assert not any(message.startswith("No learning signal") for message in found.said)


def test_loss_zero_with_a_gradient_is_called_normal(run):
    found = run(alternating, loss_type="grpo")
    assert all(abs(row["loss"]) < 1e-6 < row["grad_norm"] for row in found.log)
    (message,) = found.said
    assert message.startswith(f"Loss 0 beside grad_norm {found.log[0]['grad_norm']:.2g} is normal")
    assert "KL" not in message


def test_kl_still_pulls_where_rewards_are_equal(run):
    def first_step_pays(completions, trainer_state, **columns):
        return [float(place % 2) * (trainer_state.global_step == 0) for place in range(len(completions))]

    found = run(first_step_pays, beta=0.1, max_steps=2)
    assert found.silent_by_trl() == 2
    assert found.log[1]["grad_norm"] > 0
    assert found.said[0].startswith("No learning signal in step 2: 2 of 2 groups all wrong.")
    assert found.said[0].endswith("The KL term (beta=0.1) still pulls the policy towards its reference.")
    assert "1 of 2 generation batches (1 all wrong), and 2 of 4 groups." in found.said[1]


def test_rounding_that_trl_trains_on_is_told(run):
    """Seven times 0.7 has a mean that is not 0.7 in fp32: TRL sees a deviation, and Adam makes whole steps of it."""
    found = run(always(0.7), per_device_train_batch_size=7, num_generations=7)
    assert found.silent_by_trl() == 0
    assert 0 < found.log[0]["grad_norm"] < 0.01
    assert found.moved() > 0.5 * SETTINGS["learning_rate"]
    assert "leaves advantages of up to 0.0006, of which Adam" in found.said[0]


def test_gradient_zero_beside_advantages_is_a_fault(run):
    cut_off = LoraConfig(r=2, lora_alpha=0, target_modules="all-linear", task_type="CAUSAL_LM")
    found = run(alternating, adapter=cut_off)
    assert [row["grad_norm"] for row in found.log] == [0]
    (message,) = found.said
    assert message.startswith("The gradient is zero in step 1 although the advantages are not")


@pytest.mark.parametrize("completions", [True, False])
def test_record_of_the_run_says_what_the_run_said(run, tmp_path, completions):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "log_completions": completions}
    found = run(always(0.0), **settings)
    (zero,) = zeros_of_record(read_record(tmp_path))
    assert (zero.first_step, zero.last_step, zero.cause) == (1, 2, "wrong")
    assert dict(zero.counts) == (dict(found.callback.groups) if completions else {})
    assert zero.message.partition("All wrong")[2] == found.said[0].partition("All wrong")[2]


class EarlyOrLate(Reward):
    """One point a completion: half of the group at the first token, half at the second."""

    name, density = "early_or_late", "step"

    def __call__(self, rollout: Rollout) -> Deposit:
        mask_NT = rollout.completion_mask_NT
        values_NT, placed_NT = torch.zeros(mask_NT.shape), torch.zeros(mask_NT.shape, dtype=torch.bool)
        placed_NT[:, :2] = True
        place_N = torch.arange(len(mask_NT))
        values_NT[place_N, place_N % 2] = 1.0
        return Deposit(values_NT, placed_NT, torch.ones(len(mask_NT)), "step")


def test_step_rewards_teach_beside_equal_sums(run):
    """TRL sees equal rewards; our credit has advantages, on the first token alone."""
    rewards = [WeightedReward(EarlyOrLate(), credit=CreditSpec(rule="return_to_go"))]
    found = run(rewards, kind=CreditGRPOTrainer)
    assert found.silent_by_trl() == GROUPS
    assert dict(found.callback.groups) == {None: GROUPS}
    assert not any(message.startswith("No learning signal") for message in found.said)
    assert found.moved() > 0


def rows(rewards, **changes):
    return [
        {"group": 0, "completion": "4", "reward": reward, "advantage": 0.0, "tokens": 1, "truncated": False, **changes}
        for reward in rewards
    ]


def test_each_cause_is_said_once_and_again_when_it_changes():
    said = []
    callback = ZeroCallback(say=said.append)
    for step, rewards in enumerate([(0, 0), (0, 0), (1, 1), (0, 0), (None, 1), (1, 1)], 1):
        callback.see(step, rows(rewards))
    assert [message.split(" groups ")[1].split(".")[0] for message in said] == [
        "all wrong",
        "all correct",
        "with fewer than two rewards",
    ]
    assert dict(callback.batches) == {"wrong": 3, "correct": 2, "one_sample": 1}


@pytest.mark.parametrize(("answer", "label"), [(None, "all wrong"), ("####", "without a readable answer")])
def test_answer_form_is_judged_where_it_is_given(answer, label):
    said = []
    ZeroCallback(answer, say=said.append).see(1, rows([0, 0]))
    assert f"1 of 1 groups {label}." in said[0]


def test_highest_reward_is_that_of_the_run_so_far():
    said = []
    callback = ZeroCallback(say=said.append)
    callback.see(1, [*rows([0.25]), *rows([0.75], advantage=0.25)])
    callback.see(2, rows([0.75, 0.75, math.nan]))
    (message,) = said
    assert "every completion got 0.75, the highest reward" in message


@pytest.mark.parametrize(("norm", "lines"), [(math.nan, 0), (0.5, 1), (0.0, 1)])
def test_gradient_that_is_no_number_is_not_called_normal(tmp_path, norm, lines):
    said = []
    callback = ZeroCallback(say=said.append)
    callback.see(1, [*rows([0.0], advantage=-0.5), *rows([1.0], advantage=0.5)])
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": 0.0, "grad_norm": norm})
    assert len(said) == lines


def test_other_trainers_are_refused(tmp_path: Path):
    place = resolve("zoo:arith-student")
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(place),
        args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list([{"text": p.solution} for p in problems("train", 2)]),
        processing_class=AutoTokenizer.from_pretrained(place),
    )
    with pytest.raises(ModelError, match="of a SFTTrainer are not known here; give TRL's GRPOTrainer"):
        explain_zero(trainer)
