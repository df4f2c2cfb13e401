r"""Reward of the ``gym`` problems: does `reasoning-gym`'s own scorer give the completion's answer its full score?

1.0 or 0.0: many scorers pay a little for a wrong answer or for one inside more words, which a policy would learn to
collect. The answer of a completion is the last balanced ``\boxed{...}``, else the last ``<answer>...</answer>``, else,
where the right answer is a number, the last number, else the last line that is not blank; of its last 2,000 characters.

Cost: under a millisecond for most tasks; time and memory of one answer are bounded (``gym_scores.py``).

Left out on purpose: partial credit; tasks whose scorer runs the answer as code (`EVALUATED`).
"""

import json
import re
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from stablerank.errors import RewardError
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.gym_scores import EVALUATED
from stablerank.rewards.outcome import READ_CHARACTERS, REMEMBERED_VERDICTS, answer_text
from stablerank.rewards.rollout import Rollout
from stablerank.rewards.verifier import Verdict, Verifier

_REWARD: dict[Verdict, float | None] = {"right": 1.0, "wrong": 0.0, "no_answer": 0.0, "undecided": 0.0, "no_gold": None}
_WORKER, _REMEDY = "stablerank.rewards.gym_scores", "try `pip install 'stablerank[tasks]'`"
_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\d(?:[\d,]*\d)?(?:\.\d+)?")


class GymReward(Reward):
    """1.0 where the task's scorer gives the answer its full score, else 0.0.

    ``metadata_column`` is that of the rows of ``data.kind=gym``. ``cpu_seconds`` bounds the time spent on one answer.

    Notes: ``parse_failures`` completions without an answer, ``unreadable_golds`` rows whose metadata say nothing
    (reward NaN), ``undecided`` answers that ran out of time or memory.
    """

    name = "gym"

    def __init__(self, metadata_column: str = "metadata", cpu_seconds: float = 2.0) -> None:
        self.metadata_column = metadata_column
        self._verdict = lru_cache(maxsize=REMEMBERED_VERDICTS)(Verifier(cpu_seconds, _WORKER, _REMEDY).verdict)

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError if the data lacks the column or the task cannot be scored."""
        scored = [str(value or "") for value in rollout.column(self.metadata_column, self.name)]
        verdicts = [self._judged(row, text) for row, text in zip(scored, rollout.completions, strict=True)]
        notes = {
            "parse_failures": verdicts.count("no_answer"),
            "unreadable_golds": verdicts.count("no_gold"),
            "undecided": verdicts.count("undecided"),
        }
        return trajectory_deposit([_REWARD[verdict] for verdict in verdicts], rollout.completion_mask_NT, notes)

    def _judged(self, scored: str, completion: str) -> Verdict:
        gold = _gold(scored)
        answer = "" if gold is None else final_answer(completion, gold)
        if gold is not None and not answer:
            return "no_answer"
        return self._verdict(scored, answer)


class GymSpec(RewardSpecBase):
    """1.0 for the full score of the problem's own scorer, else 0.0; for ``data.kind=gym``."""

    judges: ClassVar[bool] = True

    kind: Literal["gym"] = "gym"
    metadata_column: str = Field(default="metadata", min_length=1, description="column with what the scorer needs")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded before its first call."""
        return GymReward(self.metadata_column)


def final_answer(completion: str, gold: str) -> str:
    """The part of a completion that is scored, empty if there is none; ``gold`` says whether it is a number."""
    end = answer_text(completion)
    if end.startswith("\\boxed"):
        return end[end.index("{") + 1 : -1].strip(" $")
    end = completion[-READ_CHARACTERS:]
    before, tag, _ = end.rpartition("</answer>")
    if tag and "<answer>" in before:
        return before.rpartition("<answer>")[2].strip()
    if _NUMBER.fullmatch(gold):
        numbers = _NUMBER.findall(end)
        return numbers[-1].replace(",", "") if numbers else ""
    return end.rstrip().rpartition("\n")[2].strip()


@lru_cache(maxsize=4096)
def _gold(scored: str) -> str | None:
    """The gold answer within a row's metadata, empty where many are right, None if nothing can be read."""
    try:
        row = json.loads(scored)
        task, answer = row["task"], row["entry"]["answer"]
    except (ValueError, TypeError, KeyError):
        return None
    if task in EVALUATED:
        raise RewardError(
            f"the scorer of the gym task {task!r} runs the model's text as code, so the reward gym refuses it; "
            "choose another data.task"
        )
    return "" if answer is None else str(answer)
