"""Pools: several answers to each problem, which of them are right, and what they cost to generate.

Legend: P problems, M answers of one of them; M may differ.

Answers to one prompt are one problem, wherever they stand in a file, so that intervals are by prompt. A problem cannot
be used, and is counted as left out, if it has fewer answers than the largest N, or an answer that nobody can judge.

Left out on purpose: where pools come from (recorded.py, evaluations.py).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from stablerank.errors import DataError
from stablerank.rewards.rollout import Prompt

TOO_FEW, UNJUDGED = "fewer answers than the largest N", "an answer that cannot be judged"


@dataclass(frozen=True)
class Problem:
    """A prompt with its answers, in one order."""

    prompt: Prompt
    responses: tuple[str | None, ...]
    right_M: tuple[float, ...]
    """1 for a right answer, 0 for a wrong one, NaN where nobody can tell."""
    keys: tuple[str, ...]
    """Final answers, for the majority vote; empty where there is none."""
    tokens: tuple[int, ...] | None = None
    """Generated tokens of each answer, where they were recorded."""
    greedy: float | None = None
    """Whether the greedy answer is right, where there is one."""


@dataclass(frozen=True)
class Pool:
    """Problems, a name to show, and how many problems were left out for which reason."""

    name: str
    problems: tuple[Problem, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def smallest(self) -> int:
        """Answers that every problem has at least."""
        return min(len(problem.responses) for problem in self.problems)

    @cached_property
    def length_unit(self) -> str:
        """``tokens`` where every problem has recorded them, else ``characters``."""
        return "tokens" if all(problem.tokens is not None for problem in self.problems) else "characters"

    def lengths(self, problem: Problem) -> tuple[int, ...]:
        """The length of each answer in the unit of the pool."""
        if self.length_unit == "tokens" and problem.tokens is not None:
            return problem.tokens
        return tuple(len(text or "") for text in problem.responses)

    def usable(self, largest: int) -> tuple["Pool", tuple[int, ...]]:
        """The problems from which ``largest`` answers can be drawn, all of them judged, and their numbers here.

        Raises:
            DataError: none is left.
        """
        reasons = [_unusable(problem, largest) for problem in self.problems]
        kept = tuple(number for number, reason in enumerate(reasons) if reason is None)
        left_out = Counter({**self.left_out}) + Counter(reason for reason in reasons if reason is not None)
        if not kept:
            listed = ", ".join(f"{count} with {reason}" for reason, count in left_out.items()) or "it is empty"
            raise DataError(
                f"the pool {self.name} has no problem to choose from with N = {largest} ({listed}); "
                "give a smaller N or another pool."
            )
        return replace(self, problems=tuple(self.problems[at] for at in kept), left_out=dict(left_out)), kept


def default_ns(pool: Pool) -> tuple[int, ...]:
    """1, 2, 4 and so on, as far as every problem has answers, and that number itself."""
    return tuple(sorted({*(2**power for power in range(pool.smallest.bit_length())), pool.smallest}))


def merged(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """One problem a prompt, in the order in which the prompts appear."""
    by_prompt: dict[str, Problem] = {}
    for problem in problems:
        known = by_prompt.get(repr(problem.prompt))
        by_prompt[repr(problem.prompt)] = problem if known is None else _joined(known, problem)
    return tuple(by_prompt.values())


def _joined(first: Problem, second: Problem) -> Problem:
    has_tokens = first.tokens is not None and second.tokens is not None
    return Problem(
        first.prompt,
        first.responses + second.responses,
        first.right_M + second.right_M,
        first.keys + second.keys,
        (first.tokens or ()) + (second.tokens or ()) if has_tokens else None,
        first.greedy,
    )


def _unusable(problem: Problem, largest: int) -> str | None:
    if len(problem.responses) < largest:
        return TOO_FEW
    return UNJUDGED if any(map(math.isnan, problem.right_M)) else None
