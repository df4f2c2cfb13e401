"""The signals of a run that alarms, onsets and causes read, one value a logged step.

Contract: a name of `SIGNALS` is the same quantity whether it comes from the live log of a trainer (`signals_of_log`) or
from a record on disk (`signals_of_record`). NaN says "not recorded at this step". Numbers are float64.

Legend: S logged steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablerank.dynamics.batch import ANSWER, answered, reward_length_correlation
from stablerank.runs.record import RunRecord, TrainingCompletion

Floats = NDArray[np.float64]

SIGNALS: Mapping[str, str] = {
    "reward": "reward",
    "reward_std": "reward_std",
    "zero_std": "frac_reward_zero_std",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "kl": "kl",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "advantage_scale": "advantage_scale",
    "answered": "answered",
    "reward_length": "reward_length_correlation",
    "stable_rank": "geometry/stable_rank_mean",
    "stable_rank_null": "geometry/stable_rank_null",
}
"""Our name of each signal, and its key in the log row of a trainer."""


@dataclass(frozen=True)
class Signals:
    """One column a signal, all of them there; NaN where a step has no value."""

    step_S: NDArray[np.int64]
    columns: Mapping[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name]

    def has(self, name: str) -> bool:
        """Whether any step has a value."""
        return bool(np.isfinite(self.columns[name]).any())


def signals_of_log(row: Mapping[str, Any]) -> dict[str, float]:
    """The signals of one log row; what it lacks, or holds as null, is left out."""
    found = {name: row[key] for name, key in SIGNALS.items() if key in row}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def signals_of_batch(completions: Sequence[TrainingCompletion], pattern: str = ANSWER) -> dict[str, float]:
    """The signals that need the completions of a step and not its log row.

    Where only texts were kept, length is counted in characters: a correlation has no unit, and within a group of one
    prompt the characters a token are about the same.
    """
    texts = [one.text for one in completions]
    tokens = [one.tokens for one in completions]
    lengths = tokens if any(tokens) else [len(text) for text in texts]
    rewards, groups = [one.reward for one in completions], [one.group for one in completions]
    return {
        "answered": answered(texts, pattern),
        "reward_length": reward_length_correlation(rewards, lengths, groups),
    }


def signals_of_record(record: RunRecord, pattern: str = ANSWER) -> Signals:
    """Every signal of a recorded run: from its log, and where that lacks one, from its completions."""
    batches = {
        step: signals_of_batch(list(group), pattern) for step, group in groupby(record.completions, lambda c: c.step)
    }
    rows = [(int(row["step"]), {**batches.get(int(row["step"]), {}), **signals_of_log(row)}) for row in record.steps]
    columns = {name: np.array([row.get(name, math.nan) for _, row in rows], np.float64) for name in SIGNALS}
    return Signals(np.array([step for step, _ in rows], np.int64), columns)
