"""The scores of a pool, chunk by chunk, with what they cost; what a kill left is not done again.

Legend: M answers to one problem, S scores.

A chunk on disk is whole. Seconds are those of the process that scored the chunk and stay with it; everything else that
is stored follows from answers and scorers alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from stablerank.errors import RunFolderError
from stablerank.evaluation.bestofn.estimator import Floats
from stablerank.evaluation.bestofn.pools import Pool, Problem
from stablerank.rewards.scorers.answers import Answer, Scorer, Scores, joined
from stablerank.runs.tables import ShardedTable

CHUNK = 128
"""About so many answers are scored between two writes."""
Progress = Callable[[int, int, str], None]
"""``progress(answers scored, answers in all, what)``."""


@dataclass(frozen=True)
class ProblemScores:
    """The scores of one problem's answers, by the scorer's name; what reading them cost, by the pass that read them."""

    problem: int
    scores: Mapping[str, Floats]
    statuses: tuple[str, ...]
    tokens: Mapping[str, int]
    """Tokens of the answers that each pass read."""
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """What one pass over an answer costs on average; several scores may come of one pass."""

    scores: str
    """Names of the scores, with semicolons."""
    seconds: float
    tokens: float


def score_pool(
    pool: Pool, scorers: Sequence[Scorer], table: ShardedTable | None = None, progress: Progress | None = None
) -> list[ProblemScores]:
    """The scores of every answer, in the order of the problems.

    Raises:
        StablerankError: a scorer fails, or the table cannot be read or written.
    """
    found = {} if table is None else _stored(table)
    total = sum(len(problem.responses) for problem in pool.problems)
    for number, chunk in enumerate(_chunks(pool.problems)):
        if any(problem not in found for problem in chunk):
            scored = _scored(pool, chunk, scorers)
            if table is not None:
                with _writing(table):
                    table.write(number, [_row(one) for one in scored])
            found |= {one.problem: one for one in scored}
        if progress is not None:
            progress(sum(len(one.statuses) for one in found.values()), total, "scoring")
    if table is not None:
        with _writing(table):
            table.compact()
    return [found[number] for number in range(len(pool.problems))]


def costs(scored: Sequence[ProblemScores]) -> tuple[Cost, ...]:
    """Mean cost of an answer, a pass each."""
    answers = sum(len(one.statuses) for one in scored)
    return tuple(
        Cost(
            name,
            sum(one.seconds[name] for one in scored) / answers,
            sum(one.tokens[name] for one in scored) / answers,
        )
        for name in scored[0].seconds
    )


def reasons(scored: Sequence[ProblemScores]) -> dict[str, int]:
    """How many answers lack a score of at least one scorer, by the reason."""
    return dict(Counter(status for one in scored for status in one.statuses if status != "scored"))


def tied_share(scored: Sequence[ProblemScores], name: str) -> float:
    """The share of pairs of answers to one problem that a scorer cannot tell apart; unscored answers are equal."""
    tied = pairs = 0
    for one in scored:
        _, counts = np.unique(one.scores[name], return_counts=True)
        tied += int((counts * (counts - 1)).sum())
        pairs += len(one.statuses) * (len(one.statuses) - 1)
    return tied / pairs if pairs else 0.0


def _chunks(problems: Sequence[Problem]) -> Iterator[list[int]]:
    """Numbers of problems, about `CHUNK` answers at a time."""
    chunk: list[int] = []
    answers = 0
    for number, problem in enumerate(problems):
        chunk.append(number)
        answers += len(problem.responses)
        if answers >= CHUNK or number == len(problems) - 1:
            yield chunk
            chunk, answers = [], 0


def _scored(pool: Pool, chunk: Sequence[int], scorers: Sequence[Scorer]) -> list[ProblemScores]:
    problems = [pool.problems[number] for number in chunk]
    # A response may be missing, which a status says; the contract's type is that of the others.
    answers = [Answer(problem.prompt, text) for problem in problems for text in problem.responses]  # type: ignore[arg-type]
    parts, seconds = [], {}
    for scorer in scorers:
        started = time.perf_counter()
        parts.append(scorer.score(answers))
        seconds["; ".join(scorer.names)] = (time.perf_counter() - started) / len(answers)
    whole, ends = joined(parts), np.cumsum([len(problem.responses) for problem in problems])
    return [
        _one(number, slice(int(end) - len(problem.responses), int(end)), parts, whole, seconds)
        for number, problem, end in zip(chunk, problems, ends, strict=True)
    ]


def _one(
    number: int, rows: slice, parts: Sequence[Scores], whole: Scores, seconds_an_answer: Mapping[str, float]
) -> ProblemScores:
    statuses = whole.statuses[rows]
    return ProblemScores(
        problem=number,
        scores={name: whole.column(name)[rows] for name in whole.names},
        statuses=statuses,
        tokens={"; ".join(part.names): int(part.tokens_N[rows].sum()) for part in parts},
        seconds={name: each * len(statuses) for name, each in seconds_an_answer.items()},
    )


def _row(one: ProblemScores) -> dict[str, Any]:
    return {
        "problem": one.problem,
        "names": list(one.scores),
        "scores": [values_M.tolist() for values_M in one.scores.values()],
        "statuses": list(one.statuses),
        "passes": list(one.seconds),
        "tokens": list(one.tokens.values()),
        "seconds": list(one.seconds.values()),
    }


def _stored(table: ShardedTable) -> dict[int, ProblemScores]:
    try:
        return {row["problem"]: _read(row) for row in table.rows()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFolderError(f"{table.folder} is damaged; delete it and start again.") from error


def _read(row: Mapping[str, Any]) -> ProblemScores:
    return ProblemScores(
        problem=row["problem"],
        scores={name: np.array(one, dtype=float) for name, one in zip(row["names"], row["scores"], strict=True)},
        statuses=tuple(row["statuses"]),
        tokens=dict(zip(row["passes"], row["tokens"], strict=True)),
        seconds=dict(zip(row["passes"], row["seconds"], strict=True)),
    )


@contextmanager
def _writing(table: ShardedTable) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{table.folder} cannot be written ({error.strerror or error}); give an --out that can be."
        ) from error
