"""Process reward: what a process reward model says of each step, on the token that closes the step.

Contract: the deposit of a step is P(step right), in 0..1, on the token that made the step final (segmentation.py). A
completion's trajectory reward is the mean over its scored steps, which pays for right steps and not for many. Without a
scored step it is 0 for a completion that said nothing, and NaN (not scorable) for one that was cut or that the model
could not read. Scores and steps are matched one to one, or it is an error: a score never lands on another step.

Source: DeepSeekMath (arXiv 2402.03300) 4.1.3 for step rewards; the credit rules decide what they do.

Left out on purpose: the text in ``rollout.completions``, which need not be what the ids spell; products and minima of
the scores; completions that a tool wrote in part.
"""

import math
from collections.abc import Sequence
from itertools import chain

import torch

from stablerank.errors import RewardError
from stablerank.rewards.deposits import Deposit, Reward
from stablerank.rewards.process.scoring import Score, StepScorer
from stablerank.rewards.process.segmentation import Segmented, Segmenter
from stablerank.rewards.rollout import Prompt, Rollout


class ProcessReward(Reward):
    """P(step right) of ``scorer`` on the closing token of each step that ``segmenter`` finds.

    The question is the prompt, of chat messages the last user's, or the dataset column ``question_column``.

    Notes: ``steps`` scored; ``truncated_steps`` that the length limit cut, so unfinished and unscored;
    ``empty_completions`` without any step, finished or not; ``over_long_inputs`` completions with steps beyond what the
    model reads, and ``unscored_steps``, how many these were.
    """

    name = "process"
    density = "step"

    def __init__(self, scorer: StepScorer, segmenter: Segmenter, question_column: str | None = None) -> None:
        self.own_forward = f"the process reward model, on ids of its own: {scorer.cost}" if scorer.cost else ""
        self._scorer, self._segment, self._question_column = scorer, segmenter, question_column

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion.

        Raises:
            RewardError: a score that is no probability or has no step, a prompt without a user's message, or a column
                that the data lacks.
        """
        segmented = [self._segment(ids) for ids in rollout.completion_ids]
        scores = self._scores(rollout, segmented)
        rewards_NT = torch.zeros(rollout.completion_mask_NT.shape)
        deposited_NT = torch.zeros(rollout.completion_mask_NT.shape, dtype=torch.bool)
        means = []
        for row, (found, given) in enumerate(zip(segmented, scores, strict=True)):
            scored = {step.closing: p for step, p in zip(found.steps, given, strict=True) if p is not None}
            rewards_NT[row, list(scored)] = torch.tensor(list(scored.values()))
            deposited_NT[row, list(scored)] = True
            means.append(_mean(found, list(scored.values())))
        device = rollout.completion_mask_NT.device
        return Deposit(
            token_rewards_NT=rewards_NT.to(device),
            deposit_mask_NT=deposited_NT.to(device),
            trajectory_rewards_N=torch.tensor(means, dtype=torch.float32, device=device),
            density="step",
            notes=_notes(segmented, scores),
        )

    def _scores(self, rollout: Rollout, segmented: Sequence[Segmented]) -> list[list[Score]]:
        """One list a completion, as long as its steps; the model sees completions with steps only."""
        scores: list[list[Score]] = [[] for _ in segmented]
        rows = [row for row, found in enumerate(segmented) if found.steps]
        questions = [self._question(rollout, row) for row in rows]
        given = self._scorer.score(questions, [[step.text for step in segmented[row].steps] for row in rows])
        for row, answered in zip(rows, given, strict=True):
            _check(answered, len(segmented[row].steps), row)
            scores[row] = answered
        return scores

    def _question(self, rollout: Rollout, row: int) -> str:
        if self._question_column is not None:
            return str(rollout.column(self._question_column, self.name)[row]).strip()
        return question_text(rollout.prompts[row], row).strip()


def _mean(found: Segmented, scores: Sequence[float]) -> float:
    if scores:
        return math.fsum(scores) / len(scores)
    return math.nan if found.steps or found.is_truncated else 0.0


def question_text(prompt: Prompt, row: int) -> str:
    """A plain prompt itself, or the text of the last user message; RewardError, naming ``row``, if there is none."""
    if isinstance(prompt, str):
        return prompt
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    if not asked:
        raise RewardError(
            f"prompt {row} has no user message among its {len(prompt)}, so the process reward has no question; name a "
            "dataset column with reward.question_column"
        )
    # Content comes as text, as typed parts, or not at all.
    return asked[-1] if isinstance(asked[-1], str) else "".join(part.get("text", "") for part in asked[-1] or ())


def _check(scores: Sequence[Score], steps: int, row: int) -> None:
    if len(scores) != steps:
        raise RewardError(
            f"the process reward model gave {len(scores)} scores for the {steps} steps of completion {row}; it must "
            "give one a step, in order"
        )
    for index, score in enumerate(scores):
        if score is not None and not 0 <= score <= 1:
            raise RewardError(
                f"the process reward model gave {score} for step {index} of completion {row}, which is no probability; "
                "try reward.dtype=float32, or check its weights"
            )


def _notes(segmented: Sequence[Segmented], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    unscored = [sum(score is None for score in given) for given in scores]
    return {
        "steps": len(list(chain(*scores))) - sum(unscored),
        "truncated_steps": sum(found.is_truncated for found in segmented),
        "empty_completions": sum(not found.steps and not found.is_truncated for found in segmented),
        "over_long_inputs": sum(count > 0 for count in unscored),
        "unscored_steps": sum(unscored),
    }
