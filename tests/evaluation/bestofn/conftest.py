"""Enumeration of every subset: the oracle of the closed forms."""

from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest

from stablerank.evaluation.bestofn.pools import Problem


def best_of(scores, values, drawn):
    """The mean over subsets of the mean value of those that share the largest score; NaN is the lowest."""
    found = []
    for subset in combinations(range(len(scores)), drawn):
        levels = [float("-inf") if scores[at] != scores[at] else scores[at] for at in subset]
        found.append(fmean(values[at] for at, level in zip(subset, levels, strict=True) if level == max(levels)))
    return fmean(found)


def majority_of(classes, values, drawn):
    """The mean over subsets of the mean worth of the leading classes; without a vote, of all that were drawn."""
    found = []
    for subset in combinations(range(len(classes)), drawn):
        votes = Counter(classes[at] for at in subset if classes[at] is not None)
        leaders = [name for name, count in votes.items() if count == max(votes.values())] or [None]
        found.append(fmean(fmean(values[at] for at in subset if classes[at] == leader) for leader in leaders))
    return fmean(found)


@pytest.fixture(scope="session")
def enumerated():
    """``{"best": ..., "majority": ...}``, each ``(scores or classes, values) -> one number for N = 1..M``."""
    ways = {"best": best_of, "majority": majority_of}
    return {
        name: lambda keys, values, way=way: [way(keys, values, drawn) for drawn in range(1, len(values) + 1)]
        for name, way in ways.items()
    }


@pytest.fixture
def problem():
    """A problem from the verdicts of its answers; responses and final answers may be given."""

    def build(right, keys=None, responses=None, prompt="q", tokens=None, greedy=None):
        texts = responses or tuple("x" * (at + 1) for at in range(len(right)))
        return Problem(prompt, tuple(texts), tuple(map(float, right)), tuple(keys or map(str, right)), tokens, greedy)

    return build
