"""Do steps meet their tokens on real solutions, and what does the embedded PRM say of them?
`python benchmarks/process_alignment.py`.

Alignment: the 400 solutions of ProcessBench's GSM8K part, steps joined by blank lines, under several tokenizers. The
truth never comes from the code under test: for ids that a tokenizer chose for the whole text it is the offsets of that
encoding; for ids put together from pieces (each step and each line break encoded by itself, as a policy may sample them
but no encoder would) it is where the pieces were laid. A step counts as exact when its text and its closing token both
are. Each solution is also cut at a random token: what is found then must be the steps finished by then and no other.
Beside it, what matching the ids of the separator would find (gernim/lora-reward-density).

First wrong step: AUC of telling the first wrong step from the right ones, steps behind it left out. The embedded model
has learned chains of arithmetic and nothing else, in a context of 256 characters that few GSM8K inputs fit; it reads
them all here, far beyond that. Its AUC on GSM8K is a check of the path, not of the model; its own chains are the
positive control. The baselines rank later steps, or longer ones, as wrong. Intervals: percentile bootstrap over
solutions.
"""

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import print_table, write_results
from scipy.stats import rankdata
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from stablerank.rewards.process.math_shepherd import MathShepherd
from stablerank.rewards.process.scoring import Limits, limits
from stablerank.rewards.process.segmentation import Segmenter, Step
from stablerank.tasks.arithmetic import check_steps, problems
from stablerank.tasks.files import data_folder
from stablerank.zoo.resolve import resolve

SEPARATOR = "\n\n"
DRAWS = 1000
LIFTED_CONTEXT = 8192

Solution = dict[str, Any]
Asked = tuple[list[str], list[list[str]], list[int]]
"""Questions, steps, and the index of the first wrong step or -1."""
Truth = list[tuple[str, int]]


# --- alignment --------------------------------------------------------------------------------------------------


def tokenizers(solutions: Sequence[Solution]) -> dict[str, Any]:
    return {
        "one token a character (zoo:arith-prm)": AutoTokenizer.from_pretrained(resolve("zoo:arith-prm")),
        "SentencePiece-like, byte fallback (stories260K)": AutoTokenizer.from_pretrained(data_folder() / "stories260K"),
        "byte-level BPE (SmolLM2)": AutoTokenizer.from_pretrained(resolve("zoo:smollm2-135m-instruct")),
        "byte-level BPE that merges over line breaks": merging_bpe(solutions),
    }


def merging_bpe(solutions: Sequence[Solution]) -> PreTrainedTokenizerFast:
    """Trained on the text itself without splitting it first: tokens such as ``.\\n\\nNext, `` abound."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    core.train_from_iterator((SEPARATOR.join(row["steps"]) for row in solutions), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def encoded_whole(tokenizer: Any, steps: Sequence[str]) -> tuple[list[int], Truth]:
    encoded = tokenizer(SEPARATOR.join(steps), add_special_tokens=False, return_offsets_mapping=True)
    ends, truth, after = [end for _, end in encoded.offset_mapping], [], 0
    for step in steps[:-1]:
        after += len(step) + len(SEPARATOR)
        truth.append((step, next(at for at, end in enumerate(ends) if end >= after)))
    ids = [*encoded.input_ids, tokenizer.eos_token_id]
    return ids, [*truth, (steps[-1], len(ids) - 1)]


def encoded_in_pieces(tokenizer: Any, steps: Sequence[str]) -> tuple[list[int], Truth]:
    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    line_break = ids_of("\n")
    ids, truth = [], []
    for step in steps[:-1]:
        ids += [*ids_of(step), *line_break, *line_break[-1:]]
        truth.append((step, len(ids) - 1))
    ids += [*ids_of(steps[-1]), tokenizer.eos_token_id]
    return ids, [*truth, (steps[-1], len(ids) - 1)]


def spelled(tokenizer: Any, step: str) -> str:
    """The step as far as the tokenizer has tokens for it."""
    ids = tokenizer(step, add_special_tokens=False).input_ids
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def by_separator_ids(tokenizer: Any, ids: Sequence[int]) -> set[int]:
    """Closing tokens by matching the ids of the separator, the last piece being a step."""
    pattern = tokenizer(SEPARATOR, add_special_tokens=False).input_ids
    starts = range(len(ids) - len(pattern) + 1)
    return {at + len(pattern) - 1 for at in starts if list(ids[at : at + len(pattern)]) == pattern} | {len(ids) - 1}


def alignment(
    name: str, tokenizer: Any, solutions: Sequence[Solution], layout: Any, rng: random.Random
) -> dict[str, Any]:
    split = Segmenter(tokenizer, SEPARATOR)
    count = {"steps": 0, "exact": 0, "extra": 0, "cuts": 0, "cuts_exact": 0, "by_separator_ids": 0}
    for row in solutions:
        ids, truth = layout(tokenizer, [step.strip() for step in row["steps"]])
        wanted = [Step(spelled(tokenizer, text), closing) for text, closing in truth]
        found = split(ids).steps
        count["steps"] += len(wanted)
        count["exact"] += len(set(wanted) & set(found))
        count["extra"] += len(set(found) - set(wanted))
        cut = rng.randrange(len(ids))
        count["cuts"] += 1
        count["cuts_exact"] += split(ids[:cut]).steps == tuple(step for step in wanted if step.closing < cut)
        count["by_separator_ids"] += len(by_separator_ids(tokenizer, ids) & {closing for _, closing in truth})
    return {"tokenizer": name, "ids": layout.__name__.removeprefix("encoded_"), "solutions": len(solutions), **count}


# --- first wrong step -------------------------------------------------------------------------------------------


def judged(asked: Asked, context: int | None) -> np.ndarray:
    """Rows of (solution, step index, characters, P(right), is wrong) up to the first wrong step, scored ones only."""
    place = resolve("zoo:arith-prm")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    bounds = Limits(16, context) if context else limits(model, 16, None)
    questions, steps, first_wrong = asked
    scores = MathShepherd(model, AutoTokenizer.from_pretrained(place), bounds).score(questions, steps)
    rows = [
        (solution, index, len(parts[index]), given[index], index == wrong)
        for solution, (parts, given, wrong) in enumerate(zip(steps, scores, first_wrong, strict=True))
        for index in range(relevant(parts, wrong))
        if given[index] is not None
    ]
    return np.array(rows, float)


def relevant(steps: Sequence[str], first_wrong: int) -> int:
    """Steps up to the first wrong one (-1: none is)."""
    return len(steps) if first_wrong < 0 else first_wrong + 1


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Mann-Whitney probability that a wrong step outranks a right one, ties one half."""
    ranks, positives = rankdata(score), label.sum()
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives)))


def interval(score: np.ndarray, label: np.ndarray, members: Sequence[np.ndarray]) -> dict[str, float]:
    rng, draws = np.random.default_rng(0), []
    for _ in range(DRAWS):
        index = np.concatenate([members[at] for at in rng.integers(0, len(members), len(members))])
        draws.append(auc(score[index], label[index]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": auc(score, label), "low": float(low), "high": float(high)}


def first_wrong_step(data: str, asked: Asked, context: int | None) -> dict[str, Any]:
    solution, index, length, right, label = judged(asked, context).T
    label = label.astype(bool)
    members = [np.flatnonzero(solution == one) for one in np.unique(solution)]
    measured = {"embedded PRM": -right, "step index": index, "step length": length}
    return {
        "data": data,
        "steps": len(label),
        "steps_within_context": len(judged(asked, None)),
        "solutions": len(members),
        "wrong": int(label.sum()),
        "auc": {name: interval(score, label, members) for name, score in measured.items()},
    }


def chains(count: int) -> Asked:
    """Rollouts of the embedded student, labelled by the exact checker."""
    place = resolve("zoo:arith-student")
    student, tokenizer = AutoModelForCausalLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    asked, split = problems("validation", count, seed=6), Segmenter(tokenizer)
    prompts = [problem.prompt for problem in asked]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    torch.manual_seed(0)
    sampled = student.generate(**inputs, max_new_tokens=112, do_sample=True, temperature=1.0, top_k=0)
    questions, steps, first_wrong = [], [], []
    for problem, row in zip(asked, sampled[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
        found = split(row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row).steps
        texts = [step.text for step in found]
        verdicts = check_steps(problem, "\n".join(texts)) if texts else []
        questions.append(problem.question)
        steps.append(texts)
        first_wrong.append(verdicts.index(False) if False in verdicts else -1)
    return questions, steps, first_wrong


# --- report -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1000, help="rollouts of the positive control")
    arguments = parser.parse_args()
    solutions = json.loads(gzip.decompress((data_folder() / "processbench_gsm8k.json.gz").read_bytes()))
    rng = random.Random(0)
    aligned = [
        alignment(name, tokenizer, solutions, layout, rng)
        for name, tokenizer in tokenizers(solutions).items()
        for layout in (encoded_whole, encoded_in_pieces)
    ]
    gsm8k = (
        [row["problem"].strip() for row in solutions],
        [[step.strip() for step in row["steps"]] for row in solutions],
        [row["label"] for row in solutions],
    )
    found = [
        first_wrong_step("chains of arithmetic, the positive control", chains(arguments.chains), None),
        first_wrong_step("GSM8K (ProcessBench)", gsm8k, LIFTED_CONTEXT),
    ]
    print_table(
        "Steps aligned with their tokens",
        ["tokenizer", "ids", "exact", "extra", "cuts exact", "by separator ids"],
        [
            [
                row["tokenizer"],
                row["ids"],
                f"{row['exact']} of {row['steps']}",
                str(row["extra"]),
                f"{row['cuts_exact']} of {row['cuts']}",
                str(row["by_separator_ids"]),
            ]
            for row in aligned
        ],
    )
    print_table(
        "AUC of the first wrong step",
        ["data", "steps", "within context", *found[0]["auc"]],
        [
            [
                row["data"],
                str(row["steps"]),
                str(row["steps_within_context"]),
                *(f"{a['value']:.3f} ({a['low']:.3f} to {a['high']:.3f})" for a in row["auc"].values()),
            ]
            for row in found
        ],
    )
    settings = {"separator": SEPARATOR, "bootstrap_draws": DRAWS, "lifted_context": LIFTED_CONTEXT, **vars(arguments)}
    write_results("process_alignment", settings, {"alignment": aligned, "first_wrong_step": found})


if __name__ == "__main__":
    main()
