"""P(Yes): is this response right? asked in words that depend on the kind of task.

``e^{l_Yes} / (e^{l_Yes} + e^{l_No})`` at the first position of the judge's answer, a word's logit taken over its
spellings with and without a space (IPO, Garg et al. 2025, as a baseline of arXiv 2512.02807). The
questions of the four categories are in judge_prompts.py, and a subset's name chooses among them (`category_of`).

A question that exceeds the judge's context is not cut: NaN with the status ``outside_window``.

Numerics: the quotient is a logistic function of the difference of two fp32 logits, in fp64: exact to rounding at either
end, where it may reach 0 or 1 and then ties. It moves with the batch by less than 1e-4 in fp32 (judge_model.py).

Left out on purpose: calibration, and probabilities relative to the whole vocabulary.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from stablerank.rewards.scorers.answers import Answer, Scores
from stablerank.rewards.scorers.base_spec import ScorerSpec, Setting
from stablerank.rewards.scorers.judge_model import JudgeModel, choice
from stablerank.rewards.scorers.judge_prompts import Category, category_of
from stablerank.rewards.scorers.rows import Row, table_of

YES_OR_NO = ("Yes", "No")


class IPOJudge:
    """A scorer: the judge's probability of Yes (module header).

    ``category`` asks the same of every answer; without it the subset's name decides, or ``chat`` where there is none.
    """

    def __init__(self, judge: JudgeModel, category: Category | None = None, name: str = "judge_ipo") -> None:
        self.names: tuple[str, ...] = (name,)
        self._judge, self._category = judge, category
        self._words = choice(judge.tokenizer, YES_OR_NO)

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`."""

        def row_of(at: int) -> Row | None:
            answer = answers[at]
            category = self._category or category_of(answer.subset)
            question = self._judge.questions.yes_or_no(answer.prompt, answer.response, category)
            return self._judge.row(question, self._words.forced, room=1)

        return table_of(self.names, answers, self._judge.tokenizer, row_of, self._probabilities)

    def _probabilities(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        yes_N, no_N = self._judge.logits(rows, self._words).T
        return expit(yes_N - no_N)[:, None]


class JudgeIPOSpec(ScorerSpec):
    """The judge's probability that the response is right."""

    kind: Literal["judge_ipo"]
    model: str | None = Field(default=None, min_length=1, description="the judge; unset: the shared model")
    category: Category | None = Field(default=None, description="what is asked; unset: by the name of the subset")

    def build(self, setting: Setting, name: str) -> IPOJudge:
        """The judge; loads its model unless it is the shared one."""
        judge = JudgeModel(setting.frozen(self.model, name), setting.batch_tokens)
        return IPOJudge(judge, self.category, name)
