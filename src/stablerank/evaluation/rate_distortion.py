"""How much smaller, at equal quality: the Bjøntegaard delta between two curves of quality over bytes.

Legend: P points of a curve.

Definition, p(Q) the curve of log10 bytes over quality, on the overlap of both curves' qualities::

    rate:     10^( mean over Q of p_test(Q) - p_anchor(Q) ) - 1      as a share, negative where test is smaller
    quality:  mean over log10 bytes of q_test - q_anchor             in the quality's unit, positive for a better test

Contract: a curve must rise. Points that cost more bytes than another of the same or a higher quality are dropped first
(what is left is the curve's front), and counted. Fewer than four points left, or no common range, is a status with
value NaN, never a number. ``overlap`` is the common range over the whole range of both: what a small one says is about
a corner of the curves.

Numerics: `bjontegaard` with piecewise cubics that keep monotony (PCHIP), fp64.

Source: Bjontegaard, VCEG-M33 (2001); PCHIP as in HEVC's common test conditions; METHODS.md 4.5. The paper of
SineLoRA-delta does not say what it does with points out of order.

Left out on purpose: one cubic through all points, which bends between them; extrapolation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import bjontegaard
import numpy as np
from scipy.stats import t

from stablerank.errors import DataError

LEAST_POINTS = 4
Status = Literal["known", "too few points", "no overlap"]


@dataclass(frozen=True)
class Curve:
    """Bytes and quality of the same method, point by point.

    Raises:
        DataError: lengths that differ, bytes that are not positive, or numbers that are not finite.
    """

    rates_P: tuple[float, ...]
    qualities_P: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the points."""
        if len(self.rates_P) != len(self.qualities_P):
            raise DataError(f"A curve has {len(self.rates_P)} rates and {len(self.qualities_P)} qualities; pair them.")
        if not all(map(math.isfinite, (*self.rates_P, *self.qualities_P))) or min(self.rates_P, default=1) <= 0:
            raise DataError("A curve needs positive bytes and finite qualities; leave points without them out.")

    def front(self) -> "Curve":
        """The points that no other point beats in both bytes and quality, by rising bytes."""
        kept: list[tuple[float, float]] = []
        for rate, quality in sorted(zip(self.rates_P, self.qualities_P, strict=True), key=lambda p: (p[0], -p[1])):
            if not kept or quality > kept[-1][1]:
                kept.append((rate, quality))
        return Curve(tuple(rate for rate, _ in kept), tuple(quality for _, quality in kept))


@dataclass(frozen=True)
class BjontegaardDelta:
    """The difference between two curves, and what it rests on."""

    value: float
    status: Status
    overlap: float
    points: tuple[int, int]
    """Of anchor and test, on their fronts."""
    dropped: tuple[int, int]


def delta_rate(anchor: Curve, test: Curve) -> BjontegaardDelta:
    """Bytes of ``test`` over those of ``anchor`` at equal quality, less one: -0.4 is 40 % smaller."""
    return _delta(anchor, test, "rate")


def delta_quality(anchor: Curve, test: Curve) -> BjontegaardDelta:
    """Quality of ``test`` less that of ``anchor`` at equal bytes."""
    return _delta(anchor, test, "quality")


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds with Student's 95 % interval; NaN bounds for fewer than two."""

    value: float
    low: float
    high: float
    seeds: int


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Over the seeds whose value is known."""
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) < 2:
        return SeedMean(float(known.mean()) if len(known) else math.nan, math.nan, math.nan, len(known))
    half = float(t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return SeedMean(float(known.mean()), float(known.mean()) - half, float(known.mean()) + half, len(known))


def _delta(anchor: Curve, test: Curve, kind: Literal["rate", "quality"]) -> BjontegaardDelta:
    fronts = anchor.front(), test.front()
    points = len(fronts[0].rates_P), len(fronts[1].rates_P)
    dropped = len(anchor.rates_P) - points[0], len(test.rates_P) - points[1]
    anchor_range, test_range = (
        front.qualities_P if kind == "rate" else tuple(map(math.log10, front.rates_P)) for front in fronts
    )
    overlap = _overlap(anchor_range, test_range) if min(points) else 0.0
    if min(points) < LEAST_POINTS or overlap == 0:
        status: Status = "too few points" if min(points) < LEAST_POINTS else "no overlap"
        return BjontegaardDelta(math.nan, status, overlap, points, dropped)
    sides = [side for front in fronts for side in (front.rates_P, front.qualities_P)]
    settings = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    value = bjontegaard.bd_rate(*sides, **settings) / 100 if kind == "rate" else bjontegaard.bd_psnr(*sides, **settings)
    return BjontegaardDelta(float(value), "known", overlap, points, dropped)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The common part of two ranges over both together."""
    common = min(max(one), max(other)) - max(min(one), min(other))
    whole = max(*one, *other) - min(*one, *other)
    return float(max(common, 0) / whole) if whole > 0 else 0.0
