"""Evenly spaced levels: affine between a group's least and largest value, symmetric about zero.

Legend: G groups, N values of a group.

Affine: ``low + code * step`` with ``step = (high - low) / (2^bits - 1)``. Symmetric: ``(code - (2^bits - 1) / 2) *
step`` with the outermost levels at plus and minus the largest magnitude, the mid-rise form, which has its 2^bits levels
at every number of bits (at one bit, the sign) and no level at zero.

Numerics: the step is rounded to fp16 before the codes are chosen; at 8 bits that moves the outermost level by at most
an eighth of a step.

Left out on purpose: clipping of outliers, which is what k-means and groups are for; the mid-tread form, which wastes a
level and has a single one at one bit.
"""

import numpy as np

from stablerank.compression.quantisers.base import Codes, Side, Values, divisor


class Affine:
    """Two side numbers a group: the least value and the step."""

    bits: tuple[int, ...] = tuple(range(1, 9))

    def side_numbers(self, bits: int) -> int:
        """Low and step."""
        return 2

    def encode(self, values_GN: Values, bits: int) -> tuple[Codes, Side]:
        """Round to the nearest level."""
        low_G, high_G = values_GN.min(axis=1), values_GN.max(axis=1)
        low_G = low_G.astype(np.float16).astype(np.float32)
        side_GS = np.stack([low_G, (high_G - low_G) / ((1 << bits) - 1)], axis=1).astype(np.float16)
        low_G1, step_G1 = np.split(side_GS.astype(np.float32), 2, axis=1)
        return _codes((values_GN - low_G1) / divisor(step_G1), bits), side_GS

    def decode(self, codes_GN: Codes, side_GS: Values, bits: int) -> Values:
        """``low + code * step``."""
        low_G1, step_G1 = np.split(side_GS, 2, axis=1)
        values_GN = codes_GN.astype(np.float32)
        values_GN *= step_G1
        values_GN += low_G1
        return values_GN


class Symmetric:
    """One side number a group: the step."""

    bits: tuple[int, ...] = tuple(range(1, 9))

    def side_numbers(self, bits: int) -> int:
        """The step."""
        return 1

    def encode(self, values_GN: Values, bits: int) -> tuple[Codes, Side]:
        """Round to the nearest level."""
        middle = _middle(bits)
        side_G1 = (np.abs(values_GN).max(axis=1, keepdims=True) / middle).astype(np.float16)
        step_G1 = side_G1.astype(np.float32)
        return _codes(values_GN / divisor(step_G1) + middle, bits), side_G1

    def decode(self, codes_GN: Codes, side_GS: Values, bits: int) -> Values:
        """``(code - middle) * step``."""
        values_GN = codes_GN.astype(np.float32)
        values_GN -= np.float32(_middle(bits))
        values_GN *= side_GS
        return values_GN


def _middle(bits: int) -> float:
    return ((1 << bits) - 1) / 2


def _codes(steps_GN: Values, bits: int) -> Codes:
    return np.clip(np.rint(steps_GN), 0, (1 << bits) - 1).astype(np.uint8)
