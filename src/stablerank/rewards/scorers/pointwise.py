r"""A grade from 1 to 5 for one response, by a rubric in a prompt.

Two forms of one question:

- ``logits`` (the default): the answer's beginning ``[RESULT] `` is forced, and the score is the expected grade
  ``sum_n n p_n``, p the softmax over the logits of the five digits. One forward pass, no generation, hardly any ties;
  p says nothing of what the model would rather have written than a digit.
- ``generate``: Prometheus 2's form (arXiv 2405.01535) and the paper's baseline. The judge writes feedback and
  ``[RESULT] n``, greedily, up to ``max_new_tokens``; the score is n. Many ties, and some parse failures: no result, one
  that is no whole number from 1 to 5, or several that differ. These are NaN with the status ``undefined``, so that they
  are counted and never read as a low grade.

A question that exceeds the judge's context is not cut: NaN with the status ``outside_window``.

Numerics: see judge_model.py; an expected grade moves with the batch by less than 1e-4 in fp32.

Left out on purpose: averages over several sampled judgements.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax

from stablerank.rewards.scorers.answers import Answer, Scores
from stablerank.rewards.scorers.base_spec import ScorerSpec, Setting
from stablerank.rewards.scorers.judge_model import JudgeModel, choice
from stablerank.rewards.scorers.judge_prompts import RESULT
from stablerank.rewards.scorers.rows import Row, table_of

Form = Literal["logits", "generate"]

GRADES = ("1", "2", "3", "4", "5")

_RESULT = re.compile(re.escape(RESULT) + r"[\s:(*_]{0,8}(-?\d[\d.,]*)(?:\s?/\s?(\d+))?")


def grade_of(text: str) -> int | None:
    """The grade in a judge's answer: what stands behind ``[RESULT]``, also as ``n/5``; None where there is not one."""
    found = {_grade(match[1].rstrip(".,"), match[2]) for match in _RESULT.finditer(text)}
    return found.pop() if len(found) == 1 else None


def _grade(number: str, scale: str | None) -> int | None:
    return int(number) if number in GRADES and scale in (None, GRADES[-1]) else None


class PointwiseJudge:
    """A scorer: the judge's grade of each answer (module header)."""

    def __init__(
        self, judge: JudgeModel, form: Form = "logits", max_new_tokens: int = 256, name: str = "judge_pointwise"
    ) -> None:
        self.names: tuple[str, ...] = (name,)
        self._judge, self._form, self._max_new_tokens = judge, form, max_new_tokens
        self._digits = choice(judge.tokenizer, GRADES, lead=f"{RESULT} ")

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`; ``undefined`` counts the parse failures."""
        return table_of(self.names, answers, self._judge.tokenizer, lambda at: self._row(answers[at]), self._grades)

    def _row(self, answer: Answer) -> Row | None:
        question = self._judge.questions.pointwise(answer.prompt, answer.response, self._form)
        if self._form == "logits":
            return self._judge.row(question, self._digits.forced, room=1)
        return self._judge.row(question, room=self._max_new_tokens)

    def _grades(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        if self._form == "logits":
            return softmax(self._judge.logits(rows, self._digits), axis=1) @ np.arange(1.0, 6.0)[:, None]
        grades = map(grade_of, self._judge.answers(rows, self._max_new_tokens))
        return np.array([[math.nan if grade is None else grade] for grade in grades])


class JudgePointwiseSpec(ScorerSpec):
    """The judge's grade from 1 to 5."""

    kind: Literal["judge_pointwise"]
    model: str | None = Field(default=None, min_length=1, description="the judge; unset: the shared model")
    form: Form = Field(default="logits", description="expected grade from the digits' logits, or `generate`")
    max_new_tokens: int = Field(default=256, ge=1, description="of feedback and grade, with `generate`")

    def build(self, setting: Setting, name: str) -> PointwiseJudge:
        """The judge; loads its model unless it is the shared one."""
        judge = JudgeModel(setting.frozen(self.model, name), setting.batch_tokens)
        return PointwiseJudge(judge, self.form, self.max_new_tokens, name)
