"""NF4: sixteen fixed levels at quantiles of the normal distribution, times a group's largest magnitude.

Source: QLoRA (2305.14314), section 3 and appendix E; the levels are those of `bitsandbytes`, which a test compares.

Left out on purpose: other numbers of bits, which QLoRA does not define; double quantisation of the scales.
"""

import numpy as np
from scipy.special import ndtri

from stablerank.compression.quantisers.base import Codes, Side, Values, divisor, look_up, nearest

_OUTERMOST = 0.9677083
"""The probability of QLoRA's outermost level, the mean of those of the 15 and the 16 level code."""


def levels() -> Values:
    """Eight levels above zero, zero, and seven below, the largest magnitude 1; ascending."""
    above = ndtri(np.linspace(_OUTERMOST, 0.5, 9)[:-1])
    below = -ndtri(np.linspace(_OUTERMOST, 0.5, 8)[:-1])
    found = np.sort(np.concatenate([above, [0.0], below]))
    return (found / found.max()).astype(np.float32)


class NormalFloat:
    """One side number a group: its largest magnitude."""

    bits: tuple[int, ...] = (4,)

    def side_numbers(self, bits: int) -> int:
        """The largest magnitude."""
        return 1

    def encode(self, values_GN: Values, bits: int) -> tuple[Codes, Side]:
        """The nearest level of each value over the largest magnitude."""
        side_G1 = np.abs(values_GN).max(axis=1, keepdims=True).astype(np.float16)
        scale_G1 = side_G1.astype(np.float32)
        return nearest(values_GN / divisor(scale_G1), levels()), side_G1

    def decode(self, codes_GN: Codes, side_GS: Values, bits: int) -> Values:
        """Level times magnitude."""
        values_GN = look_up(levels(), codes_GN)
        values_GN *= side_GS
        return values_GN
