"""What a score costs beside the forward pass it is read from: `python benchmarks/scorer_cost.py`.

Arms over the same batches, interleaved in an order that turns: the plain pass (the backbone alone, over token ids and
mask that are ready: no head, no states kept), and `score` from texts to numbers, tokens and templates included, for
stable rank alone, for the six spectral scores on one spectrum, and for these with the three token scores. A batch is
timed in every arm, and what is reported is the median over batches of the ratio to the plain pass, less one, with a
95 % bootstrap interval over batches. Times are the process's CPU seconds, so that other programs weigh little; torch
and the tokenizer work on one thread each, for CPU seconds would count the tokenizer's idle ones.

SmolLM2 reads LLMBar's responses in its chat template, the embedded student its own task's solutions.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import bootstrap_interval, print_table, write_results

SMOLLM2, STUDENT = "zoo:smollm2-135m-instruct", "zoo:arith-student"
GOALS = {SMOLLM2: 0.02, STUDENT: 0.15}
BATCHES = {SMOLLM2: 12, STUDENT: 40}
DTYPES = {SMOLLM2: ("float32", "bfloat16"), STUDENT: ("float32",)}
ROWS = {SMOLLM2: 4, STUDENT: 32}
SPECTRAL = ("stable_rank", "effective_rank", "participation_ratio", "pca95:center=false", "condition_number", "rankme")
ARMS = {
    "stable rank": SPECTRAL[:1],
    "six spectral scores": SPECTRAL,
    "all nine scores": (*SPECTRAL, "mean_logprob", "self_certainty", "token_entropy"),
}
PLAIN = "plain pass"


def answers_of(model: str, count: int) -> list[Any]:
    from stablerank.rewards.scorers.answers import Answer
    from stablerank.tasks.arithmetic import problems
    from stablerank.tasks.files import data_folder

    if model == STUDENT:
        return [Answer(problem.prompt, problem.solution) for problem in problems("validation", count)]
    lines = (data_folder() / "llmbar_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Answer(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")][:count]


def arms_of(model: str, dtype: str) -> tuple[dict[str, Any], str]:
    """A pass for each arm, all of one loaded model."""
    from stablerank.rewards.scorers.base_spec import Setting
    from stablerank.rewards.scorers.specs import parse, shared_pass
    from stablerank.rewards.scorers.templates import Layout

    template = "chat" if model == SMOLLM2 else "bare"
    setting = Setting(model, dtype, 2**20, Layout(template))
    return {arm: shared_pass({name: parse(name) for name in names}, setting) for arm, names in ARMS.items()}, template


def plain_pass(passing: Any, answers: Sequence[Any]) -> Callable[[], Any]:
    """The backbone over the batch that `score` makes of these answers."""
    rows = sorted({passing.encode(answer) for answer in answers}, key=lambda row: -len(row.ids))
    width = len(rows[0].ids)
    ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    backbone = passing.frozen.model.base_model

    @torch.no_grad()
    def run() -> Any:
        return backbone(input_ids=ids, attention_mask=mask, use_cache=False)

    return run


def seconds(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def measure(model: str, dtype: str, batches: int, rows: int) -> dict[str, Any]:
    passes, template = arms_of(model, dtype)
    answers = answers_of(model, batches * rows)
    taken: dict[str, list[float]] = {arm: [] for arm in (PLAIN, *ARMS)}
    for turn in range(-1, batches):  # the first round warms up
        batch = answers[max(turn, 0) * rows :][:rows]
        run = {PLAIN: plain_pass(passes["stable rank"], batch)}
        run |= {arm: partial(passing.score, batch) for arm, passing in passes.items()}
        order = list(run)
        for arm in order[turn % len(order) :] + order[: turn % len(order)]:
            spent = seconds(run[arm])
            if turn >= 0:
                taken[arm].append(spent)
    added = {arm: interval(taken[arm], taken[PLAIN]) for arm in ARMS}
    return {
        "model": model,
        "dtype": dtype,
        "template": template,
        "rows": rows,
        "seconds": taken,
        "added": added,
        "goal": GOALS[model],
        "passed": added["stable rank"]["value"] <= GOALS[model],
    }


def interval(arm: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    def added(arm_B: Any, plain_B: Any, axis: int = -1) -> Any:
        return np.median(arm_B / plain_B - 1, axis=axis)

    low, high = bootstrap_interval(added, arm, plain)
    return {"value": float(added(np.asarray(arm), np.asarray(plain))), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, help="batches a model, instead of 12 and 40")
    parser.add_argument("--models", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--dry", action="store_true", help="print, and write no file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cells = [(model, dtype) for model in chosen.models for dtype in DTYPES[model]]
    found = [measure(model, dtype, chosen.batches or BATCHES[model], ROWS[model]) for model, dtype in cells]
    rows = [
        [cell["model"], cell["dtype"], arm, *(f"{100 * added[part]:+.1f} %" for part in ("value", "low", "high"))]
        for cell in found
        for arm, added in cell["added"].items()
    ]
    print_table("added to the forward pass", ["model", "dtype", "scores", "median", "95 % low", "high"], rows)
    if not chosen.dry:
        write_results("scorer_cost", {"batches": chosen.batches or BATCHES}, {"cells": found})


if __name__ == "__main__":
    main()
