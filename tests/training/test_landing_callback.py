"""The landing field inside real trainers: transformers' own, and TRL's SFT and GRPO."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.variants.polar import stiefel_parameters
from stablerank.errors import ModelError
from stablerank.optimisers.landing import drift
from stablerank.training.landing_callback import LandingCallback
from stablerank.zoo.resolve import resolve

STUDENT = resolve("zoo:arith-student")
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "bf16": False}


def polar_config(**settings) -> SpectralLoraConfig:
    return SpectralLoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        spectral={"method": "polar", "theta": "identity", "penalty": 1.0, **settings},
    )


def student():
    return AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)


def adapted(config: SpectralLoraConfig):
    torch.manual_seed(0)
    return get_peft_model(student(), config)


@pytest.fixture
def trainer(tmp_path: Path):
    """Build a plain transformers trainer on a few sequences of real token ids."""

    def build(model, callbacks, steps=12, **settings):
        ids = torch.randint(5, 60, (8, 16), generator=torch.Generator().manual_seed(0)).tolist()
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
        given = {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "save_strategy": "no", **settings}
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, per_device_train_batch_size=4, max_grad_norm=1e-3, **given, **QUIET
        )
        return Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)

    return build


def largest_drift(model) -> float:
    return max(float(drift(factor)) for factor in stiefel_parameters(model).values())


def logged(trainer) -> list[float]:
    return [row["polar_drift"] for row in trainer.state.log_history if "loss" in row]


def test_it_keeps_the_factors_near_the_manifold_and_logs_the_drift_of_each_step(trainer):
    held, free = adapted(polar_config()), adapted(polar_config())
    with_it, without = trainer(held, [LandingCallback()], steps=25), trainer(free, [], steps=25)
    with_it.train()
    without.train()
    assert len(logged(with_it)) == 25 and logged(with_it)[-1] == pytest.approx(largest_drift(held))
    assert largest_drift(held) < 0.3 * largest_drift(free)


def test_the_switches_are_those_of_the_adapters_configuration(trainer):
    drifts = []
    for penalty in (0.0, 1.0):
        model = adapted(polar_config(penalty=penalty, gradient="euclidean"))
        trainer(model, [LandingCallback()], steps=25).train()
        drifts.append(largest_drift(model))
    assert drifts[1] < 0.3 * drifts[0]


def test_a_resumed_run_is_the_run_that_went_through(trainer):
    whole, broken = adapted(polar_config()), adapted(polar_config())
    settings = {"save_strategy": "steps", "save_steps": 4}
    trainer(whole, [LandingCallback()], steps=8, **settings).train()
    again = trainer(broken, [LandingCallback()], steps=8, **settings)
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-4")
    for name, factor in stiefel_parameters(whole).items():
        assert torch.equal(factor, stiefel_parameters(broken)[name]), name


def test_it_leaves_no_hook_behind_and_a_run_that_broke_off_is_not_followed_twice(trainer):
    callback = LandingCallback()
    run = trainer(adapted(polar_config()), [callback], steps=2)
    run.train()
    optimizer = run.optimizer.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    for _ in range(2):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=run.optimizer)
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_weight_decay_and_a_model_without_polar_are_refused(trainer):
    with pytest.raises(ModelError, match=r"weight_decay=0\.1 would pull"):
        trainer(adapted(polar_config()), [LandingCallback()], weight_decay=0.1).train()
    plain = adapted(SpectralLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="PeftModelForCausalLM trains no factor of PoLAR"):
        trainer(plain, [LandingCallback()]).train()


def test_trls_sft_trainer(tmp_path):
    config = SFTConfig(str(tmp_path), max_steps=2, max_length=32, save_strategy="no", **QUIET)
    rows = Dataset.from_dict({"text": ["1 + 2 = 3\n", "2 + 3 = 5\n"] * 4})
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    run = SFTTrainer(
        student(),
        config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=polar_config(),
        callbacks=[LandingCallback()],
    )
    run.train()
    assert len(logged(run)) == 2 and 0 < logged(run)[-1] < 0.1
    assert logged(run)[-1] == pytest.approx(largest_drift(run.model))


def test_trls_grpo_trainer_with_a_reference(tmp_path):
    config = GRPOConfig(
        str(tmp_path),
        max_steps=2,
        beta=0.1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        save_strategy="no",
        **QUIET,
    )
    run = GRPOTrainer(
        student(),
        lambda completions, **_: [float(len(set(text))) for text in completions],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["1 + 2 =", "2 + 3 ="]}),
        processing_class=AutoTokenizer.from_pretrained(STUDENT),
        peft_config=polar_config(),
        callbacks=[LandingCallback()],
    )
    run.train()
    assert len(logged(run)) == 2 and 0 < logged(run)[-1] < 0.1
    assert run.state.log_history[0]["kl"] == 0
