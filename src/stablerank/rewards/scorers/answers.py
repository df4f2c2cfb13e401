"""The contract of every scorer: answers in, one number an answer and scorer out, and a reason where there is none.

Legend: N answers, S scorers that share one pass.

A scorer never compares: it gives each answer its own number, so that pairs, pools and correlations are read from one
table of scores. Higher means "prefer this one", whatever the scorer; a scorer whose natural sign is the other way has
a name that says so (``shorter``). NaN means "not defined", never "bad", and ``statuses`` says why.

An answer's scores do not depend on the answers beside it, up to what padding and batching move in a model's states;
each scorer that runs a model states that bound.

Left out on purpose: comparison in pairs (pairwise.py), files, batches.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stablerank.errors import DataError
from stablerank.rewards.rollout import Prompt

Status = Literal["scored", "missing", "not_text", "empty", "outside_window", "undefined"]
"""``missing``: there is no response; ``empty``: one of nothing but white space; ``outside_window``: no token of the
response is among those the scorer may read; ``undefined``: read, but its number does not exist or is not finite."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_text(value: object) -> bool:
    """Whether it is a string of whole characters: half of a surrogate pair, which JSON can hold, is none."""
    return isinstance(value, str) and _SURROGATE.search(value) is None


@dataclass(frozen=True)
class Answer:
    """A prompt, text or messages, with one response to it."""

    prompt: Prompt
    response: str
    subset: str = ""
    """Of the set it comes from, for scorers that ask by category; without one, as `chat`."""

    @property
    def status(self) -> Status:
        """What can be told without a model."""
        if self.response is None:
            return "missing"
        if not is_text(self.response):
            return "not_text"
        return "scored" if self.response.strip() else "empty"


@dataclass(frozen=True)
class Scores:
    """A table of scores, in the order of the answers."""

    names: tuple[str, ...]
    values_NS: NDArray[np.float64]
    statuses: tuple[Status, ...]
    tokens_N: NDArray[np.int64]
    """Tokens of the response that were read, in the scorer's own tokens; 0 where it reads none."""

    def __len__(self) -> int:
        return len(self.statuses)

    def column(self, name: str) -> NDArray[np.float64]:
        """The scores ``(N,)`` of one scorer; DataError, naming those there are, for another."""
        if name not in self.names:
            raise DataError(f"there is no score {name!r}; choose one of {', '.join(self.names)}.")
        return self.values_NS[:, self.names.index(name)]


class Scorer(Protocol):
    """Anything that scores answers; several scores may come of one pass of a model."""

    names: tuple[str, ...]

    def score(self, answers: Sequence[Answer]) -> Scores:
        """One row an answer, one column a name; an answer that cannot be scored is a row of NaN with its status."""


def score_one(scorer: Scorer, prompt: Prompt, response: str) -> float:
    """The first score of one response: ``(prompt, response) -> float``."""
    return float(scorer.score([Answer(prompt, response)]).values_NS[0, 0])


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of several scorers side by side, over the same answers; names must differ.

    An answer is ``scored`` if every part scored it, else it has the first reason given.
    """
    names = tuple(name for part in parts for name in part.names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the score {twice!r} is asked for twice; name each scorer once, or give one of them a name.")
    statuses = tuple(_first_reason(row) for row in zip(*(part.statuses for part in parts), strict=True))
    tokens_N = np.max([part.tokens_N for part in parts], axis=0)
    return Scores(names, np.concatenate([part.values_NS for part in parts], axis=1), statuses, tokens_N)


def _first_reason(statuses: Iterable[Status]) -> Status:
    return next((status for status in statuses if status != "scored"), "scored")


def unscored(answers: Sequence[Answer], names: tuple[str, ...]) -> Scores:
    """A table without a number: where a scorer starts from."""
    values_NS = np.full((len(answers), len(names)), math.nan)
    return Scores(names, values_NS, tuple(answer.status for answer in answers), np.zeros(len(answers), dtype=np.int64))
