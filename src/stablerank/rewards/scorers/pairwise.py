"""Which of two responses is better? A judge that compares, asked in both orders.

A scorer gives one response a number; this judge gives a pair an answer, so it has a contract of its own. Both responses
are shown twice, as A and as B, and the log-odds of the letters are read at the first position of the judge's answer,
without generation. Two ways to count:

- ``winner``: only where both orders name the same response, as the paper's baseline counts it (arXiv 2512.02807; after
  arXiv 2306.05685). Orders that disagree, or even odds, name nobody. A judge that prefers a *place* never wins.
- ``margin``: the mean of both log-odds, in which a constant preference for a place cancels.

Contract: swapping the responses swaps the orders and flips ``margin`` to the bit; equal responses have ``margin`` 0.

A pair that cannot be judged has the status of the response that stands in the way, and NaN for odds.

Numerics: see judge_model.py; log-odds move with the batch by less than 1e-4 of the largest logit in fp32.

Left out on purpose: ties as a third letter, feedback before the letter, more than two responses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stablerank.rewards.rollout import Prompt
from stablerank.rewards.scorers.answers import Answer, Status
from stablerank.rewards.scorers.base_spec import Setting
from stablerank.rewards.scorers.judge_model import JudgeModel, choice
from stablerank.rewards.scorers.rows import Row
from stablerank.rewards.scorers.templates import readable

LETTERS = ("A", "B")


@dataclass(frozen=True)
class Comparison:
    """Natural log-odds that ``a`` is better than ``b``, NaN unless ``status`` is ``scored``."""

    a_first: float
    """Where ``a`` stands as A."""
    b_first: float
    """Where ``a`` stands as B."""
    status: Status = "scored"

    @property
    def margin(self) -> float:
        """The mean over both orders: above 0 for ``a``."""
        return (self.a_first + self.b_first) / 2

    @property
    def winner(self) -> Literal["a", "b"] | None:
        """The response that both orders prefer; None where they do not agree, or nothing was judged."""
        if self.a_first > 0 and self.b_first > 0:
            return "a"
        return "b" if self.a_first < 0 and self.b_first < 0 else None


class PairJudge:
    """Compares responses to one prompt (module header)."""

    def __init__(self, judge: JudgeModel, name: str = "judge_pairwise") -> None:
        self.name = name
        self._judge = judge
        self._letters = choice(judge.tokenizer, LETTERS)

    def compare(self, prompt: Prompt, a: str, b: str) -> Comparison:
        """One pair."""
        return self.compare_all([(prompt, a, b)])[0]

    def compare_all(self, pairs: Sequence[tuple[Prompt, str, str]]) -> list[Comparison]:
        """Every pair ``(prompt, a, b)``, in order."""
        statuses = [_status(pair) for pair in pairs]
        readable_pairs = zip(pairs, statuses, strict=True)
        orders = [self._orders(pair) if status == "scored" else None for pair, status in readable_pairs]
        rows = [row for order in orders if order for row in order]
        odds = dict(zip(rows, self._log_odds(rows), strict=True))
        return [_comparison(order, status, odds) for order, status in zip(orders, statuses, strict=True)]

    def _orders(self, pair: tuple[Prompt, str, str]) -> tuple[Row, Row] | None:
        """The two questions, None where one exceeds the judge's context."""
        prompt, a, b = pair
        questions = (self._judge.questions.pairwise(prompt, *order) for order in ((a, b), (b, a)))
        first, second = (self._judge.row(question, self._letters.forced, room=1) for question in questions)
        return None if first is None or second is None else (first, second)

    def _log_odds(self, rows: Sequence[Row]) -> list[float]:
        """Of A over B, a row."""
        if not rows:
            return []
        a_N, b_N = self._judge.logits(rows, self._letters).T
        return (a_N - b_N).tolist()


def _status(pair: tuple[Prompt, str, str]) -> Status:
    prompt, *responses = pair
    return next((answer for text in responses if (answer := readable(Answer(prompt, text))) != "scored"), "scored")


def _comparison(order: tuple[Row, Row] | None, status: Status, odds: dict[Row, float]) -> Comparison:
    if order is None:
        return Comparison(math.nan, math.nan, "outside_window" if status == "scored" else status)
    a_first, b_first = odds[order[0]], -odds[order[1]]
    finite = math.isfinite(a_first) and math.isfinite(b_first)
    return Comparison(a_first, b_first) if finite else Comparison(math.nan, math.nan, "undefined")


class JudgePairwiseSpec(BaseModel):
    """A judge of pairs, in both orders."""

    kind: Literal["judge_pairwise"]
    model: str | None = Field(default=None, min_length=1, description="the judge; unset: the shared model")

    model_config = ConfigDict(extra="forbid", frozen=True)

    def build(self, setting: Setting, name: str) -> PairJudge:
        """The judge; loads its model unless it is the shared one."""
        judge = JudgeModel(setting.frozen(self.model, name), setting.batch_tokens)
        return PairJudge(judge, name)
