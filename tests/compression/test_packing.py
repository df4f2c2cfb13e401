"""Packed codes, against numpy's own bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.compression.entropy import LAYOUTS, compressed, expanded, read_codes, write_codes
from stablerank.compression.packing import pack, packed_bytes, unpack


def drawn(codes, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, codes).astype(np.uint8)


def by_numpy(codes_N, bits):
    """The same format through a matrix of single bits."""
    filled = np.pad(codes_N, (0, -len(codes_N) % 8))
    return np.packbits(np.unpackbits(filled[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little")


@settings(deadline=None)
@given(codes=st.integers(0, 200), bits=st.integers(1, 8), seed=st.integers(0, 9))
def test_packing_is_numpys_and_returns(codes, bits, seed):
    given_codes = drawn(codes, bits, seed)
    packed = pack(given_codes, bits)
    assert np.array_equal(packed, by_numpy(given_codes, bits))
    assert len(packed) == packed_bytes(codes, bits)
    assert np.array_equal(unpack(packed, bits, codes), given_codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_more_than_a_block_returns(bits):
    codes = drawn(3 * (1 << 16) + 5, bits)
    assert np.array_equal(pack(codes, bits), by_numpy(codes, bits))
    assert np.array_equal(unpack(pack(codes, bits), bits, len(codes)), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("spread", ["even", "peaked"])
def test_the_shortest_layout_returns(bits, spread):
    rng = np.random.default_rng(1)
    peaked = np.where(rng.random(20_000) < 0.1, rng.random(20_000), 0.6) * ((1 << bits) - 1)
    codes = drawn(20_000, bits) if spread == "even" else peaked.round().astype(np.uint8)
    layout, payload = write_codes(codes, bits, entropy=True)
    plain_layout, plain = write_codes(codes, bits, entropy=False)
    assert plain_layout == "packed"
    assert len(payload) <= len(plain) == packed_bytes(len(codes), bits)
    assert np.array_equal(read_codes(layout, payload, bits, len(codes)), codes)
    if spread == "peaked":
        assert len(payload) < 0.8 * len(plain)
        counts = np.bincount(codes) / len(codes)
        entropy = -(counts[counts > 0] * np.log2(counts[counts > 0])).sum() * len(codes) / 8
        assert len(payload) > entropy * 0.99, "no coder of single codes goes below their entropy"


def test_every_layout_is_used_somewhere():
    found = {write_codes(drawn(5000, 3), 3, entropy=True)[0]}
    found |= {write_codes(np.minimum(drawn(5000, bits), top), bits, entropy=True)[0] for bits, top in ((5, 20), (1, 0))}
    assert found == set(LAYOUTS)


@pytest.mark.parametrize("size", [0, 9, 11])
def test_a_frame_of_another_length_is_refused(size):
    with pytest.raises(ValueError, match="bytes"):
        read_codes("bytes+zstd", compressed(bytes(size)), 5, 10)


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match="zstd"):
        expanded(b"no frame", 8)
