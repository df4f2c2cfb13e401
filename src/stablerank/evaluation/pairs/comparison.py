"""Scorers side by side on one set of pairs: every number of the table, over all pairs and subset by subset.

Legend: P pairs.

Lengths are given as a score is: tokens or characters of the whole responses, the same for every scorer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stablerank.evaluation.pairs.agreement import Agreement, Ties, agreement, credits_of
from stablerank.evaluation.pairs.logistic import Regression, length_regression
from stablerank.evaluation.pairs.matched import Matched, matched_accuracy
from stablerank.evaluation.pairs.partial import RankCorrelations, rank_correlations
from stablerank.evaluation.pairs.resampling import Floats
from stablerank.tasks.preferences import Pair

ALL = "all"


@dataclass(frozen=True)
class PairScores:
    """One score of both responses of each pair."""

    chosen_P: Floats
    rejected_P: Floats

    def at(self, rows: Sequence[int]) -> "PairScores":
        """Some of the pairs."""
        return PairScores(self.chosen_P[list(rows)], self.rejected_P[list(rows)])


@dataclass(frozen=True)
class Row:
    """One scorer on one part of the pairs."""

    part: str
    scorer: str
    agreement: Agreement
    matched: Matched
    ranks: RankCorrelations
    regression: Regression


@dataclass(frozen=True)
class Part:
    """A part of the pairs, and how often its chosen response is the longer one; equal lengths count half."""

    name: str
    pairs: int
    groups: int
    chosen_longer: float


def log_ratios(lengths: PairScores) -> Floats:
    """Log of the chosen response's length over that of the rejected one, ``(P,)``; no length counts as less than 1."""
    ratios_P: Floats = np.log(np.maximum(lengths.chosen_P, 1) / np.maximum(lengths.rejected_P, 1))
    return ratios_P


def parts_of(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """All pairs, and those of each subset where there is more than one, by their numbers."""
    subsets: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        subsets.setdefault(pair.subset, []).append(number)
    return {ALL: list(range(len(pairs))), **(subsets if len(subsets) > 1 else {})}


def described(pairs: Sequence[Pair], lengths: PairScores) -> list[Part]:
    """Sizes and lengths of every part."""
    longer_P = (np.sign(log_ratios(lengths)) + 1) / 2
    return [
        Part(
            name=name,
            pairs=len(rows),
            groups=len({pairs[row].group for row in rows}),
            chosen_longer=float(longer_P[rows].mean()),
        )
        for name, rows in parts_of(pairs).items()
    ]


def compared(
    pairs: Sequence[Pair], scores: Mapping[str, PairScores], lengths: PairScores, ties: Ties = "half"
) -> Iterator[Row]:
    """Every scorer on every part, part by part. ``ties`` holds for plain accuracy; matched accuracy halves them."""
    ratios_P = log_ratios(lengths)
    groups = [pair.group for pair in pairs]
    for part, rows in parts_of(pairs).items():
        for name, both in scores.items():
            yield _row(part, name, both.at(rows), ratios_P[rows], [groups[row] for row in rows], ties)


def _row(part: str, name: str, both: PairScores, ratios_P: Floats, groups: Sequence[str], ties: Ties) -> Row:
    # What ties two infinite scores is not their difference.
    with np.errstate(invalid="ignore"):
        differences_P = both.chosen_P - both.rejected_P
    return Row(
        part=part,
        scorer=name,
        agreement=agreement(both.chosen_P, both.rejected_P, groups, ties),
        matched=matched_accuracy(credits_of(both.chosen_P, both.rejected_P), ratios_P, groups),
        ranks=rank_correlations(differences_P, ratios_P, groups),
        regression=length_regression(differences_P, ratios_P, groups),
    )
