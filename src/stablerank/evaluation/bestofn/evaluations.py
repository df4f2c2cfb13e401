"""Pools from the folder of an evaluation of ours: its sampled answers, and its greedy ones beside them.

The judge was asked when the answers were drawn; an answer is right when its reward reaches the evaluation's
``pass_reward``. Prompts that were messages are stored as JSON and become messages again.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stablerank.errors import DataError
from stablerank.evaluation.bestofn.keys import final_answers
from stablerank.evaluation.bestofn.pools import Pool, Problem, merged
from stablerank.evaluation.folder import META, EvaluationFolder
from stablerank.rewards.rollout import Prompt


def is_evaluation(path: Path) -> bool:
    """Whether a folder is an evaluation's."""
    return (path / META).is_file()


def evaluation_pool(path: Path) -> Pool:
    """The sampled answers in the folder of a finished `stablerank evaluate --out`.

    Raises:
        DataError: the folder is unfinished, damaged or without answers.
    """
    try:
        found = json.loads((path / META).read_text(encoding="utf-8"))
        folder = EvaluationFolder(path)
        sampled, greedy = (folder.pool("model", decoding).rows() for decoding in ("sampled", "greedy"))
        bar, name = float(found.get("pass_reward", 1.0)), str(found["settings"]["model"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as an evaluation ({type(error).__name__}); give a folder of `stablerank evaluate`."
        ) from error
    if not found.get("complete") or not sampled:
        raise DataError(f"{path} holds no finished evaluation with answers; run the same `stablerank evaluate` again.")
    alone = {row["problem"]: _passes(row["rewards"][0], bar) for row in greedy}
    rows = sorted(sampled, key=lambda row: row["problem"])
    return Pool(name, merged(_problem(row, bar, alone.get(row["problem"])) for row in rows))


def _problem(row: Mapping[str, Any], bar: float, greedy: float | None) -> Problem:
    return Problem(
        prompt=_prompt(row["prompt"]),
        responses=tuple(row["completions"]),
        right_M=tuple(_passes(reward, bar) for reward in row["rewards"]),
        keys=final_answers(row["completions"], row["answer"]),
        tokens=tuple(row["tokens"]),
        greedy=greedy,
    )


def _passes(reward: float | None, bar: float) -> float:
    return math.nan if reward is None or math.isnan(reward) else float(reward >= bar)


def _prompt(text: str) -> Prompt:
    """Messages where the text is a JSON list of them."""
    if not text.startswith("[{"):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return text
    is_chat = all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in found)
    return found if is_chat else text
