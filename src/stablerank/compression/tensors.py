"""One tensor to bytes and back: scale, groups, codes, side numbers.

Legend: G groups, N values of a group, S side numbers of a group.

Contract: `decode_tensor` gives the same values on every machine, from the record and the bytes alone. A tensor is
scaled by a power of two to magnitudes of at most 1, split into groups (the last one filled up by its last value),
quantised, and its codes laid out by entropy.py. Side numbers are fp16. ``fp16`` has neither codes nor side numbers:
the scaled values themselves are the payload. A tensor whose codes and side numbers would take more than that (a
codebook of 256 levels for 500 values) is written so whatever the method.

Numerics: fp32 throughout; of the scaled values fp16 keeps 11 bits, down to 2^-14 of the largest. Values come back in
the dtype that the tensor had.

Cost: decoding reads each code once and looks it up; it makes fp32 values, then converts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from stablerank.compression.entropy import LAYOUTS, Layout, compressed, expanded, read_codes, write_codes
from stablerank.compression.quantisers.methods import QUANTISERS
from stablerank.compression.spec import FULL, FULL_BITS, CompressionSpec, Group, Method
from stablerank.errors import ModelError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_Values = NDArray[np.float32]


@dataclass(frozen=True)
class Record:
    """What the index says about a tensor; everything but its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    bits: int
    group: Group
    exponent: int
    """The values are 2^exponent times what codes and side numbers say."""
    layout: Layout
    payload: int
    """Bytes of codes."""
    side: int
    """Bytes of side numbers."""
    checksum: int
    """xxh32 of payload and side numbers."""

    def row(self) -> list[Any]:
        """A list, for the index."""
        return [getattr(self, name) for name in self.__dataclass_fields__]

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "Record":
        """Back from a row; raises `ValueError` where it is none."""
        if len(row) != len(cls.__dataclass_fields__):
            raise ValueError(f"{len(row)} fields in a row of the index")
        record = cls(**{**dict(zip(cls.__dataclass_fields__, row, strict=True)), "shape": tuple(row[2])})
        known = record.dtype in _DTYPES and record.layout in LAYOUTS and record.method in (FULL, *QUANTISERS)
        if not known or min(record.payload, record.side, *record.shape, 0) < 0:
            raise ValueError(f"a row of the index that means nothing ({record.name})")
        return record


@dataclass(frozen=True)
class EncodedTensor:
    """A record and its bytes."""

    record: Record
    payload: bytes
    side: bytes


def encode_tensor(name: str, tensor: Tensor, spec: CompressionSpec) -> EncodedTensor:
    """Quantise and lay out one tensor.

    Raises:
        ModelError: it is not of floating point, or not finite.
    """
    if tensor.dtype not in _NAMES:
        raise ModelError(f"Tensor {name} is of {tensor.dtype}; an adapter with numbers of floating point is wanted.")
    if not tensor.isfinite().all():
        raise ModelError(f"Tensor {name} holds numbers that are not finite; compress an adapter that works.")
    exponent, scaled = _scaled(tensor)
    method: Method = FULL
    bits = FULL_BITS
    layout, payload, side = _full(scaled, entropy=spec.entropy)
    if spec.method != FULL and tensor.numel():
        shorter = _quantised(scaled, tensor, spec)
        if len(shorter[1]) + len(shorter[2]) < len(payload):
            method, bits = spec.method, spec.bits or FULL_BITS
            layout, payload, side = shorter
    fields = (_NAMES[tensor.dtype], tuple(tensor.shape), method, bits, spec.group, exponent, layout)
    return EncodedTensor(Record(name, *fields, len(payload), len(side), checksum(payload, side)), payload, side)


def decode_tensor(record: Record, payload: bytes | memoryview, side: bytes | memoryview) -> Tensor:
    """The tensor in its dtype.

    Raises:
        ValueError: the bytes do not fit the record.
    """
    if checksum(payload, side) != record.checksum:
        raise ValueError("its checksum does not fit its bytes")
    size = math.prod(record.shape)
    scale = np.float32(2.0**record.exponent)
    if record.method == FULL:
        plain = payload if record.layout == "packed" else expanded(payload, 2 * size)
        values = np.frombuffer(plain, dtype="<f2").astype(np.float32) * scale
    else:
        quantiser = QUANTISERS[record.method]
        groups, length = _grid(record.shape, record.group)
        codes = read_codes(record.layout, payload, record.bits, size)
        filled = codes if groups * length == size else np.pad(codes, (0, groups * length - size))
        side_GS = np.frombuffer(side, dtype="<f2").astype(np.float32).reshape(groups, -1) * scale
        if side_GS.shape[1] != quantiser.side_numbers(record.bits):
            raise ValueError(f"{side_GS.size} side numbers, which {groups} groups do not have")
        values = quantiser.decode(filled.reshape(groups, length), side_GS, record.bits).reshape(-1)[:size]
    return torch.from_numpy(values.reshape(record.shape)).to(_DTYPES[record.dtype])


def checksum(*parts: bytes | memoryview) -> int:
    """xxh32 of bytes one after the other."""
    hasher = xxhash.xxh32()
    for part in parts:
        hasher.update(part)
    return int(hasher.intdigest())


def _scaled(tensor: Tensor) -> tuple[int, _Values]:
    """The exponent of the least power of two that no magnitude exceeds, and the values over it."""
    values: _Values = tensor.detach().to("cpu", torch.float32).numpy()
    largest = float(np.abs(values).max(initial=0.0))
    mantissa, exponent = math.frexp(largest)
    exponent = max(exponent - (mantissa == 0.5), -126)
    return exponent, np.ldexp(values, -exponent)


def _full(scaled: _Values, *, entropy: bool) -> tuple[Layout, bytes, bytes]:
    plain = scaled.astype("<f2").tobytes()
    shorter = compressed(plain) if entropy else plain
    return ("packed+zstd", shorter, b"") if len(shorter) < len(plain) else ("packed", plain, b"")


def _quantised(scaled: _Values, tensor: Tensor, spec: CompressionSpec) -> tuple[Layout, bytes, bytes]:
    groups, length = _grid(tuple(tensor.shape), spec.group)
    flat = scaled.reshape(-1)
    values_GN = np.pad(flat, (0, groups * length - flat.size), mode="edge").reshape(groups, length)
    bits = spec.bits or FULL_BITS
    codes_GN, side_GS = QUANTISERS[spec.method].encode(values_GN, bits)
    layout, payload = write_codes(codes_GN.reshape(-1)[: flat.size], bits, entropy=spec.entropy)
    return layout, payload, side_GS.astype("<f2").tobytes()


def _grid(shape: tuple[int, ...], group: Group) -> tuple[int, int]:
    """Groups, and values of each, the filling included."""
    size = math.prod(shape)
    if group == "tensor":
        return 1, size
    if group == "row":
        return shape[0], size // shape[0]
    return -(-size // int(group)), int(group)
