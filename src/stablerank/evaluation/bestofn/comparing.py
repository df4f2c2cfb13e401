"""From picks to lines: the accuracy of every chooser at every N, and what it is worth beside the controls.

Legend: P problems, M answers to one of them, N of them drawn.

Each number is a mean over problems with its 95 % interval; differences are paired by problem. At N = 1 every chooser
picks what is there, so there is nothing to compare. Beside each accuracy stands the mean length of what is picked:
a chooser that shortens or lengthens its picks is first of all that.

A pool whose gap between oracle and random, at the largest N, is below `LEAST_GAP` has no headroom: there is next to
nothing that a chooser could gain, so none is compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stablerank.evaluation.bestofn.controls import COMPARED, CONTROLS, control_picks
from stablerank.evaluation.bestofn.estimator import Floats, expected_picks
from stablerank.evaluation.bestofn.keys import Equal
from stablerank.evaluation.bestofn.pools import Pool
from stablerank.evaluation.bestofn.scores import ProblemScores, Progress
from stablerank.evaluation.statistics import Interval, mean_interval, paired_difference

LEAST_GAP = 0.05
Kind = Literal["scorer", "control"]
Picks = Mapping[str, Sequence[Floats]]
"""By chooser: one array ``(M,)`` a problem, the expected value of its pick for N = 1..M."""


@dataclass(frozen=True)
class Gap:
    """What choosing could gain at most: pass@N minus the mean, at the largest N."""

    n: int
    random: Interval
    oracle: Interval
    gain: Interval

    @property
    def has_headroom(self) -> bool:
        """Whether choosers are worth comparing."""
        return self.gain.value >= LEAST_GAP


@dataclass(frozen=True)
class Line:
    """One chooser at one N."""

    chooser: str
    kind: Kind
    n: int
    accuracy: Interval
    length: float | None
    """Mean length of what is picked, in the pool's unit; None where a control picks no one answer."""
    over: Mapping[str, Interval]
    """Paired differences to `COMPARED`; empty at N = 1, for the control itself, and without headroom."""


def pool_controls(pool: Pool, equal: Equal, progress: Progress | None = None) -> Picks:
    """The picks of every control; those of ``greedy`` only where every problem has a greedy answer."""
    found = []
    for problem in pool.problems:
        found.append(control_picks(pool, problem, equal))
        if progress is not None:
            progress(len(found), len(pool.problems), "counting votes")
    return {name: [one[name] for one in found] for name in CONTROLS if all(name in one for one in found)}


def control_lengths(pool: Pool) -> Picks:
    """The lengths of what is picked by the controls that pick one answer by something else than what it says."""
    lengths = _lengths(pool)
    return {
        "random": [np.full(len(length_M), length_M.mean()) for length_M in lengths],
        "shortest": [expected_picks(-length_M, length_M) for length_M in lengths],
        "longest": [expected_picks(length_M, length_M) for length_M in lengths],
    }


def scorer_picks(pool: Pool, scored: Sequence[ProblemScores]) -> Picks:
    """The picks of every scorer."""
    return _valued(scored, [np.array(problem.right_M) for problem in pool.problems])


def scorer_lengths(pool: Pool, scored: Sequence[ProblemScores]) -> Picks:
    """The lengths of what every scorer picks."""
    return _valued(scored, _lengths(pool))


def _valued(scored: Sequence[ProblemScores], values: Sequence[Floats]) -> Picks:
    names = scored[0].scores
    return {
        name: [expected_picks(one.scores[name], value_M) for one, value_M in zip(scored, values, strict=True)]
        for name in names
    }


def _lengths(pool: Pool) -> list[Floats]:
    return [np.array(pool.lengths(problem), dtype=float) for problem in pool.problems]


def gap(controls: Picks, n: int) -> Gap:
    """Oracle and random at N, and the paired difference."""
    random_P, oracle_P = (at(controls[name], n) for name in ("random", "oracle"))
    return Gap(
        n,
        mean_interval(random_P.tolist()),
        mean_interval(oracle_P.tolist()),
        paired_difference(random_P.tolist(), oracle_P.tolist()),
    )


def lines(kind: Kind, choosers: Picks, lengths: Picks, ns: Sequence[int], against: Picks | None) -> Iterator[Line]:
    """Every chooser at every N; ``against`` are the controls to compare with, None to compare with none."""
    for chooser, picks in choosers.items():
        for n in ns:
            yield Line(
                chooser,
                kind,
                n,
                mean_interval(at(picks, n).tolist()),
                float(at(lengths[chooser], n).mean()) if chooser in lengths else None,
                {} if against is None or n == 1 else _differences(kind, chooser, picks, against, n),
            )


def at(picks: Sequence[Floats], n: int) -> Floats:
    """One value a problem, ``(P,)``, at one N."""
    return np.array([picks_M[n - 1] for picks_M in picks])


def _differences(kind: Kind, chooser: str, picks: Sequence[Floats], against: Picks, n: int) -> dict[str, Interval]:
    return {
        name: paired_difference(at(against[name], n).tolist(), at(picks, n).tolist())
        for name in COMPARED
        if (kind, chooser) != ("control", name)
    }
