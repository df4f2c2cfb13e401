"""Pools from files: JSON lines, JSON, CSV, Parquet or a hub data set, in one of two shapes.

::

    prompt, responses [..], correct [..]        one row a prompt; optional lists: keys, tokens
    prompt, response, correct                   one row an answer; optional: key, tokens

Where ``correct`` is missing, ``answer`` holds the gold answer and ``math_verify`` judges. ``correct`` is true or false,
or 1 or 0; null means that nobody can tell. ``keys`` are final answers for the majority vote; without them
they are read off the responses (keys.py). Rows with one prompt are one problem.

Left out on purpose: prompts of several messages; an evaluation's folder holds those (evaluations.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.keys import final_answers
from stablerank.evaluation.bestofn.pools import Pool, Problem, merged
from stablerank.rewards.outcome import MathVerifyReward
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.tasks.files import load_rows

Progress = Callable[[int, int, str], None]
GSM8K = "gsm8k_solutions"
_GSM8K_FILE = "data:gsm8k_example_model_solutions.jsonl.gz"
_SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
_ONE_SIDED = "answers all right or all wrong"


def recorded_pool(path: str, columns: Mapping[str, str] | None = None, progress: Progress | None = None) -> Pool:
    """The pool in a file or hub data set.

    Args:
        path: what `tasks.files.load_rows` reads, ``data:NAME`` included.
        columns: our name of a column to the file's.
        progress: told ``(answers judged, answers in all, what)`` where gold answers are compared.

    Raises:
        DataError: a column is missing, or holds something else than the shapes of the module header.
    """
    rows = [_wide(row, f"{path} row {number}") for number, row in enumerate(load_rows(path, dict(columns or {}), None))]
    reward, done, total = MathVerifyReward(), 0, sum(len(row["responses"]) for row in rows)
    problems = []
    for row in rows:
        right_M = _judged(row, reward) if row["correct"] is None else row["correct"]
        keys = row["keys"] or final_answers(row["responses"], row["answer"])
        problems.append(Problem(row["prompt"], row["responses"], right_M, keys, row["tokens"]))
        done += len(row["responses"])
        if progress is not None:
            progress(done, total, "judging")
    return Pool(path, merged(problems))


def gsm8k_solutions(problems: int | None = None) -> Pool:
    """Four recorded solutions of each GSM8K test question, where some are right and some are wrong: 731 questions.

    Calculator notes such as ``<<2+3=5>>`` stay in the texts, as they were generated. Source: openai/grade-school-math,
    Cobbe et al. 2021 (arXiv 2110.14168).

    Raises:
        DataError: the data folder does not hold the file.
    """
    rows = load_rows(_GSM8K_FILE, {"prompt": "question"}, None)
    pools = [_gsm8k_problem(row) for row in rows]
    mixed = [problem for problem in pools if 0 < sum(problem.right_M) < len(problem.right_M)]
    return Pool(GSM8K, tuple(mixed[:problems]), {_ONE_SIDED: len(pools) - len(mixed)})


def _gsm8k_problem(row: Mapping[str, Any]) -> Problem:
    texts = tuple(row[solver]["solution"] for solver in _SOLVERS)
    right_M = tuple(float(row[solver]["is_correct"]) for solver in _SOLVERS)
    return Problem(row["prompt"], texts, right_M, final_answers(texts, None))


def _wide(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """One row as lists of one length, whichever of the two shapes it has."""
    is_long = "responses" not in row
    if is_long and "response" not in row:
        there = ", ".join(row)
        raise DataError(f"{place} has neither `responses` nor `response` (columns: {there}); name one with `--column`.")
    if "correct" not in row and row.get("answer") is None:
        raise DataError(f"{place} has neither `correct` nor a gold `answer`; add one, so that answers can be judged.")
    names = ("response", "correct", "key", "tokens") if is_long else ("responses", "correct", "keys", "tokens")
    found = [_listed(row.get(name), is_long, f"{place}, column {name!r}") for name in names]
    responses, correct, keys, tokens = found
    if not responses or any(not isinstance(text, str | None) for text in responses):
        raise DataError(f"{place}: {names[0]!r} is {row[names[0]]!r:.60}, not text; give answers as text.")
    if any(column is not None and len(column) != len(responses) for column in found):
        raise DataError(f"{place} has {len(responses)} responses, but another column has another length; mend the row.")
    return {
        "prompt": row["prompt"],
        "answer": None if row.get("answer") is None else str(row["answer"]),
        "responses": tuple(responses),
        "correct": None if correct is None else tuple(_verdict(value, place) for value in correct),
        "keys": None if keys is None else tuple("" if key is None else str(key) for key in keys),
        "tokens": None if tokens is None or None in tokens else tuple(map(int, tokens)),
    }


def _listed(value: Any, is_long: bool, place: str) -> Sequence[Any] | None:
    if value is None:
        return None
    if is_long:
        return [value]
    if not isinstance(value, list):
        raise DataError(f"{place} is {value!r:.60}, not a list with one entry a response; mend the row.")
    return value


def _verdict(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    if value not in (0, 1):
        raise DataError(f"{place}: `correct` is {value!r:.60}, neither true nor false; mend the row.")
    return float(value)


def _judged(row: Mapping[str, Any], reward: MathVerifyReward) -> tuple[float, ...]:
    """By the gold answer; NaN where that is missing or cannot be read."""
    texts = [text or "" for text in row["responses"]]
    rollout = Rollout(
        prompts=[row["prompt"]] * len(texts),
        completions=texts,
        completion_ids=[()] * len(texts),
        completion_mask_NT=length_mask([0] * len(texts)),
        columns={"answer": [row["answer"]] * len(texts)},
    )
    return tuple(reward(rollout).trajectory_rewards_N.tolist())
