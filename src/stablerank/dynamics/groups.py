"""How alike the completions of a group are, and how far a reward still tells them apart.

Legend: N completions, of which those of one prompt are a group.

GRPO divides a reward by its deviation inside the group, so a reward that hardly differs there still trains at full
strength, on whatever is left: rounding, length, noise. These three numbers say how much there is to compare:

- ``duplicate_share``: completions of which the group holds the same tokens twice.
- ``near_duplicate_share``: completions that share at least `OVERLAP` of their tokens, order aside, with another of the
  group: ``2 |A and B| / (|A| + |B|)`` of the two bags of tokens (Sorensen-Dice).
- ``relative_spread``: the deviation of a reward inside the groups, root mean square over them, divided by the mean of
  its absolute value.

Validity: bags of tokens overlap by chance, the more the shorter the vocabulary and the longer the texts; read the share
against its own start. Cost: one comparison of two counters for each pair of a group.

Left out on purpose: embeddings and longest common subsequences, which cost more than the step.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

OVERLAP = 0.9
"""Share of tokens: one in ten may differ."""


def duplicate_share(ids_N: Sequence[Sequence[int]], group_N: Sequence[int]) -> float:
    """Share of completions that stand in their group more than once; NaN without completions."""
    texts = [(group, tuple(ids)) for group, ids in zip(group_N, ids_N, strict=True)]
    counts = Counter(texts)
    return float(np.mean([counts[text] > 1 for text in texts])) if texts else math.nan


def near_duplicate_share(ids_N: Sequence[Sequence[int]], group_N: Sequence[int]) -> float:
    """Share of completions with another in their group that shares `OVERLAP` of the tokens; NaN without completions."""
    bags_G: dict[int, list[Counter[int]]] = defaultdict(list)
    for group, ids in zip(group_N, ids_N, strict=True):
        bags_G[group].append(Counter(ids))
    has_twin_N = [has_twin for bags in bags_G.values() for has_twin in _have_twins(bags)]
    return float(np.mean(has_twin_N)) if has_twin_N else math.nan


def _have_twins(bags: Sequence[Counter[int]]) -> NDArray[np.bool_]:
    has_twin_K = np.zeros(len(bags), dtype=np.bool_)
    for first, one in enumerate(bags):
        for second in range(first + 1, len(bags)):
            if not (has_twin_K[first] and has_twin_K[second]) and _overlap(one, bags[second]) >= OVERLAP:
                has_twin_K[[first, second]] = True
    return has_twin_K


def _overlap(one: Counter[int], other: Counter[int]) -> float:
    """Two empty bags are the same."""
    tokens = one.total() + other.total()
    return 2 * (one & other).total() / tokens if tokens else 1.0


def relative_spread(reward_N: ArrayLike, group_N: ArrayLike) -> float:
    """Deviation inside the groups over the mean absolute value (module header).

    Completions without a reward (NaN) are left out; NaN where no group has two left, and where every reward is 0.
    """
    reward_N, group_N = np.asarray(reward_N, np.float64), np.asarray(group_N)
    kept_N = np.isfinite(reward_N)
    groups = [reward_N[kept_N & (group_N == group)] for group in np.unique(group_N)]
    variances = [np.var(rewards) for rewards in groups if len(rewards) > 1]
    level = float(np.abs(reward_N[kept_N]).mean()) if kept_N.any() else 0.0
    return math.sqrt(np.mean(variances)) / level if variances and level else math.nan
