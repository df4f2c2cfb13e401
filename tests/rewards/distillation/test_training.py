"""The reward inside the trainer: what it compares lines up, and a server that dies costs no step."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed
from trl import GRPOConfig

from stablerank.errors import RewardError
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.distillation.model_teacher import ModelTeacher
from stablerank.rewards.distillation.reward import DistillationReward
from stablerank.rewards.distillation.server_teacher import ServerTeacher
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.training.grpo import CreditGRPOTrainer
from stablerank.training.scoring import WeightedReward
from stablerank.zoo.resolve import resolve

STEPS, BATCH = 3, 4
PURE = CreditSpec(centre="none", scale="none")


@pytest.fixture
def trainer(zoo_tokenizer, tmp_path):
    """Three steps of distillation on the embedded student; a checkpoint a step."""

    def build(teacher, name="run", **changes):
        set_seed(0)
        settings = {
            "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
            "gradient_checkpointing": False, "per_device_train_batch_size": BATCH, "num_generations": 2,
            "max_completion_length": 8, "max_steps": STEPS, "save_steps": 1, "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
        }  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"), dtype=torch.float32)
        config = GRPOConfig(output_dir=str(tmp_path / name), **{**settings, **changes})
        return CreditGRPOTrainer(
            rewards=[WeightedReward(DistillationReward(teacher), 1.0, PURE)],
            model=model,
            args=config,
            train_dataset=Dataset.from_list(ArithmeticSpec(kind="arithmetic").train_rows()[:64]),
            processing_class=zoo_tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
        )

    return build


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_policy_that_is_its_own_teacher_is_paid_nothing(trainer, zoo_student, temperature):
    running = trainer(ModelTeacher(zoo_student, "itself", temperature), temperature=temperature)
    batch = running._generate_and_score_completions([running.train_dataset[row // 2] for row in range(BATCH)])
    # LoRA begins at zero, so both sides are the student: tokens, positions and temperature line up, or this is not 0.
    assert batch["advantages"].abs().max() < 2e-5
    other = trainer(ModelTeacher(zoo_student, "itself", 0.8), temperature=temperature)
    batch = other._generate_and_score_completions([other.train_dataset[row // 2] for row in range(BATCH)])
    assert batch["advantages"].abs().max() > 0.01


def test_training_moves_the_policy_towards_the_teacher(trainer, zoo_teacher):
    changes = {"per_device_train_batch_size": 24, "max_steps": 8, "learning_rate": 4e-3, "save_strategy": "no"}
    running = trainer(ModelTeacher(zoo_teacher, "teacher"), **changes)
    running.train()
    rewards = [row["reward"] for row in running.state.log_history if "reward" in row]
    assert len(rewards) == 8
    # Minus the KL a token: the student begins 5 nats away, mostly because it answers without a step.
    assert sum(rewards[:2]) / 2 < -4 and sum(rewards[-2:]) / 2 > -3


def test_a_server_that_dies_mid_run_costs_no_step(trainer, server, tmp_path):
    def teacher():
        return ServerTeacher(server.url, "teacher", timeout=5.0, retries=1, pause=0.01)

    trainer(teacher(), "whole").train()
    seen = len(server.questions)
    assert seen == STEPS * BATCH
    well = server.answer
    server.answer = lambda question: well(question) if len(server.questions) <= seen + 2 * BATCH else (502, b"gone")
    with pytest.raises(RewardError, match=r"in 2 of 2 tries \(HTTP 502: gone\); .* with --resume"):
        trainer(teacher(), "cut").train()
    assert (tmp_path / "cut" / "checkpoint-2").is_dir() and not (tmp_path / "cut" / "checkpoint-3").exists()
    server.answer = well
    trainer(teacher(), "cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    whole, resumed = (
        load_file(tmp_path / run / "checkpoint-3" / "adapter_model.safetensors") for run in ("whole", "cut")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(name.endswith("lora_B.weight") and whole[name].abs().max() > 0 for name in whole)
