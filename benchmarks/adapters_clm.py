"""One CLM run of one member in a plain TRL script: `python benchmarks/adapters_clm.py FOLDER MEMBER --seed N --rate X`.

TRL's `SFTTrainer` on worked solutions of the embedded task, loss on the solution alone; ours are the adapter, the
telemetry and the held-out score. Writes FOLDER/summary.json last, so a folder with one is finished.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from adapters_members import MEMBERS
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from trl import SFTConfig, SFTTrainer

from stablerank import watch_geometry
from stablerank.adapters.prepare import NEEDS_DATA, prepare_adapter
from stablerank.adapters.variants.polar import stiefel_parameters
from stablerank.evaluation.held_out import evaluate_policy
from stablerank.evaluation.prompts import prompt_ids
from stablerank.rewards.specs import MathVerifySpec
from stablerank.tasks import arithmetic
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.training.landing_callback import LandingCallback
from stablerank.zoo.resolve import resolve

BATCH, STEPS, PROBLEMS = 64, 60, 4096


def score(model: PreTrainedModel, tokenizer: Any, split: str, problems: int) -> dict[str, Any]:
    rows = ArithmeticSpec(kind="arithmetic").held_out_rows(split, problems)
    found = evaluate_policy(model, tokenizer, rows, MathVerifySpec(kind="math_verify").build(), max_new_tokens=80)
    return {**vars_of(found.interval), "problems": found.interval.problems}


def vars_of(interval: Any) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def adapted(model: PreTrainedModel, tokenizer: Any, spec: Any, rows: list[dict[str, str]]) -> PreTrainedModel:
    """The model with its adapter; the data-driven ones read 256 prompts with their solutions."""
    if spec.kind not in NEEDS_DATA:
        return prepare_adapter(model, spec)
    texts = [prompt_ids(tokenizer, row["prompt"] + row["completion"], 0) for row in rows[:256]]
    return prepare_adapter(model, spec, calibration=[{"input_ids": torch.tensor([ids])} for ids in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("member", choices=MEMBERS)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()

    place = resolve("zoo:arith-student")
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    before = score(model, tokenizer, arguments.split, arguments.problems)
    problems = arithmetic.problems("train", PROBLEMS, seed=arguments.seed)
    rows = [{"prompt": problem.prompt, "completion": problem.solution} for problem in problems]
    set_seed(arguments.seed)
    trainer = SFTTrainer(
        model=adapted(model, tokenizer, MEMBERS[arguments.member].spec, rows),
        args=SFTConfig(
            output_dir=str(arguments.folder / "trainer"),
            max_steps=arguments.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=arguments.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            seed=arguments.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    if stiefel_parameters(trainer.model):
        trainer.add_callback(LandingCallback())
    watch_geometry(trainer, arguments.folder / "geometry", every=10, against_base=True, nss=True)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    after = score(trainer.model, tokenizer, arguments.split, arguments.problems)
    summary = {
        "pass_at_1_before": before,
        "pass_at_1_after": after,
        "first_loss": losses[0],
        "last_loss": sum(losses[-5:]) / 5,
        "finite": all(math.isfinite(loss) for loss in losses),
        "train_seconds": seconds,
        "steps": arguments.steps,
    }
    (arguments.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
