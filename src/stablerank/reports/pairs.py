"""Held-out answers before and after training, paired by prompt and sorted by what changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from stablerank.reports.read import Rollout

Change = Literal["fixed", "kept", "broken", "unsolved"]

CHANGES: tuple[Change, ...] = ("fixed", "kept", "broken", "unsolved")
"""Wrong then right, right twice, right then wrong, wrong twice."""


@dataclass(frozen=True)
class Pair:
    """The same prompt, answered before and after training."""

    before: Rollout
    after: Rollout

    @property
    def change(self) -> Change:
        """What training did to this answer."""
        if self.after.passed:
            return "kept" if self.before.passed else "fixed"
        return "broken" if self.before.passed else "unsolved"


def pair_up(before: Sequence[Rollout], after: Sequence[Rollout]) -> list[Pair]:
    """Pair by data row and prompt, in row order; an answer without its counterpart, or without a score, is left out."""
    later = {(rollout.row, rollout.prompt): rollout for rollout in after if not isnan(rollout.reward)}
    earlier = {(rollout.row, rollout.prompt): rollout for rollout in before if not isnan(rollout.reward)}
    return [Pair(earlier[key], later[key]) for key in sorted(earlier) if key in later]


def by_change(pairs: Sequence[Pair]) -> dict[Change, list[Pair]]:
    """The pairs of each kind, empty kinds included."""
    return {change: [pair for pair in pairs if pair.change == change] for change in CHANGES}
