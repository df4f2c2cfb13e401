"""A user's own judge of steps: ``file.py:function``, where a rule can tell a right step from a wrong one.

Contract: ``def function(questions, steps) -> list[list[float | None]]`` gets the question and the texts of the steps of
each completion, and returns for each step a number in 0..1, or None where it cannot tell. Segmentation, deposits and
credit are those of every process reward (reward.py), which also refuses a wrong count and what is no probability.

Left out on purpose: dataset columns beside the question; a reward that needs the gold answer is one of trajectories.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from stablerank.errors import RewardError
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Reward
from stablerank.rewards.process.reward import ProcessReward
from stablerank.rewards.process.scoring import Score
from stablerank.rewards.process.segmentation import Segmenter
from stablerank.rewards.python import load_function


class PythonSteps:
    """The function of ``ref`` as a `StepScorer`; its file is run once, here.

    Raises RewardError for a file or function that is missing or fails.
    """

    cost = ""

    def __init__(self, ref: str) -> None:
        self.ref = ref
        _, self._function = load_function(ref)

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[list[Score]]:
        """See `StepScorer.score`. Raises RewardError where the function raises or gives no list a completion."""
        try:
            returned = self._function(list(questions), [list(parts) for parts in steps])
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise RewardError(f"the judge of steps {self.ref} raised {reason}; mend it") from error
        if not isinstance(returned, list) or len(returned) != len(questions):
            raise RewardError(
                f"the judge of steps {self.ref} returned {_what(returned)} for {len(questions)} completions; return a "
                "list with one list of numbers for each"
            )
        return [self._numbers(scores, at) for at, scores in enumerate(returned)]

    def _numbers(self, scores: Any, at: int) -> list[Score]:
        if not isinstance(scores, list) or not all(score is None or isinstance(score, int | float) for score in scores):
            raise RewardError(
                f"the judge of steps {self.ref} returned {scores!r:.60} for completion {at}; return a list with a "
                "number in 0..1, or None, for each step"
            )
        return [None if score is None else float(score) for score in scores]


def _what(returned: Any) -> str:
    return f"{len(returned)} lists" if isinstance(returned, list) else f"a {type(returned).__name__}"


class PythonStepsSpec(RewardSpecBase):
    """Your own judge of steps, on the token that closes each step."""

    kind: Literal["python_steps"] = "python_steps"
    ref: str = Field(pattern=r"^.+\.py:[A-Za-z_]\w*$", description="path/to/file.py:function")
    separator: str = Field(default="\n", min_length=1, description="what ends a step in the policy's text")
    question_column: str | None = Field(
        default=None, min_length=1, description="dataset column with the bare question, where the prompt holds more"
    )

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; runs the file, and raises RewardError when that fails."""
        return ProcessReward(PythonSteps(self.ref), Segmenter(tokenizer, self.separator), self.question_column)
