r"""Outcome reward: is the answer of a completion mathematically equal to the gold answer, by ``math_verify``?

The last balanced ``\boxed{...}`` of a completion is its answer; without one, ``math_verify`` looks for an answer in
the last 2,000 characters (LaTeX in ``$``, else the last number). The reward is 1.0 or 0.0. A completion without any
answer gets 0.0 and is counted, a gold answer that cannot be read makes its completions unscorable and is counted.

Cost: about 1 ms for a new (gold, answer) pair, microseconds for a known one; boxed answers repeat, because only the
box is the key. Time and memory of one answer are bounded (``verifier.py``).

Left out on purpose: partial credit, format rewards, answers in several boxes (``math_verify`` would merge them).
"""

import re
from functools import lru_cache
from typing import Any

from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout
from stablerank.rewards.verifier import Verdict, Verifier

READ_CHARACTERS = 2_000
REMEMBERED_VERDICTS = 2**14
_REWARD: dict[Verdict, float | None] = {"right": 1.0, "wrong": 0.0, "no_answer": 0.0, "undecided": 0.0, "no_gold": None}
_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


class MathVerifyReward(Reward):
    """1.0 where the completion's answer equals the gold answer in column ``answer_column``, else 0.0.

    The column holds bare answers: numbers, or LaTeX with or without ``$``. ``cpu_seconds`` bounds the time spent on one
    answer; one that takes longer is not right.

    Notes: ``parse_failures`` completions without a readable answer, ``unreadable_golds`` gold answers likewise (reward
    NaN), ``undecided`` answers that ran out of time or memory.
    """

    name = "math_verify"

    def __init__(self, answer_column: str = "answer", cpu_seconds: float = 2.0) -> None:
        self.answer_column = answer_column
        self._verdict = lru_cache(maxsize=REMEMBERED_VERDICTS)(Verifier(cpu_seconds).verdict)

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError if the data lacks the column."""
        golds = rollout.column(self.answer_column, self.name)
        pairs = zip(golds, rollout.completions, strict=True)
        verdicts = [self._verdict(_gold_text(gold), answer_text(completion)) for gold, completion in pairs]
        notes = {
            "parse_failures": verdicts.count("no_answer"),
            "unreadable_golds": verdicts.count("no_gold"),
            "undecided": verdicts.count("undecided"),
        }
        return trajectory_deposit([_REWARD[verdict] for verdict in verdicts], rollout.completion_mask_NT, notes)


def answer_text(completion: str) -> str:
    """The part of a completion that is judged: its last balanced box, else its end.

    A box longer than what is read is no answer: cut, it would be read as the number at its end.
    """
    open_braces: list[int | None] = []  # where a box began, None for any other brace
    box = ""
    for token in _BRACE.finditer(completion):
        if token[0].endswith("{") and token[0] != "\\{":
            open_braces.append(token.start() if token[0].startswith("\\") else None)
        elif token[0] == "}" and open_braces and (start := open_braces.pop()) is not None:
            box = completion[start : token.end()]
    if len(box) > READ_CHARACTERS:
        return ""
    return box or completion[-READ_CHARACTERS:]


def _gold_text(gold: Any) -> str:
    return "" if gold is None else str(gold).strip()
