"""Answers to problems, generated and judged chunk by chunk; what a kill left is not done again.

Legend: P problems, N answers of each.

A pool holds the answers of one model under one way of decoding. Its problems are ordered by the length of their prompts
and cut into chunks of about one batch, so that no batch crosses a chunk. A chunk on disk is whole, since its file is
renamed into place; what is drawn for a problem follows from its number (sampling.py). Hence a pool that was
interrupted anywhere ends with the bits of an unbroken one.

The judge is asked problem by problem, so that its notes, such as parse failures, belong to a problem.

Left out on purpose: several processes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import RunFolderError
from stablerank.evaluation.generate import Completion, completions_of
from stablerank.evaluation.held_out import rollout_of
from stablerank.evaluation.sampling import Sampling
from stablerank.rewards.deposits import Reward
from stablerank.runs.tables import ShardedTable

Progress = Callable[[int], None]
"""Told after each chunk how many completions the pool holds."""


@dataclass(frozen=True)
class Answers:
    """What one problem got. ``rewards`` is NaN where an answer cannot be scored."""

    problem: int
    prompt: str
    answer: str | None
    completions: list[str]
    tokens: list[int]
    truncated: list[bool]
    rewards: list[float]
    notes: dict[str, float]


@dataclass(frozen=True)
class Exam:
    """The problems as one tokenizer reads them, their judge, and the limits of an answer."""

    rows: Sequence[Mapping[str, Any]]
    ids_of: Sequence[list[int]]
    reward: Reward
    max_new_tokens: int
    batch_size: int

    def chunks(self, sampling: Sampling | None) -> list[list[int]]:
        """Numbers of problems, the longest prompts first, about one batch of completions at a time."""
        size = max(1, self.batch_size // (1 if sampling is None else sampling.samples))
        order = sorted(range(len(self.rows)), key=lambda number: -len(self.ids_of[number]))
        return [order[start : start + size] for start in range(0, len(order), size)]


def fill_pool(
    exam: Exam,
    sampling: Sampling | None,
    model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    table: ShardedTable | None = None,
    progress: Progress | None = None,
) -> list[Answers]:
    """The answers to every problem, in the order of the rows.

    Args:
        exam: what is asked.
        sampling: how to draw; None for one greedy answer a problem.
        model: called if anything is missing.
        tokenizer: decodes the answers.
        table: keeps each chunk as it is done, and gives back those that are.
        progress: see `Progress`.

    Raises:
        StablerankError: the model or the reward fails, or the table cannot be read or written.
    """
    found = {} if table is None else _stored(table)
    each = 1 if sampling is None else sampling.samples
    for number, chunk in enumerate(exam.chunks(sampling)):
        if any(problem not in found for problem in chunk):
            answers = _answered(exam, sampling, chunk, model(), tokenizer)
            if table is not None:
                _store(table, number, answers)
            found |= {answer.problem: answer for answer in answers}
            if progress is not None:
                progress(len(found) * each)
    if table is not None:
        with _writing(table):
            table.compact()
    return [found[problem] for problem in range(len(exam.rows))]


def _answered(
    exam: Exam,
    sampling: Sampling | None,
    chunk: Sequence[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Answers]:
    completed = completions_of(
        model,
        tokenizer,
        [exam.ids_of[problem] for problem in chunk],
        sampling,
        numbers=chunk,
        max_new_tokens=exam.max_new_tokens,
        batch_size=exam.batch_size,
    )
    return [_judged(exam, problem, answers) for problem, answers in zip(chunk, completed, strict=True)]


def _judged(exam: Exam, problem: int, completions: Sequence[Completion]) -> Answers:
    row = exam.rows[problem]
    deposit = exam.reward(rollout_of([row] * len(completions), completions))
    return Answers(
        problem=problem,
        prompt=row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False),
        answer=None if row.get("answer") is None else str(row["answer"]),
        completions=[completion.text for completion in completions],
        tokens=[completion.tokens for completion in completions],
        truncated=[completion.truncated for completion in completions],
        rewards=deposit.trajectory_rewards_N.tolist(),
        notes=dict(deposit.notes),
    )


def _store(table: ShardedTable, number: int, answers: Sequence[Answers]) -> None:
    with _writing(table):
        # Parquet has no structure without a field, and a judge need not count anything.
        table.write(number, [{**asdict(answer), "notes": json.dumps(answer.notes)} for answer in answers])


@contextmanager
def _writing(table: ShardedTable) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{table.folder} cannot be written ({error.strerror or error}); give an --out that can be."
        ) from error


def _stored(table: ShardedTable) -> dict[int, Answers]:
    try:
        rows = table.rows()
        return {row["problem"]: Answers(**{**row, "notes": json.loads(row["notes"])}) for row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFolderError(f"{table.folder} is damaged; delete it and start again.") from error
