"""The runs of `rate_distortion.py`: an adapter trained by language modelling, compressed and scored, one point a file.

Three tasks. ``arithmetic``: worked solutions of the embedded task on the embedded student, scored by held-out loss
and greedy pass@1. ``memory``: the same with the solutions handed out at random, so that nothing but the examples can
be learnt, scored by the loss of those examples: how much an adapter holds. ``smollm2``: GSM8K's worked solutions on
SmolLM2-135M-Instruct, scored by held-out loss alone; base in bfloat16, adapter in fp32 beside it (merged, the base's
rounding would swallow it) on queries and values, PEFT's default for such models, and logits of held-out texts in
fp32. The loss is of solution tokens, in nats a token. What is finished in the work folder is read, not repeated.
"""

import copy
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from trl import SFTConfig, SFTTrainer

from stablerank.adapters.prepare import prepare_adapter
from stablerank.adapters.specs import DoraSpec, LoraSpec, LowRankSpec, SineSpec
from stablerank.compression.compress import compress, load_compressed
from stablerank.compression.losses import summary
from stablerank.compression.spec import CompressionSpec
from stablerank.evaluation.held_out import evaluate_policy
from stablerank.evaluation.prompts import prompt_ids
from stablerank.evaluation.text_loss import IGNORED, example_logprobs
from stablerank.rewards.specs import MathVerifySpec
from stablerank.tasks import arithmetic
from stablerank.tasks.files import load_texts
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.tasks.texts import shuffled_completions
from stablerank.zoo.resolve import resolve

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """A model, its data and how much of them."""

    name: str
    base: str
    steps: int
    batch: int
    examples: int
    problems: int
    """For pass@1; 0 for none."""
    longest: int
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    """Learning rates tried for LoRA and DoRA."""
    omegas: tuple[float, ...]
    by: tuple[float, ...]
    """Factors tried on SineLoRA's rate."""
    targets: str | tuple[str, ...] = "all-linear"
    is_recall: bool = False
    """Whether an adapter is scored on what it was trained on."""
    dtype: torch.dtype = torch.float32
    """Of the base; adapters are fp32."""


TASKS = {
    "arithmetic": Task(
        "arithmetic",
        "zoo:arith-student",
        steps=60,
        batch=64,
        examples=512,
        problems=256,
        longest=128,
        ranks=(2, 8),
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
        omegas=(2.0, 5.0, 20.0, 50.0, 100.0, 200.0, 400.0, 800.0),
        by=(1 / 3, 1.0, 3.0),
    ),
    "memory": Task(
        "memory",
        "zoo:arith-student",
        steps=160,
        batch=8,
        examples=64,
        problems=0,
        longest=128,
        ranks=(2, 8),
        rates=(1e-3, 3e-3, 1e-2),
        omegas=(20.0, 50.0, 100.0, 200.0, 400.0),
        by=(1.0, 3.0),
        is_recall=True,
    ),
    "smollm2": Task(
        "smollm2",
        "zoo:smollm2-135m-instruct",
        steps=12,
        batch=4,
        examples=16,
        problems=0,
        longest=224,
        ranks=(8,),
        rates=(1e-3, 3e-3, 1e-2, 3e-2),
        omegas=(10.0, 50.0, 200.0),
        by=(1.0, 3.0, 10.0),
        targets=("q_proj", "v_proj"),
        dtype=torch.bfloat16,
    ),
}


@dataclass(frozen=True)
class Arm:
    """An adapter to train."""

    kind: str
    rank: int
    rate: float
    omega: float = 0.0

    def spec(self, task: Task) -> LowRankSpec:
        """With alpha of twice the rank."""
        shared: dict[str, Any] = {"r": self.rank, "alpha": 2 * self.rank}
        shared["targets"] = task.targets if isinstance(task.targets, str) else list(task.targets)
        if self.kind == "sinelora":
            return SineSpec(**shared, omega=self.omega)
        return {"lora": LoraSpec, "dora": DoraSpec}[self.kind](**shared)

    def name(self, seed: int) -> str:
        wave = f"-{self.omega:g}" if self.omega else ""
        return f"{self.kind}-{self.rank}-{self.rate:g}{wave}-{seed}"


@cache
def rows(task: Task, split: str, seed: int) -> list[Row]:
    """Prompts with completions; training draws by the seed, the held-out splits are the same for every seed."""
    if task.is_recall:
        drawn = arithmetic.problems("train", task.examples, seed=seed)
        return shuffled_completions([{"prompt": each.prompt, "completion": each.solution} for each in drawn])
    count = task.steps * task.batch if split == "train" else task.examples
    if task.name == "arithmetic":
        found = arithmetic.problems(split, count, seed=seed if split == "train" else 0)  # type: ignore[arg-type]
        return [{"prompt": problem.prompt, "completion": problem.solution} for problem in found]
    # Validation is the end of the training file, which training does not reach.
    file = "data:gsm8k_test.jsonl" if split == "test" else "data:gsm8k_train.jsonl.gz"
    stored = load_texts(file, {}, ["question", "answer"])
    start = {"train": (seed % 20) * count, "validation": len(stored) - count, "test": 0}[split]
    chosen = stored[start : start + count]
    return [{"prompt": f"{row['question']}\n", "completion": row["answer"]} for row in chosen]


@cache
def tokenizer(task: Task) -> Any:
    return AutoTokenizer.from_pretrained(resolve(task.base), padding_side="left")


def base(task: Task) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(resolve(task.base), dtype=task.dtype)


def with_full_logits(model: PreTrainedModel) -> PreTrainedModel:
    """The head in fp32 and untied: logits of some 20 rounded to bfloat16 would be a twentieth of a nat apart."""
    model.lm_head = copy.deepcopy(model.lm_head).float()
    model.lm_head.register_forward_pre_hook(lambda head, states: tuple(each.float() for each in states))
    return model


def trained(task: Task, arm: Arm, seed: int, work: Path) -> Path:
    """The folder of the trained adapter."""
    folder = work / task.name / arm.name(seed)
    if (folder / "adapter" / "adapter_config.json").exists():
        return folder
    set_seed(seed)
    trainer = SFTTrainer(
        model=prepare_adapter(base(task), arm.spec(task)),
        args=SFTConfig(
            output_dir=str(folder / "trainer"),
            max_steps=task.steps,
            per_device_train_batch_size=task.batch,
            max_length=task.longest,
            learning_rate=arm.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            seed=seed,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows(task, "train", seed)),
        processing_class=tokenizer(task),
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "unfinished")
    (folder / "unfinished").rename(folder / "adapter")
    return folder


def point(task: Task, folder: Path, spec: CompressionSpec, split: str, seed: int) -> dict[str, Any]:
    """One compressed file of an adapter trained with a seed: bytes, quality, losses."""
    place = folder / f"{split}-{spec.method}-{spec.bits}-{spec.rank or 'full'}"
    done = place.with_name(f"{place.name}.json")
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    file = place.with_name(f"{place.name}.safetensors")
    file.unlink(missing_ok=True)
    written = compress(folder / "adapter", file, spec)
    lost = summary(written.losses)
    within = all(loss.lower <= loss.stable_rank_after <= loss.upper for loss in written.losses)
    bounds = {
        "lower": statistics.median(loss.lower for loss in written.losses),
        "upper": statistics.median(loss.upper for loss in written.losses),
    }
    model = load_compressed(file, with_full_logits(base(task))).eval()
    if task.dtype is torch.float32:  # a sine would be computed anew in every forward
        model = model.merge_and_unload()
    found = {
        "method": spec.method,
        "bits": spec.bits,
        "cut": spec.rank,
        "bytes": file.stat().st_size,
        "fp16_bytes": written.account.fp16,
        **asdict(lost),
        **{name: value if math.isfinite(value) else None for name, value in bounds.items()},
        "within_bounds": within,
        **quality(task, model, split, seed),
    }
    file.unlink()
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def quality(task: Task, model: Any, split: str, seed: int) -> dict[str, float]:
    """Loss, and on the test split pass@1 where the task has one."""
    found = example_logprobs(model, batches(task, split, seed if task.is_recall else 0))
    loss = -sum(example.logprob for example in found) / sum(example.tokens for example in found)
    if not task.problems or split != "test":
        return {"loss": loss}
    problems = ArithmeticSpec(kind="arithmetic").held_out_rows(split, task.problems)
    reward = MathVerifySpec(kind="math_verify").build(tokenizer(task))
    held_out = evaluate_policy(model, tokenizer(task), problems, reward, max_new_tokens=80)
    return {"loss": loss, "pass_at_1": held_out.interval.value}


def batches(task: Task, split: str, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Examples as the trainer reads them, padded on the right; prompts are not counted."""
    reader = tokenizer(task)
    end = reader.eos_token_id
    size = 8 if task.name == "smollm2" else 64
    held_out = rows(task, split, seed)
    for start in range(0, len(held_out), size):
        ids, labels = [], []
        for row in held_out[start : start + size]:
            prompt = prompt_ids(reader, row["prompt"], 0)
            completion = reader(row["completion"], add_special_tokens=False)["input_ids"]
            ids.append(torch.tensor([*prompt, *completion, end][: task.longest]))
            labels.append(torch.tensor([*[IGNORED] * len(prompt), *completion, end][: task.longest]))
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=end)
        targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        lengths = torch.tensor([len(row) for row in ids])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        yield {"input_ids": padded, "labels": targets, "attention_mask": mask}
