"""Codes of a few bits without a gap between them.

Legend: N codes, W words of eight codes.

Format: eight codes of b bits are one little-endian number of b bytes, the first code in its lowest bits; the last word
is filled with zero codes.

Cost: a shift and a mask a code, in blocks that stay in the cache; no loop over codes.
"""

import numpy as np
from numpy.typing import NDArray

_PER_WORD = 8
_BLOCK = 1 << 13
"""Words at a time: half a megabyte of 64-bit numbers."""


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return -(-codes // _PER_WORD) * bits


def pack(codes_N: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes below 2^bits as bytes."""
    codes_W8 = np.pad(codes_N, (0, -len(codes_N) % _PER_WORD)).reshape(-1, _PER_WORD)
    shifts_8 = np.arange(_PER_WORD, dtype=np.uint64) * np.uint64(bits)
    parts = []
    for start in range(0, len(codes_W8), _BLOCK):
        words_W = np.bitwise_or.reduce(codes_W8[start : start + _BLOCK].astype("<u8") << shifts_8, axis=1)
        parts.append(words_W.view(np.uint8).reshape(-1, _PER_WORD)[:, :bits].reshape(-1))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, codes: int) -> NDArray[np.uint8]:
    """As many codes as were packed."""
    if bits == _PER_WORD:
        return packed[:codes]
    packed_Wb = packed.reshape(-1, bits)
    shifts_8 = np.arange(_PER_WORD, dtype=np.uint64) * np.uint64(bits)
    codes_W8 = np.empty((len(packed_Wb), _PER_WORD), dtype=np.uint8)
    bytes_W8 = np.zeros((min(_BLOCK, len(packed_Wb)), _PER_WORD), dtype=np.uint8)
    mask = np.uint64((1 << bits) - 1)
    for start in range(0, len(packed_Wb), _BLOCK):
        block_Wb = packed_Wb[start : start + _BLOCK]
        bytes_W8[: len(block_Wb), :bits] = block_Wb
        words_W1 = bytes_W8[: len(block_Wb)].view("<u8")
        codes_W8[start : start + _BLOCK] = (words_W1 >> shifts_8) & mask
    return codes_W8.reshape(-1)[:codes]
