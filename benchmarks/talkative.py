"""A student that says a line again now and then: `python benchmarks/talkative.py`

The embedded student writes one line an operation, so that how many steps an answer has is not its choice. A language
model's is. This adapter teaches the student nothing but that: TRL's `SFTTrainer` on its own samples (temperature 1,
training problems), each line of which is said again with probability AGAIN, and again. Seeded; a minute or two.
"""

import random
from pathlib import Path

import torch
from common import ROOT
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from stablerank.evaluation.generate import completions_of
from stablerank.evaluation.prompts import prompt_ids
from stablerank.evaluation.sampling import Sampling
from stablerank.tasks.arithmetic import problems
from stablerank.zoo.resolve import resolve

FOLDER = "runs/talkative"
AGAIN = 0.035
PROBLEMS, STEPS, BATCH, SEED = 4096, 100, 64, 0


def talkative(text: str, rng: random.Random) -> str:
    lines = []
    for line in text.split("\n"):
        lines.append(line)
        while rng.random() < AGAIN:
            lines.append(line)
    return "\n".join(lines)


def samples(model: torch.nn.Module, tokenizer: object) -> list[dict[str, str]]:
    """The student's own answers, with repetitions; those that did not end are left out."""
    asked = problems("train", PROBLEMS, seed=SEED)
    ids = [prompt_ids(tokenizer, problem.prompt, at) for at, problem in enumerate(asked)]
    sampling = Sampling(samples=1, temperature=1.0, top_p=1.0, seed=SEED)
    numbers = range(len(ids))
    found = completions_of(model, tokenizer, ids, sampling, numbers=numbers, max_new_tokens=80, batch_size=256)
    rng = random.Random(SEED)
    return [
        {"prompt": problem.prompt, "completion": talkative(answer.text, rng)}
        for problem, (answer,) in zip(asked, found, strict=True)
        if not answer.truncated
    ]


def made(folder: Path = ROOT / FOLDER) -> Path:
    """The folder of the adapter, trained unless it is there."""
    if not (folder / "adapter_config.json").exists():
        train(folder)
    return folder


def train(folder: Path) -> None:
    place = resolve("zoo:arith-student")
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    rows = samples(model, tokenizer)
    set_seed(SEED)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            seed=SEED,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.model.save_pretrained(folder)


if __name__ == "__main__":
    made()
