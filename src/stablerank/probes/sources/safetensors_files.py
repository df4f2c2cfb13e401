"""The tensors of one safetensors file, every number of its header checked before it is believed.

Contract: the header is read here and not by the library, which refuses a file whole: here a bad tensor is a `Problem`
and the others stay readable. A tensor is refused for an unknown dtype, a span outside the file or of another size than
its shape, a name that comes twice, or bytes that another tensor claims too (both are refused: either may be the wrong
one). A cut-off file still offers the tensors that lie inside. Bytes that belong to no tensor, between two or after the
last, are a problem of the file, because the library refuses such a file; its tensors are offered all the same.

A name that comes twice with one span is accepted by the library (0.8.0) and refused here.

Numerics: none; bits are copied as they are. Cost: one pass over the bytes of a tensor.

Source: the format, https://huggingface.co/docs/safetensors (8-byte length, JSON header of at most 100 MB, data).

Left out on purpose: ``__metadata__``; sub-byte dtypes (F4, F6), which torch cannot hold; machines that are not
little-endian.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.sources.stored import FileContents, Problem, StoredTensor, read_span, sharing_bytes

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""What the library maps to torch."""

HEADER_LIMIT = 100_000_000
"""Bytes of header that the library accepts."""

_MOST_ELEMENTS = 2**62
_AGAIN = "download or save the file again"


@dataclass(frozen=True)
class _Entry:
    """A header entry whose numbers agree with each other; ``begin`` and ``end`` count from the first data byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def safetensors_contents(file: Path) -> FileContents:
    """The tensors of ``file`` in the order of its header, and the problems of those that cannot be read.

    Raises:
        ModelError: the file cannot be opened or its header cannot be used at all.
    """
    pairs, data_start, size = _header(file)
    entries, problems = _checked_entries(file, pairs, size - data_start)
    shared = sharing_bytes((entry.name, entry.begin, entry.end) for entry in entries)
    problems += [
        Problem(str(file), name, f"It shares bytes with tensor {other!r}; {_AGAIN}.") for name, other in shared.items()
    ]
    if not problems:
        problems += _unclaimed(file, entries, size - data_start)
    return [_stored(file, entry, data_start) for entry in entries if entry.name not in shared], problems


def _header(file: Path) -> tuple[tuple[tuple[str, object], ...], int, int]:
    """The ``(name, entry)`` pairs with repetitions, the offset of the first data byte, and the size of the file."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise ModelError(
                    f"{file} is not a whole safetensors file: it has {size} bytes and announces a header of {length}, "
                    f"at most {HEADER_LIMIT}; {_AGAIN}."
                )
            header = stream.read(length)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror or error}); make it a readable file.") from error
    return _pairs(file, header), 8 + length, size


def _pairs(file: Path, header: bytes) -> tuple[tuple[str, object], ...]:
    try:
        # JSON objects become tuples of pairs and arrays become lists, so that a name that comes twice is seen.
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=tuple)
        if not isinstance(parsed, tuple):
            raise ValueError("not a JSON object")
        "".join(name for name, _ in parsed).encode("utf-8")  # half of a surrogate pair could never be printed
    except (ValueError, RecursionError) as error:
        raise ModelError(f"The header of {file} is not a JSON object in UTF-8 ({_short(error)}); {_AGAIN}.") from error
    return tuple(pair for pair in parsed if pair[0] != "__metadata__")


def _short(error: Exception) -> str:
    """The message without the bytes that a decoding error carries along."""
    return str(error).split(": ")[-1] if isinstance(error, UnicodeError) else str(error)


def _checked_entries(
    file: Path, pairs: tuple[tuple[str, object], ...], data_bytes: int
) -> tuple[list[_Entry], list[Problem]]:
    counts = Counter(name for name, _ in pairs)
    entries, problems = [], []
    for name, value in dict(pairs).items():
        try:
            if counts[name] > 1:
                raise ModelError(f"The header names it {counts[name]} times; {_AGAIN}.")
            entries.append(_entry(name, value, data_bytes))
        except ModelError as error:
            problems.append(Problem(str(file), name, str(error)))
    return entries, problems


def _entry(name: str, value: object, data_bytes: int) -> _Entry:
    """The entry, or a `ModelError` whose sentence is the reason of its problem."""
    fields = dict(value) if isinstance(value, tuple) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ModelError(f"Its header entry lacks a dtype, a shape or two offsets that are whole numbers; {_AGAIN}.")
    if dtype not in DTYPES:
        raise ModelError(f"Its dtype {dtype!r} is none of {', '.join(DTYPES)}; save it in one of these.")
    if math.prod(max(length, 1) for length in shape) > _MOST_ELEMENTS:
        raise ModelError(f"Its shape has more than {_MOST_ELEMENTS} elements; {_AGAIN}.")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise ModelError(f"Its header gives it {end - begin} bytes, but {shape} of {dtype} needs {needed}; {_AGAIN}.")
    if end > data_bytes:
        raise ModelError(f"It ends at byte {end} of the data, of which the file has {data_bytes}; {_AGAIN}.")
    return _Entry(name, dtype, tuple(shape), begin, end)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unclaimed(file: Path, entries: list[_Entry], data_bytes: int) -> list[Problem]:
    spans = sorted((entry.begin, entry.end) for entry in entries if entry.begin < entry.end)
    edges = [(0, 0), *spans, (data_bytes, data_bytes)]
    holes = [(before[1], after[0]) for before, after in pairwise(edges) if before[1] < after[0]]
    if not holes:
        return []
    count = sum(end - begin for begin, end in holes)
    reason = f"{count} of its bytes, the first at {holes[0][0]} of the data, belong to no tensor; {_AGAIN}."
    return [Problem(str(file), None, reason)]


def _stored(file: Path, entry: _Entry, data_start: int) -> StoredTensor:
    nbytes = entry.end - entry.begin
    read = partial(_read, file, data_start + entry.begin, nbytes, entry.name, DTYPES[entry.dtype], entry.shape)
    return StoredTensor(entry.name, entry.shape, entry.dtype, nbytes, file, read)


def _read(file: Path, offset: int, nbytes: int, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return read_span(file, offset, nbytes, name).view(dtype).view(shape)
