"""What the answers say: each number a mean over problems with its interval, and its paired difference from another's.

Legend: P problems, N answers of each, K numbers of tries.

Greedy answers give pass@1. Sampled ones give the unbiased pass@k; its k = 1 is the mean over all samples, also called
avg@N. Both give length, truncation and, where the judge counts them, parse failures. A problem with an answer that
cannot be scored leaves the pass rates. Problems are the unit of resampling (statistics.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan, nan
from statistics import fmean
from typing import Literal

import numpy as np

from stablerank.evaluation.pass_at_k import pass_at_k
from stablerank.evaluation.pools import Answers
from stablerank.evaluation.statistics import Interval, mean_interval, paired_difference

Decoding = Literal["greedy", "sampled"]
_PARSE_FAILURES = "parse_failures"


@dataclass(frozen=True)
class Values:
    """One number a problem, NaN where there is none, and the smallest and largest it could be."""

    decoding: Decoding
    name: str
    values_P: tuple[float, ...]
    scale: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """One line of the result; ``difference`` is ours minus the other's on the problems that both have."""

    decoding: Decoding
    name: str
    value: Interval
    against: Interval | None = None
    difference: Interval | None = None


def pass_rates(answers: Sequence[Answers], decoding: Decoding, ks: Sequence[int], bar: float) -> list[Values]:
    """pass@k for every k; an answer passes when its reward reaches ``bar``."""
    scorable_P = [not any(map(isnan, answer.rewards)) for answer in answers]
    right_PN = np.array([[reward >= bar for reward in answer.rewards] for answer in answers])
    return [
        Values(decoding, f"pass@{k}", tuple(np.where(scorable_P, pass_at_k(right_PN, k), nan).tolist())) for k in ks
    ]


def manners(answers: Sequence[Answers], decoding: Decoding, max_new_tokens: int) -> list[Values]:
    """Length in tokens, share of truncated answers and, where they are counted, of those without an answer in them."""
    lengths = tuple(fmean(answer.tokens) for answer in answers)
    found = [
        Values(decoding, "tokens", lengths, (1.0, max_new_tokens)),
        Values(decoding, "truncated", tuple(fmean(answer.truncated) for answer in answers)),
    ]
    if all(_PARSE_FAILURES in answer.notes for answer in answers):
        shares = (answer.notes[_PARSE_FAILURES] / len(answer.rewards) for answer in answers)
        found.append(Values(decoding, "parse failures", tuple(shares)))
    return found


def unscorable(*pools: Sequence[Answers]) -> int:
    """How many problems have an answer that could not be scored."""
    return len({answer.problem for answer in chain(*pools) if any(map(isnan, answer.rewards))})


def compared(ours: Sequence[Values], others: Sequence[Values] | None) -> list[Measure]:
    """Every number with its interval, and beside the other's if there are any.

    Raises DataError when no problem is scorable.
    """
    if others is None:
        return [Measure(own.decoding, own.name, mean_interval(own.values_P, own.scale)) for own in ours]
    return [_compared(own, other) for own, other in zip(ours, others, strict=True)]


def _compared(own: Values, other: Values) -> Measure:
    width = own.scale[1] - own.scale[0]
    return Measure(
        own.decoding,
        own.name,
        mean_interval(own.values_P, own.scale),
        mean_interval(other.values_P, other.scale),
        paired_difference(other.values_P, own.values_P, (-width, width)),
    )
