r"""What one batch of completions says beyond its mean reward.

Legend: N completions. A group is the completions of one prompt.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

ANSWER = r"\\boxed\s*\{"
"""What the text of an answered completion holds, unless the user says otherwise."""


def answered(texts_N: Sequence[str], pattern: str = ANSWER) -> float:
    """Share of completions in which the answer's format appears; NaN without completions."""
    found = re.compile(pattern)
    return float(np.mean([found.search(text) is not None for text in texts_N])) if texts_N else float("nan")


def reward_length_correlation(reward_N: ArrayLike, tokens_N: ArrayLike, group_N: ArrayLike) -> float:
    """Pearson correlation of reward and length inside the groups; NaN where one of them does not vary there.

    Both are taken from their group's mean first: long prompts' long answers are no sign of a reward that pays for
    length. Completions without a reward (NaN) are left out. Deviations below 1e-12 of the largest value are rounding.
    """
    reward_N, tokens_N = np.asarray(reward_N, np.float64), np.asarray(tokens_N, np.float64)
    kept_N = np.isfinite(reward_N)
    _, place_N = np.unique(np.asarray(group_N)[kept_N], return_inverse=True)
    reward_N, tokens_N = (_centred(values[kept_N], place_N) for values in (reward_N, tokens_N))
    energy = float(np.sqrt(reward_N @ reward_N) * np.sqrt(tokens_N @ tokens_N))
    return float(np.clip(reward_N @ tokens_N / energy, -1.0, 1.0)) if energy > 0 else float("nan")


def _centred(values_N: np.ndarray, place_N: np.ndarray) -> np.ndarray:
    """Less the mean of its group, in units of the largest value; what rounding leaves of a constant group is zero."""
    largest = np.abs(values_N).max(initial=0.0)
    if largest == 0.0:
        return values_N
    unit_N = values_N / largest
    centred_N = unit_N - (np.bincount(place_N, unit_N) / np.bincount(place_N))[place_N]
    return np.where(np.abs(centred_N) <= 1e-12, 0.0, centred_N)
