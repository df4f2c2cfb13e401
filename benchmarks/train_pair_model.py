"""A small learned reward model for chains of arithmetic, trained on pairs. `python benchmarks/train_pair_model.py`.

The control "a learned reward model" of the studies of stable rank as a reward. Pairs are a right and a wrong rollout of
`zoo:arith-student` (temperature 1) on one problem, right by the boxed answer alone; the model is the student's body
with a new head of one output, all weights trained by TRL's RewardTrainer on the Bradley-Terry loss. Training pairs come
of the task's train split, measured ones of its validation split; no test problem is seen. Wrong rollouts of this
student leave steps out, so the longer of two is mostly right; of a problem's pairs those closest in length are trained
on, that the model may learn more than this.

Measured: how often the right one of a pair scores higher (ties count half), over all pairs and over those of equally
many characters, a mean over problems with its 95 % interval by problem, beside "the longer one".
Deterministic for one machine and thread count.
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import print_table, write_results
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from stablerank.evaluation.generate import completions_of, fitting_ids
from stablerank.evaluation.sampling import Sampling
from stablerank.evaluation.statistics import Interval, mean_interval
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.learned import load_reward_model
from stablerank.runs.atomic import whole_folder
from stablerank.tasks.arithmetic import Split, boxed, problems
from stablerank.zoo.resolve import resolve

BODY = "zoo:arith-student"
LONGEST = 96
SAMPLES = 6
BATCH = 32
LEARNING_RATE = 1e-3

CARD = """\
---
license: apache-2.0
library_name: transformers
tags: [stablerank, arithmetic, reward-model]
---

# A reward model for chains of arithmetic

A sequence classifier with one output: the body of `{body}`, trained on {pairs} pairs by
`python benchmarks/train_pair_model.py --seed {seed}`. A pair is a right and a wrong rollout of `{body}`
(temperature 1) on one of {problems} problems of `stablerank.tasks.arithmetic`, train split, the pairs closest in length
first; right by the boxed answer alone. Nobody labelled anything, and no data of others is in it. It knows nothing but
this task: a learned control for studies, not a judge.

Text: prompt, response, end token, as TRL's RewardTrainer joins them.

Pair accuracy on {validation} problems of the validation split, 95 % intervals by problem (wrong rollouts of
this student leave steps out, so length alone tells much):

| pairs | this model | the longer one |
|---|---|---|
| all | {all_model} | {all_longer} |
| of equally long texts | {matched_model} | one half by definition |
"""


@dataclass(frozen=True)
class Pair:
    """A right and a wrong rollout of one problem."""

    prompt: str
    right: str
    wrong: str


def rolled_out(split: Split, count: int, seed: int) -> list[list[Pair]]:
    """Every pair of right and wrong rollouts, problem by problem; problems with only one kind give none."""
    model = AutoModelForCausalLM.from_pretrained(resolve(BODY))
    tokenizer = AutoTokenizer.from_pretrained(resolve(BODY))
    asked = problems(split, count, seed=seed)
    ids_of = fitting_ids(
        tokenizer, [problem.prompt for problem in asked], LONGEST, model.config.max_position_embeddings
    )
    sampling = Sampling(SAMPLES, seed=seed)
    rollouts = completions_of(
        model, tokenizer, ids_of, sampling, numbers=range(count), max_new_tokens=LONGEST, batch_size=512
    )
    found = []
    for problem, completions in zip(asked, rollouts, strict=True):
        texts = sorted({completion.text for completion in completions if not completion.truncated})
        is_right = {text: text.rpartition("\n")[2] == boxed(problem.answer) for text in texts}
        rights, wrongs = ([text for text in texts if is_right[text] is kind] for kind in (True, False))
        found.append([Pair(problem.prompt, *both) for both in itertools.product(rights, wrongs)])
    return found


def closest(pairs: Sequence[Pair], count: int, rng: random.Random) -> list[Pair]:
    """The pairs that differ least in length, drawn by lot among equals."""
    shuffled = rng.sample(pairs, len(pairs))
    return sorted(shuffled, key=lambda pair: abs(len(pair.right) - len(pair.wrong)))[:count]


def train(pairs: Sequence[Pair], folder: Path, epochs: int, seed: int) -> None:
    """Train on the pairs and write model and tokenizer."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(resolve(BODY), num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(resolve(BODY))
    rows = [{"prompt": pair.prompt, "chosen": pair.right, "rejected": pair.wrong} for pair in pairs]
    with TemporaryDirectory() as scratch:
        config = RewardConfig(
            output_dir=scratch,
            per_device_train_batch_size=BATCH,
            num_train_epochs=epochs,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            logging_steps=20,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            seed=seed,
        )
        trainer = RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- measured -----------------------------------------------------------------------------------------------------


def measured(folder: Path, held_out: Sequence[Sequence[Pair]]) -> dict[str, Interval]:
    """Pair accuracy of the model and of the longer rollout, over all pairs and the length-matched ones."""
    scorer = load_reward_model(str(folder), "pair_model")
    texts = sorted({(pair.prompt, text) for pairs in held_out for pair in pairs for text in (pair.right, pair.wrong)})
    table = scorer.score([Answer(*text) for text in texts])
    reward = dict(zip(texts, table.column("pair_model").tolist(), strict=True))

    def by_model(pair: Pair) -> float:
        return win(reward[pair.prompt, pair.right] - reward[pair.prompt, pair.wrong])

    matched = [[pair for pair in pairs if len(pair.right) == len(pair.wrong)] for pairs in held_out]
    return {
        "all_model": accuracy(held_out, by_model),
        "all_longer": accuracy(held_out, lambda pair: win(len(pair.right) - len(pair.wrong))),
        "matched_model": accuracy(matched, by_model),
    }


def win(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def accuracy(pairs_of: Sequence[Sequence[Pair]], wins: Callable[[Pair], float]) -> Interval:
    """A mean over problems of the mean over a problem's pairs."""
    return mean_interval([float(np.mean([wins(pair) for pair in pairs])) for pairs in pairs_of if pairs])


def spelled(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pair-model"), help="folder that does not exist yet")
    parser.add_argument("--problems", type=int, default=1500, help="of the train split")
    parser.add_argument("--validation", type=int, default=300, help="problems of the validation split")
    parser.add_argument("--per-problem", type=int, default=3, help="training pairs of a problem, at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with whole_folder(arguments.out) as folder:
        start = time.perf_counter()
        of_problems = rolled_out("train", arguments.problems, arguments.seed)
        pairs = [pair for found in of_problems for pair in closest(found, arguments.per_problem, rng)]
        rolled = time.perf_counter()
        train(pairs, folder, arguments.epochs, arguments.seed)
        trained = time.perf_counter()
        found = measured(folder, rolled_out("validation", arguments.validation, arguments.seed))
        seconds = {"rollouts": rolled - start, "training": trained - rolled, "whole": time.perf_counter() - start}
        numbers: dict[str, Any] = {name: spelled(interval) for name, interval in found.items()}
        (folder / "README.md").write_text(
            CARD.format(
                body=BODY,
                pairs=len(pairs),
                problems=arguments.problems,
                validation=arguments.validation,
                seed=arguments.seed,
                **numbers,
            )
        )
    print_table(
        f"Pair accuracy, {len(pairs)} training pairs, {seconds['whole']:.0f} s",
        ["pairs", "problems", "accuracy"],
        [[name, str(interval.problems), spelled(interval)] for name, interval in found.items()],
    )
    settings = {"body": BODY, "samples": SAMPLES, "batch": BATCH, "learning_rate": LEARNING_RATE}
    settings |= {name: value for name, value in vars(arguments).items() if name != "out"}
    accuracies = {name: vars(interval) for name, interval in found.items()}
    write_results("pair_model", settings, {"pairs": len(pairs), "accuracy": accuracies, "seconds": seconds})


if __name__ == "__main__":
    main()
