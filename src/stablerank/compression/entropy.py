"""The shortest of three layouts of a tensor's codes: packed bits, and zstd on packed bits or on one byte a code.

Why three: levels of a codebook are not used equally often, which zstd's Huffman stage turns into bytes where a code is
a byte of its own; packed bits are shorter at one bit, and where codes are spread evenly. Which one it was is noted.

Source: Zstandard (RFC 8878) by the `zstandard` package.

Left out on purpose: an arithmetic coder, which would save the Huffman code's last fraction of a bit a code (under 1 %
at 3 bits and more) and decode many times slower; coding one code in the light of its neighbours, as factors are noise.
"""

from typing import Literal, get_args

import numpy as np
import zstandard
from numpy.typing import NDArray

from stablerank.compression.packing import pack, packed_bytes, unpack

Layout = Literal["packed", "packed+zstd", "bytes+zstd"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_LEVEL = 9


def write_codes(codes_N: NDArray[np.uint8], bits: int, *, entropy: bool) -> tuple[Layout, bytes]:
    """The shortest layout; with ``entropy`` off, packed bits."""
    packed = pack(codes_N, bits).tobytes()
    found: dict[Layout, bytes] = {"packed": packed}
    if entropy:
        found["packed+zstd"] = compressed(packed)
        found["bytes+zstd"] = compressed(codes_N.tobytes())
    layout = min(found, key=lambda name: len(found[name]))
    return layout, found[layout]


def read_codes(layout: Layout, payload: bytes | memoryview, bits: int, codes: int) -> NDArray[np.uint8]:
    """What `write_codes` was given.

    Raises:
        ValueError: the payload is not of that length once it is unpacked, or not zstd's.
    """
    wanted = codes if layout == "bytes+zstd" else packed_bytes(codes, bits)
    plain = np.frombuffer(payload if layout == "packed" else expanded(payload, wanted), dtype=np.uint8)
    if len(plain) != wanted:
        raise ValueError(f"{len(plain)} bytes of codes where {wanted} belong")
    return plain if layout == "bytes+zstd" else unpack(plain, bits, codes)


def compressed(plain: bytes) -> bytes:
    """One zstd frame without a checksum, for the container has its own."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=False).compress(plain)


def expanded(frame: bytes | memoryview, size: int) -> bytes:
    """The content of a frame, at most ``size`` bytes of it.

    Raises:
        ValueError: it is not a whole zstd frame, or holds more.
    """
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1))
    except zstandard.ZstdError as error:
        raise ValueError(f"not a zstd frame of {size} bytes ({error})") from error
