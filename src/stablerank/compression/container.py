"""The file: a safetensors container of three tensors that holds a whole adapter and says what it is.

Format, version 1. ``payload`` (bytes): the codes of each tensor, one after the other. ``side`` (bytes): codebooks and
scales, fp16, little-endian, in the same order. ``index`` (bytes): a zstd frame of JSON, ``{"config": PEFT's
adapter_config.json, "tensors": [records]}``. A record (tensors.py) names a tensor and the lengths and checksum of its
bytes. The safetensors metadata is for people and for tools that look first: one key, the format's name, with JSON of
version, method, base model, its fingerprint, and size and checksum of the index. (One key, because safetensors writes
several in an order that changes.)

Why three tensors and not two a tensor of the adapter: safetensors spends some 130 bytes of header on each, which is
more than a codebook of 5 bits and a tenth of a small adapter.

Contract: a file is written whole or not at all, and is the same for the same input. What is read has been checked:
container, index and each tensor, so that damage is refused and the damaged tensor is named.

Left out on purpose: repair; reading a part of the tensors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stablerank.compression.entropy import compressed, expanded
from stablerank.compression.tensors import EncodedTensor, Record, checksum, decode_tensor
from stablerank.errors import ModelError
from stablerank.runs.atomic import write_bytes

FORMAT, VERSION = "stablerank.compressed_adapter", 1
UNKNOWN = ""
"""The fingerprint of a base that could not be looked at."""
_PARTS = ("index", "payload", "side")


@dataclass(frozen=True)
class Account:
    """Where the bytes of a file are; the four parts are all of it."""

    payload: int
    codebooks: int
    """Codebooks and scales."""
    index: int
    header: int
    fp16: int
    """The size of a safetensors file of the adapter as it was, in fp16."""
    values: int
    """Numbers in the adapter as it was."""

    @property
    def file(self) -> int:
        """Bytes of the file."""
        return self.payload + self.codebooks + self.index + self.header

    @property
    def share(self) -> float:
        """The file's part of the fp16 file."""
        return self.file / self.fp16


@dataclass(frozen=True)
class Container:
    """What a file holds, decoded."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    records: tuple[Record, ...]
    base: str
    fingerprint: str
    """`stablerank.adapters.export.fingerprint` of the adapted weights of the base; empty if it is not known."""


def write_container(
    file: Path, config: Mapping[str, Any], encoded: Sequence[EncodedTensor], fingerprint: str
) -> dict[str, int]:
    """Write the file; the bytes of its parts ``payload``, ``side``, ``index`` and ``header``, counted before that."""
    rows = [tensor.record.row() for tensor in encoded]
    plain = json.dumps({"config": config, "tensors": rows}, separators=(",", ":")).encode()
    parts = {
        "index": compressed(plain),
        "payload": b"".join(tensor.payload for tensor in encoded),
        "side": b"".join(tensor.side for tensor in encoded),
    }
    metadata = {
        "version": VERSION,
        "method": ", ".join(sorted({f"{row.method} {row.bits} bits" for row in (t.record for t in encoded)})),
        "base": str(config.get("base_model_name_or_path") or ""),
        "base_fingerprint": fingerprint,
        "index_bytes": len(plain),
        "index_xxh32": checksum(parts["index"]),
    }
    arrays = {name: np.frombuffer(part, dtype=np.uint8) for name, part in parts.items()}
    whole = safetensors.numpy.save(arrays, metadata={FORMAT: json.dumps(metadata)})
    sizes = {name: len(part) for name, part in parts.items()}
    write_bytes(file, whole)
    return {**sizes, "header": len(whole) - sum(sizes.values())}


def read_container(file: Path) -> Container:
    """Read and check a file.

    Raises:
        ModelError: it is no compressed adapter, of a version that is not known, or damaged; the tensor is named.
    """
    metadata, parts = _opened(file)
    index = _index(file, metadata, parts["index"])
    try:
        records = tuple(Record.of_row(row) for row in index["tensors"])
        config = dict(index["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The index of {file} is damaged ({error}); copy the file again.") from error
    tensors = _decoded(file, records, parts)
    return Container(config, tensors, records, metadata.get("base", ""), metadata.get("base_fingerprint", UNKNOWN))


def is_container(file: Path) -> bool:
    """Whether it is a file of this format, damaged or not."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return FORMAT in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _opened(file: Path) -> tuple[dict[str, Any], dict[str, memoryview]]:
    try:
        with safe_open(file, framework="numpy") as opened:
            if FORMAT not in (opened.metadata() or {}):
                raise ModelError(f"{file} is no compressed adapter; give a file that `stablerank compress` wrote.")
            metadata = json.loads(opened.metadata()[FORMAT])
            if metadata.get("version") != VERSION:
                raise ModelError(
                    f"{file} is of version {metadata.get('version')!r} of the format, and this library reads "
                    f"{VERSION}; update stablerank."
                )
            return metadata, {name: memoryview(opened.get_tensor(name)) for name in _PARTS}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} cannot be read as safetensors ({error}); copy the file again.") from error


def _index(file: Path, metadata: Mapping[str, Any], frame: memoryview) -> dict[str, Any]:
    try:
        if checksum(frame) != metadata["index_xxh32"]:
            raise ValueError("its checksum does not fit its bytes")
        index: dict[str, Any] = json.loads(expanded(frame, metadata["index_bytes"]))
    except (KeyError, ValueError) as error:
        raise ModelError(f"The index of {file} is damaged ({error}); copy the file again.") from error
    return index


def _decoded(file: Path, records: Sequence[Record], parts: Mapping[str, memoryview]) -> dict[str, Tensor]:
    tensors = {}
    at = {"payload": 0, "side": 0}
    for record in records:
        pieces = {}
        for part, length in (("payload", record.payload), ("side", record.side)):
            pieces[part] = parts[part][at[part] : at[part] + length]
            at[part] += length
        try:
            tensors[record.name] = decode_tensor(record, pieces["payload"], pieces["side"])
        except ValueError as error:
            raise ModelError(f"Tensor {record.name} in {file} is damaged ({error}); copy the file again.") from error
    return tensors
