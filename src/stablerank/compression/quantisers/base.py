"""What every quantiser is: values by groups to codes of a few bits, with fp16 numbers a group to read them by.

Legend: G groups, N values of a group, S side numbers of a group, L = 2^bits levels.

Contract: values are fp32 in [-1, 1]: the codec scales a tensor by a power of two, which is exact, so that fp16 side
numbers keep their 11 bits. ``encode`` fits the side numbers, rounds them to fp16, and only then chooses codes, so that
what it chooses from is what ``decode`` gives. ``decode`` takes the side numbers scaled back, in fp32; values are linear
in them. It is the only definition of a value: a file is exact if codes and side numbers are.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Side = NDArray[np.float16]
Values = NDArray[np.float32]
_BLOCK = 1 << 15


class Quantiser(Protocol):
    """A rule that gives each value one of 2^bits levels of its group."""

    bits: tuple[int, ...]
    """The numbers of bits it has."""

    def side_numbers(self, bits: int) -> int:
        """S."""

    def encode(self, values_GN: Values, bits: int) -> tuple[Codes, Side]:
        """Codes ``(G, N)`` below 2^bits and side numbers ``(G, S)``."""

    def decode(self, codes_GN: Codes, side_GS: Values, bits: int) -> Values:
        """Values ``(G, N)``."""


def divisor(scale_G1: Values) -> Values:
    """The scale, and 1 for a group of zeros."""
    return np.where(scale_G1 > 0, scale_G1, np.float32(1))


def look_up(levels_L: Values, codes_GN: Codes) -> Values:
    """The level of each code, in blocks, because `numpy.take` makes a 64-bit copy of what it is given."""
    codes_N = codes_GN.reshape(-1)
    values_N = np.empty(codes_N.shape, dtype=np.float32)
    for start in range(0, len(codes_N), _BLOCK):
        block = slice(start, start + _BLOCK)
        np.take(levels_L, codes_N[block], out=values_N[block], mode="clip")  # without `clip` it copies `out`
    return values_N.reshape(codes_GN.shape)


def nearest(values_N: Values, levels_L: Values) -> Codes:
    """The index of the nearest of ascending levels; a tie goes to the lower one."""
    midpoints = (levels_L[1:].astype(np.float64) + levels_L[:-1]) / 2
    return np.searchsorted(midpoints, values_N, side="left").astype(np.uint8)
