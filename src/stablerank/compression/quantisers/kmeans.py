"""The codebook of least squared error: one-dimensional k-means, a codebook of 2^bits levels a group.

Legend: G groups, N values of a group, L levels, P points of the sketch.

Numerics: the optimum over points with weights is exact (dynamic programme of `ckwrap`, fp64). Up to `SKETCH` different
values the points are the values; more are averaged in cells first, half of them of equal width and half of equal
number, so that neither the bulk nor a tail is coarse, and Lloyd's iteration on all values starts from that optimum: on
sorted values an iteration is two look-ups in prefix sums, and it runs until no boundary moves. Deterministic. Levels
are rounded to fp16 before values are assigned to them.

Cost: the sort O(N log N), the programme O(L P), an iteration O(L log N).

Source: SineLoRA-delta (2505.21895) quantises A and B by k-means; METHODS.md 4.4. Exact programme: Wang & Song 2011,
Ckmeans.1d.dp.

Left out on purpose: random starts (k-means++), which the exact start makes needless; weights by sensitivity.
"""

import ckwrap
import numpy as np
from numpy.typing import NDArray

from stablerank.compression.quantisers.base import Codes, Side, Values, look_up, nearest

SKETCH = 1 << 13
_ITERATIONS = 500


class KMeans:
    """Levels where the values are."""

    bits: tuple[int, ...] = tuple(range(1, 9))

    def side_numbers(self, bits: int) -> int:
        """A codebook."""
        return 1 << bits

    def encode(self, values_GN: Values, bits: int) -> tuple[Codes, Side]:
        """Fit a codebook a group."""
        side_GL = np.stack([codebook(group_N, 1 << bits) for group_N in values_GN])
        pairs = zip(values_GN, side_GL.astype(np.float32), strict=True)
        return np.stack([nearest(group_N, levels_L) for group_N, levels_L in pairs]), side_GL

    def decode(self, codes_GN: Codes, side_GS: Values, bits: int) -> Values:
        """Look levels up."""
        if len(side_GS) == 1:
            return look_up(side_GS[0], codes_GN)
        return np.take_along_axis(side_GS, codes_GN.astype(np.intp), axis=1)


def codebook(values_N: Values, levels: int) -> NDArray[np.float16]:
    """Ascending levels; where there are fewer different values than levels, the last one again."""
    points_P, counts_P = np.unique(values_N.astype(np.float64), return_counts=True)
    centres_L = points_P
    if len(points_P) > levels:
        sketch = (points_P, counts_P) if len(points_P) <= SKETCH else _sketch(points_P, counts_P)
        centres_L = np.sort(ckwrap.ckmeans(sketch[0], levels, weights=sketch[1].astype(np.float64)).centers)
    if len(points_P) > SKETCH:
        centres_L = _lloyd(np.sort(values_N.astype(np.float64)), centres_L)
    rounded = np.sort(centres_L.astype(np.float16))
    return np.pad(rounded, (0, levels - len(rounded)), mode="edge")


def _sketch(points_P: NDArray[np.float64], counts_P: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Means and counts of cells."""
    wide = np.searchsorted(points_P, np.linspace(points_P[0], points_P[-1], SKETCH // 2)[1:])
    even = np.linspace(0, len(points_P), SKETCH // 2, endpoint=False).astype(np.intp)
    starts = np.unique(np.concatenate([[0], wide, even]))
    counts = np.add.reduceat(counts_P, starts)
    return np.add.reduceat(points_P * counts_P, starts) / counts, counts


def _lloyd(ordered_N: NDArray[np.float64], centres_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lloyd's iteration on sorted values; a level that loses all of its values stays where it is."""
    sums = np.concatenate([[0.0], np.cumsum(ordered_N)])
    edges = np.empty(0, dtype=np.intp)
    for _ in range(_ITERATIONS):
        inner = np.searchsorted(ordered_N, (centres_L[1:] + centres_L[:-1]) / 2)
        moved = np.concatenate([[0], inner, [len(ordered_N)]])
        if np.array_equal(moved, edges):
            break
        edges = moved
        counts_L = np.diff(edges)
        centres_L = np.where(counts_L > 0, np.diff(sums[edges]) / np.maximum(counts_L, 1), centres_L)
    return centres_L
