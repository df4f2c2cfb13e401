"""The chain of a collapse: which links a run has, in which order, and whether that order holds over runs.

Contract: pure functions of signals and held-out curves. `LINKS` are the events of the collapse that S4 (gernim,
lora-reward-density) tells, in its order, each with a locked rule of `stablerank.dynamics.onsets`; `chain_of` finds them
in one run, `lags` and `precedence` compare runs, which are the unit of resampling. Random numbers come from a seed.

Two events tie when neither surely came first at the resolution they were recorded with: the gap between two
evaluations for pass@1, one step for the rest. A tie counts neither for an order nor against it.

The length is asked for twice. Healthy learning may lengthen answers too, so growth from the run's start is a link only
if the length does not shrink between the best evaluation and the collapse; that change is reported beside the links.

Null hypothesis of `precedence`: given that these events happened in this run at these times, which happened when is
arbitrary. Times are permuted between the links of a run, which keeps how fast each run went, what it lacks, and ties.
Shifting whole signals in circles is no fair null here: it moves the start that every rule refers to, and joins the end
of a collapse to the beginning of learning. "Advantage gone" lies after the peak by rule: permutations that put it
before the spike have the two exchanged, and that pair is not tested. The statistic is the number of runs in which one
came first less those in which the other did, so that ties leave it centred; p = (k + 1) / (n + 1) (Phipson & Smyth
2010), one-sided, Holm over all ordered pairs that any run has. It is a test of order, not of coupling: events that have
nothing to do with each other, one always early and one always late, are in order too.

Validity: the order is that of onsets by these rules; a stricter rule for one link makes it later. Links with one
common cause are in order without one causing the next.

Left out on purpose: Granger causality and cross-correlation of the signals, which need stationary signals; a collapse
happens once.

Legend: R runs, L links, N permutations, P links that a run has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stablerank.dynamics.onsets import (
    Falls,
    LeavesStart,
    Onset,
    Rule,
    long_enough,
    onset,
    recorded,
    robust_deviation,
    running_median,
)
from stablerank.dynamics.signals import Signals

Curve = Sequence[Mapping[str, Any]]
"""Held-out evaluations in order, each with ``step`` and ``pass_at_1``."""
Verdict = Literal["kept", "broken", "tied", "none"]

PASS = "pass_at_1"
COLLAPSE = Falls(level=0.5, deviations=0.0, start=1, width=1, hold=2, held=1.0, lasting=True)
"""Half of the best, from there to the end of the record."""
STRETCH = (4, 8)
"""Fewest and most steps at either end that the length between the best evaluation and the collapse is read from."""
LENGTH_SHARE, LENGTH_ERRORS = 0.1, 3.0
"""Least change of that length: as a share of it, and in standard errors of a difference of two means."""
SATURATED = 0.95
"""Share of its highest at which the length counts as saturated."""


@dataclass(frozen=True)
class Link:
    """One event of the chain: where it is looked for, and by which rule."""

    name: str
    signal: str
    rule: Rule


SPIKE = Link("advantage spike", "advantage_scale", LeavesStart(1))
GROWTH = Link("length growth", "length", LeavesStart(1))
TRUNCATION = Link("truncation", "truncated", LeavesStart(1, share=0.0, change=0.1))
ANSWER = Link("answer lost", "answered", Falls(level=0.8))
FALL = Link("pass@1 collapse", PASS, COLLAPSE)
GONE = Link("advantage gone", "advantage_scale", Falls(level=0.1))
LINKS = (SPIKE, GROWTH, TRUNCATION, ANSWER, FALL, GONE)
"""In S4's order."""


@dataclass(frozen=True)
class LengthChange:
    """Where the length went from the best evaluation to the collapse, or to the end of a run without one."""

    way: Literal["grows", "shrinks", "steady", "unknown"]
    before: float = np.nan
    after: float = np.nan
    """Medians of its first and last steps; NaN where there are too few."""


@dataclass(frozen=True)
class Chain:
    """What of the chain one run has."""

    onsets: Mapping[str, Onset]
    """By link, in the order of `LINKS`; those that happened."""
    absent: tuple[str, ...]
    """Recorded, and did not happen."""
    unrecorded: tuple[str, ...]
    """Not recorded, or too few values to tell."""
    length: LengthChange

    @property
    def order(self) -> Verdict:
        """Broken if any pair is the other way round, tied if none is but some are tied, none with fewer than two."""
        found = list(self.onsets.values())
        pairs = [(one, two) for place, one in enumerate(found) for two in found[place + 1 :]]
        if any(two.before(one) for one, two in pairs):
            return "broken"
        return "none" if not pairs else "kept" if all(one.before(two) for one, two in pairs) else "tied"

    @property
    def whole(self) -> bool:
        """Whether every link is there."""
        return len(self.onsets) == len(LINKS)

    @property
    def kind(self) -> Literal["none", "unknown", "length", "other"]:
        """How it collapsed: by growing into the cap as in S4 ("length"), in another way, not at all, or who knows."""
        if FALL.name not in self.onsets:
            return "none"
        if {GROWTH.name, TRUNCATION.name} & {*self.unrecorded}:
            return "unknown"
        return "other" if {GROWTH.name, TRUNCATION.name} & {*self.absent} else "length"


def collapse_step(curve: Curve) -> int | None:
    """Step of the first evaluation at or below half of the best pass@1, all later ones being so too; None if none is.

    Rows need ``step`` and ``pass_at_1``, in order of step; evaluations without a number are left out.
    """
    found = onset(*_scores(curve), COLLAPSE)
    return None if found is None else found.upper


def chain_of(signals: Signals, curve: Curve, links: Sequence[Link] = LINKS) -> Chain:
    """Onset of every link of a run.

    Args:
        signals: Those of every step.
        curve: Held-out evaluations.
        links: Variants of `LINKS`, for asking how much an order depends on the rules.
    """
    columns = {link.name: _column(link, signals, curve) for link in links}
    found = {link.name: onset(*columns[link.name], link.rule) for link in links}
    length = _length_change(signals, curve, found.get(FALL.name))
    if length.way == "shrinks":
        found[GROWTH.name] = None
    known = {link.name: long_enough(columns[link.name][1], link.rule) for link in links}
    return Chain(
        onsets={name: one for name, one in found.items() if one is not None},
        absent=tuple(name for name, one in found.items() if one is None and known[name]),
        unrecorded=tuple(name for name, is_known in known.items() if not is_known),
        length=length,
    )


def told(chain: Chain) -> str:
    """The chain of a run in one sentence."""
    begun = {
        "none": "No collapse",
        "unknown": "A collapse, too little recorded to say of which kind",
        "length": "A collapse by length",
        "other": "A collapse of another kind than by length",
    }[chain.kind]
    parts = [", ".join(f"{name} by step {one.upper}" for name, one in chain.onsets.items()) or "no link of the chain"]
    if chain.length.way in ("grows", "shrinks"):
        sizes = f"from {chain.length.before:.0f} to {chain.length.after:.0f} tokens"
        parts.append(f"after the best evaluation the length {chain.length.way}, {sizes}")
    parts += [f"absent: {', '.join(chain.absent)}"] if chain.absent else []
    parts += [f"not recorded: {', '.join(chain.unrecorded)}"] if chain.unrecorded else []
    return f"{begun}: {'; '.join(parts)}."


def s4_events(signals: Signals, curve: Curve) -> dict[str, int]:
    """Steps of the events whose means S4 prints: peak of the advantage scale, saturated length, collapse."""
    events = {}
    step_S, scale_S = recorded(signals.step_S, signals[SPIKE.signal])
    if scale_S.size:
        events["advantage peak"] = int(step_S[np.argmax(running_median(scale_S, SPIKE.rule.width))])
    step_S, length_S = recorded(signals.step_S, signals[GROWTH.signal])
    if length_S.size:
        smooth_S = running_median(length_S, GROWTH.rule.width)
        events["length saturation"] = int(step_S[np.argmax(smooth_S >= SATURATED * smooth_S.max())])
    collapse = collapse_step(curve)
    return events if collapse is None else {**events, FALL.name: collapse}


@dataclass(frozen=True)
class Lag:
    """Steps from one link to the next over the runs that have both: median and 95 % bootstrap interval."""

    first: str
    second: str
    runs: int
    median: float
    low: float
    high: float
    """NaN where fewer than two runs have both; the median too where none has."""


def lags(chains: Sequence[Chain], seed: int = 0) -> list[Lag]:
    """The lag of every pair of neighbouring links, between the middles of their onsets."""
    return [_lag(chains, one.name, two.name, seed) for one, two in pairwise(LINKS)]


@dataclass(frozen=True)
class Precedence:
    """How often one link came before another, and how rare that is when the times of each run are permuted."""

    first: str
    second: str
    runs: int
    """That have both."""
    before: int
    after: int
    p_value: float
    holm: float

    @property
    def share(self) -> float:
        """Share of those runs in which the first surely came first."""
        return self.before / self.runs


@dataclass(frozen=True)
class Order:
    """The order of links over runs."""

    pairs: tuple[Precedence, ...]
    """Every ordered pair of links that some run has, except the one that is in order by rule."""
    kept: int
    """Runs, of those with at least two links, whose links are all in order."""
    tied: int
    broken: int
    p_value: float
    """Of as many runs in order."""


def precedence(chains: Sequence[Chain], n: int = 9999, seed: int = 0) -> Order:
    """Which link precedes which, against runs whose times are permuted between their links (module docstring).

    Args:
        chains: One a run.
        n: Permutations.
        seed: Of the permutations.
    """
    names = [link.name for link in LINKS]
    bounds_RL2 = np.array([[_bounds(chain.onsets.get(name)) for name in names] for chain in chains])
    bounds_RL2 = bounds_RL2.reshape(len(chains), len(names), 2)
    rng = np.random.default_rng(seed)
    before_LL, null_NLL = _before(bounds_RL2).sum(axis=0), np.zeros((n, len(names), len(names)), np.int64)
    kept_N = np.zeros(n, np.int64)
    for bounds_L2 in bounds_RL2:
        place_P = np.flatnonzero(np.isfinite(bounds_L2[:, 0]))
        before_NPP = _before(_permuted(bounds_L2[place_P], place_P, n, rng))
        null_NLL[:, place_P[:, None], place_P] += before_NPP
        kept_N += _in_order(before_NPP)
    lead_LL, lead_NLL = before_LL - before_LL.T, null_NLL - null_NLL.transpose(0, 2, 1)
    p_LL = ((lead_NLL >= lead_LL).sum(axis=0) + 1) / (n + 1)
    verdicts = [chain.order for chain in chains]
    kept, tied, broken = (verdicts.count(one) for one in ("kept", "tied", "broken"))
    both_LL = np.isfinite(bounds_RL2[..., 0]).T.astype(int) @ np.isfinite(bounds_RL2[..., 0]).astype(int)
    pairs = _tested(names, both_LL, before_LL, p_LL)
    return Order(pairs, kept, tied, broken, float((np.sum(kept_N >= kept) + 1) / (n + 1)))


def _scores(curve: Curve) -> tuple[list[int], list[float]]:
    return [int(row["step"]) for row in curve], [np.nan if row[PASS] is None else float(row[PASS]) for row in curve]


def _column(link: Link, signals: Signals, curve: Curve) -> tuple[Any, Any]:
    return _scores(curve) if link.signal == PASS else (signals.step_S, signals[link.signal])


def _length_change(signals: Signals, curve: Curve, collapse: Onset | None) -> LengthChange:
    step_E, score_E = recorded(*_scores(curve))
    if step_E.size == 0:
        return LengthChange("unknown")
    step_S, length_S = recorded(signals.step_S, signals[GROWTH.signal])
    until = step_E[-1] if collapse is None else collapse.upper
    length_S = length_S[(step_S >= step_E[np.argmax(score_E)]) & (step_S <= until)]
    fewest, most = STRETCH
    if length_S.size < 2 * fewest:
        return LengthChange("unknown")
    size = min(most, length_S.size // 2)
    before, after = (float(np.median(part)) for part in (length_S[:size], length_S[-size:]))
    error = robust_deviation(np.diff(length_S)) / np.sqrt(size)  # a difference of two values has both their noises
    steady = abs(after - before) <= max(LENGTH_SHARE * before, LENGTH_ERRORS * error)
    return LengthChange("steady" if steady else "grows" if after > before else "shrinks", before, after)


def _lag(chains: Sequence[Chain], first: str, second: str, seed: int) -> Lag:
    lag_R = [
        chain.onsets[second].middle - chain.onsets[first].middle
        for chain in chains
        if first in chain.onsets and second in chain.onsets
    ]
    if len(lag_R) < 2:
        return Lag(first, second, len(lag_R), lag_R[0] if lag_R else np.nan, np.nan, np.nan)
    from scipy.stats import bootstrap  # half a second to load, and only a comparison of runs needs it

    sampled = bootstrap([lag_R], np.median, method="percentile", rng=np.random.default_rng(seed))
    low, high = sampled.confidence_interval
    return Lag(first, second, len(lag_R), float(np.median(lag_R)), float(low), float(high))


def _bounds(found: Onset | None) -> tuple[float, float]:
    return (np.nan, np.nan) if found is None else (found.lower, found.upper)


def _before(bounds_2: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the link of the row surely came before that of the column; never, where one did not happen."""
    return np.asarray(bounds_2[..., :, None, 1] <= bounds_2[..., None, :, 0])


def _in_order(before_PP: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether all pairs of links are in order; false with fewer than two links."""
    first, second = np.triu_indices(before_PP.shape[-1], k=1)
    return np.asarray(before_PP[..., first, second].all(axis=-1) & (first.size > 0))


def _permuted(
    bounds_P2: NDArray[np.float64], place_P: NDArray[np.int64], n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """``n`` times the onsets of a run in random order, "advantage gone" never before the spike."""
    bounds_NP2 = bounds_P2[rng.permuted(np.tile(np.arange(place_P.size), (n, 1)), axis=1)]
    spike, gone = (np.flatnonzero(place_P == LINKS.index(link)) for link in (SPIKE, GONE))
    if spike.size and gone.size:
        pair = np.concatenate([spike, gone])
        reversed_N = bounds_NP2[:, gone[0], 1] <= bounds_NP2[:, spike[0], 0]
        bounds_NP2[np.ix_(reversed_N, pair)] = bounds_NP2[np.ix_(reversed_N, pair[::-1])]
    return bounds_NP2


def _tested(
    names: Sequence[str], both_LL: NDArray[np.int64], before_LL: NDArray[np.int64], p_LL: NDArray[np.float64]
) -> tuple[Precedence, ...]:
    """The pairs that can be tested, with Holm's correction over them."""
    by_rule = {LINKS.index(SPIKE), LINKS.index(GONE)}
    places = [(a, b) for a, b in np.argwhere(both_LL > 0) if a != b and {a, b} != by_rule]
    if not places:
        return ()
    from statsmodels.stats.multitest import multipletests  # a second to load, as above

    holm = multipletests([p_LL[place] for place in places], method="holm")[1]
    return tuple(
        Precedence(
            names[a],
            names[b],
            int(both_LL[a, b]),
            int(before_LL[a, b]),
            int(before_LL[b, a]),
            float(p_LL[a, b]),
            float(corrected),
        )
        for (a, b), corrected in zip(places, holm, strict=True)
    )
