"""Make the embedded models: `python scripts/make_zoo.py [teacher|student|prm|cards ...]`.

Three Qwen3-type decoders share one character vocabulary: a teacher that works every chain step by step; a student,
the teacher trained on with text that mixes direct answers, careful work and careless work, and that mostly guesses
once a chain is long (so that reinforcement has something to choose from); and a process reward model with the
Math-Shepherd tags, trained on the student's own rollouts with the exact step checker as its label. Everything is
seeded; numbers in the model cards come from this script's own runs.

Left out on purpose: hyperparameter search, mixed precision, resumption. A stage takes minutes on two cores.
"""

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from stablerank.tasks.arithmetic import LEVELS, Problem, boxed, check_steps, problems, sample_problem, split_of

OUT = Path(__file__).parents[1] / "src" / "stablerank" / "zoo" / "models"
TAG, GOOD, BAD = "ки", "+", "-"
IGNORED = -100
SHORT_CHAIN = 3
STUDENT_STYLES = {
    "short": {"direct": 0.20, "careful": 0.55, "careless": 0.25},
    "long": {"direct": 0.55, "careful": 0.25, "careless": 0.20},
}
TEACHER_STYLES = {"short": {"careful": 1.0}, "long": {"careful": 1.0}}
BATCH, POOL, MAX_LENGTH = 128, 8, 256
STEPS = {"teacher": 1600, "student": 500, "prm": 800}
PEAK_LR = {"teacher": 3e-3, "student": 1e-3, "prm": 1e-3}

Row = tuple[list[int], list[int]]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


# --- tokenizer and model ----------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; ``\\boxed{`` and the process tag are single tokens."""
    pieces = ["<pad>", "<eos>", "<unk>", "\\boxed{", TAG, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|ки|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


# --- text -------------------------------------------------------------------------------------------------------


def careless_solution(problem: Problem, rng: random.Random) -> str:
    """A worked solution with one slip, carried on faithfully to the answer."""
    slip, value, lines = rng.randrange(len(problem.operations)), problem.first, []
    for index, (operator, operand) in enumerate(problem.operations):
        after = {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
        if index == slip:
            after = max(0, after + rng.choice((-10, -2, -1, 1, 2, 10)))
        lines.append(f"{value}{operator}{operand}={after}")
        value = after
    return "\n".join([*lines, boxed(value)])


def solution_in_style(problem: Problem, style: str, rng: random.Random) -> str:
    if style == "direct":
        return boxed(problem.answer)
    return problem.solution if style == "careful" else careless_solution(problem, rng)


def train_problem(rng: random.Random) -> Problem:
    """A problem of the train split, one to eight operations."""
    while True:
        problem = sample_problem(rng, rng.randint(1, 8))
        if split_of(problem.question) == "train":
            return problem


def text_batches(tokenizer: PreTrainedTokenizerFast, styles: dict[str, dict[str, float]], seed: int) -> Iterator[Batch]:
    """Endless batches of question and solution; only the solution and its end are learned."""
    rng = random.Random(seed)

    def row() -> Row:
        problem = train_problem(rng)
        weights = styles["short" if len(problem.operations) <= SHORT_CHAIN else "long"]
        style = rng.choices(list(weights), list(weights.values()))[0]
        prompt = tokenizer(problem.prompt).input_ids
        answer = [*tokenizer(solution_in_style(problem, style, rng)).input_ids, tokenizer.eos_token_id]
        return prompt + answer, [IGNORED] * len(prompt) + answer

    while True:
        yield from bucketed([row() for _ in range(POOL * BATCH)], tokenizer.pad_token_id, rng)


def bucketed(rows: list[Row], pad: int, rng: random.Random) -> Iterator[Batch]:
    """Batches of similar length in random order: half of the tokens would be padding otherwise."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    starts = list(range(0, len(rows) - BATCH + 1, BATCH))
    rng.shuffle(starts)
    for at in starts:
        yield pad_rows(rows[at : at + BATCH], pad)


def pad_rows(rows: list[Row], pad: int) -> Batch:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels``."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in rows])
    return ids, mask, labels


# --- training ---------------------------------------------------------------------------------------------------


def causal_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    ids, mask, labels = batch
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def tag_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy at the tags, where the label stands in place (Math-Shepherd), not one token later."""
    ids, mask, labels = batch
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def train(name: str, model: torch.nn.Module, batches: Iterator[Batch], loss_of: Callable = causal_loss) -> None:
    """AdamW with warm-up and cosine decay to a tenth."""
    steps, peak, start = STEPS[name], PEAK_LR[name], time.time()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.95))
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        rate = peak * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        optimiser.param_groups[0]["lr"] = rate
        loss = loss_of(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"{name} {step:5d}/{steps} loss {loss.item():.4f} {time.time() - start:.0f}s", flush=True)
    model.eval()


# --- rollouts and measurement -----------------------------------------------------------------------------------


@torch.no_grad()
def generate(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], **options) -> list[str]:
    texts: list[str] = []
    for at in range(0, len(prompts), 256):
        inputs = tokenizer(prompts[at : at + 256], return_tensors="pt", padding=True, return_token_type_ids=False)
        ids = model.generate(**inputs, max_new_tokens=112, **options)
        texts += tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return texts


def is_right(problem: Problem, completion: str) -> bool:
    return completion.rstrip("\n").endswith(boxed(problem.answer))


def proportion(hits: list[bool] | np.ndarray, draws: int = 2000) -> dict[str, float]:
    """Mean with a percentile-bootstrap 95 % interval over rows (each row one problem)."""
    values = np.asarray(hits, float)
    sampled = np.random.default_rng(0).choice(values, (draws, len(values))).mean(1)
    low, high = np.quantile(sampled, [0.025, 0.975])
    return {"value": round(values.mean(), 4), "low": round(low, 4), "high": round(high, 4), "problems": len(values)}


def measure_policy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 600) -> dict:
    """Greedy pass@1 and sampled pass@1 and pass@8 at temperature 1 on validation problems."""
    held_out = problems("validation", count)
    greedy = generate(model, tokenizer, [p.prompt for p in held_out], do_sample=False)
    eight = [p for p in held_out for _ in range(8)]
    torch.manual_seed(0)
    sampled = generate(model, tokenizer, [p.prompt for p in eight], do_sample=True, temperature=1.0, top_k=0)
    right = np.array([is_right(p, c) for p, c in zip(eight, sampled, strict=True)]).reshape(count, 8)
    return {
        "greedy_pass_at_1": proportion([is_right(p, c) for p, c in zip(held_out, greedy, strict=True)]),
        "sampled_pass_at_1": proportion(right.mean(1)),
        "sampled_pass_at_8": proportion(right.any(1)),
    }


def prm_row(tokenizer: PreTrainedTokenizerFast, problem: Problem, completion: str) -> tuple[list[int], list[int], list]:
    """Math-Shepherd text, labels in place at the tags, and the exact verdicts."""
    verdicts = check_steps(problem, completion)
    text = f"{problem.question} " + "\n".join(f"{line} {TAG}" for line in completion.strip("\n").split("\n"))
    ids = tokenizer(text).input_ids[:MAX_LENGTH]
    tag, good, bad = tokenizer.convert_tokens_to_ids([TAG, GOOD, BAD])
    waiting = iter(verdicts)
    labels = [(good if next(waiting) else bad) if token == tag else IGNORED for token in ids]
    return ids, labels, verdicts


def student_rollouts(split: str, count: int, seed: int) -> list[tuple[Problem, str]]:
    student, tokenizer = load("student")
    asked = problems(split, count, seed=seed)
    torch.manual_seed(seed)
    texts = generate(student, tokenizer, [p.prompt for p in asked], do_sample=True, temperature=1.0, top_k=0)
    return [(p, t) for p, t in zip(asked, texts, strict=True) if TAG not in t]


def prm_batches(tokenizer: PreTrainedTokenizerFast, rollouts: list[tuple[Problem, str]], seed: int) -> Iterator[Batch]:
    """Three worked rollouts to one guess: telling guesses from work is easy, finding the slip is not."""
    rng = random.Random(seed)
    rows = [prm_row(tokenizer, p, c) for p, c in rollouts]
    worked = [row[:2] for row in rows if len(row[2]) > 1]
    guessed = [row[:2] for row in rows if len(row[2]) == 1]
    quarter = POOL * BATCH // 4
    while True:
        pool = rng.sample(worked, 3 * quarter) + rng.sample(guessed, quarter)
        yield from bucketed(pool, tokenizer.pad_token_id, rng)


@torch.no_grad()
def prm_scores(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[tuple]) -> list[list[float]]:
    tag, good, bad = tokenizer.convert_tokens_to_ids([TAG, GOOD, BAD])
    scores = []
    for at in range(0, len(rows), 256):
        ids, mask, _ = pad_rows([row[:2] for row in rows[at : at + 256]], tokenizer.pad_token_id)
        probability = model(input_ids=ids, attention_mask=mask).logits[..., [good, bad]].softmax(-1)[..., 0]
        scores += [p[i == tag].tolist() for p, i in zip(probability, ids, strict=True)]
    return scores


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Mann-Whitney probability that a right step outranks a wrong one, ties one half."""
    ranks, positives = rankdata(score), label.sum()
    return (ranks[label].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives))


def clustered_auc(score: np.ndarray, label: np.ndarray, cluster: np.ndarray, draws: int = 1000) -> dict[str, float]:
    """AUC with a 95 % bootstrap interval that resamples whole rollouts (one a problem)."""
    rng, count = np.random.default_rng(0), int(cluster.max()) + 1
    members = [np.flatnonzero(cluster == c) for c in range(count)]
    sampled = []
    for _ in range(draws):
        index = np.concatenate([members[c] for c in rng.integers(0, count, count)])
        sampled.append(auc(score[index], label[index]))
    low, high = np.quantile(sampled, [0.025, 0.975])
    return {"value": round(auc(score, label), 4), "low": round(low, 4), "high": round(high, 4)}


def measure_prm(split: str, seed: int) -> dict:
    """Step AUC against the exact checker, beside what the step's index and the rollout's length alone would give.

    Both baselines rank later steps and longer rollouts higher, the sign that wins on validation. Worked rollouts are
    those of more than one line: among them a model cannot win by telling guesses from work.
    """
    model, tokenizer = load("prm")
    rows = [prm_row(tokenizer, p, c) for p, c in student_rollouts(split, 1000, seed)]
    scores = prm_scores(model, tokenizer, rows)
    pieces = [
        (s, v, c, index, len(rows[c][0]), len(row[2]))
        for c, (row, steps) in enumerate(zip(rows, scores, strict=True))
        for index, (s, v) in enumerate(zip(steps, row[2], strict=False))
    ]
    table = np.array(pieces, float)
    return {"all": step_aucs(table), "worked": step_aucs(table[table[:, 5] > 1])}


def step_aucs(table: np.ndarray) -> dict:
    score, label, cluster, index, length, _ = table.T
    label, cluster = label.astype(bool), np.unique(cluster, return_inverse=True)[1]
    return {
        "rollouts": int(cluster.max()) + 1,
        "steps": len(label),
        "right_steps": round(label.mean(), 4),
        "step_auc": clustered_auc(score, label, cluster),
        "step_index_only_auc": clustered_auc(index, label, cluster),
        "length_only_auc": clustered_auc(length, label, cluster),
    }


# --- stages -----------------------------------------------------------------------------------------------------


def save(name: str, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = OUT / f"arith-{name}"
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def load(name: str) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    folder = OUT / f"arith-{name}"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def make_teacher() -> None:
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train("teacher", model, text_batches(tokenizer, TEACHER_STYLES, seed=1))
    save("teacher", model, tokenizer)


def make_student() -> None:
    model, tokenizer = load("teacher")
    torch.manual_seed(2)
    train("student", model, text_batches(tokenizer, STUDENT_STYLES, seed=2))
    save("student", model, tokenizer)


def make_prm() -> None:
    model, tokenizer = load("teacher")
    torch.manual_seed(3)
    rollouts = student_rollouts("train", 24_000, seed=3)
    train("prm", model, prm_batches(tokenizer, rollouts, seed=3), tag_loss)
    save("prm", model, tokenizer)


def make_cards() -> None:
    """Measure the saved models and write their cards; the test split is looked at here and nowhere else."""
    policies = {name: {"validation": measure_policy(*load(name))} for name in ("student", "teacher")}
    for name, measured in {**policies, "prm": {s: measure_prm(s, seed=4) for s in ("validation", "test")}}.items():
        folder = OUT / f"arith-{name}"
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        (folder / "measured.json").write_text(json.dumps({**measured, "versions": versions}, indent=2) + "\n")
        (folder / "README.md").write_text(card(name, measured))


ABOUT = {
    "teacher": "works every chain step by step",
    "student": "works short chains and mostly guesses long ones, with some careful and some careless work in between",
    "prm": "scores each step of a solution without seeing the gold answer (Math-Shepherd tags `ки`, `+`, `-`)",
}
CARD = """---
license: apache-2.0
library_name: transformers
tags: [stablerank, arithmetic]
---

# arith-{name}

A {parameters:,}-parameter Qwen3-type decoder with a character vocabulary that {about}. Made for tests, demos and
studies of post-training by `python scripts/make_zoo.py {name}`; it knows nothing but `stablerank.tasks.arithmetic`.

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(FOLDER)  # `stablerank zoo list` prints the folder
```

## Measured

{how} Values with 95 % bootstrap intervals by problem, written by `python scripts/make_zoo.py cards` into
`measured.json`.

{table}
"""
HOW_POLICY = (
    "600 problems of the validation split, 2 to 6 operations: greedy once, and 8 samples at temperature 1 for the "
    "sampled rates."
)
HOW_PRM = (
    "1000 rollouts a split, sampled from the student at temperature 1, one a problem, labelled by the exact step "
    "checker (a step is right when it and all before it are). AUC over steps, intervals by rollout; `worked` keeps "
    "rollouts of more than one line. Baselines rank later steps, or steps of longer rollouts, higher."
)


def card(name: str, measured: dict) -> str:
    lines = ["| split | rollouts | measure | value | interval |", "|---|---|---|---|---|"]
    for split, groups in measured.items():
        named = {"": groups} if name != "prm" else groups
        for group, values in named.items():
            for measure, v in values.items():
                if isinstance(v, dict):
                    lines.append(
                        f"| {split} | {group} | {measure} | {v['value']:.3f} | {v['low']:.3f} to {v['high']:.3f} |"
                    )
    return CARD.format(
        name=name,
        about=ABOUT[name],
        parameters=sum(p.numel() for p in load(name)[0].parameters()),
        how=HOW_PRM if name == "prm" else HOW_POLICY,
        table="\n".join(lines),
    )


STAGES: dict[str, Callable[[], None]] = {
    "teacher": make_teacher,
    "student": make_student,
    "prm": make_prm,
    "cards": make_cards,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    for stage in parser.parse_args().stages:
        STAGES[stage]()


if __name__ == "__main__":
    assert LEVELS["hard"][1] == 8, "the training text covers one to eight operations"
    main()
