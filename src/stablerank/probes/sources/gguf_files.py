"""The tensors of one GGUF file under their Hugging Face names, dequantised one at a time.

Legend: O output features, I input features.

Contract: quantised blocks become fp32 by ``gguf.dequantize``, a block of rows at a time; F64, F32, F16, BF16 and
integers are kept. GGUF lists dimensions fastest first, so the shape is reversed to ``(O, I)``. Of the ``llama``
architecture the rows of ``attn_q`` and ``attn_k`` are stored permuted within each head. That changes no singular value,
yet would spoil any difference with another checkpoint, so it is undone.

The header is read here, and the package gives the numbers of the format: ``gguf.GGUFReader`` maps the file into memory,
refuses a cut-off file whole, and loops without end over an array whose length lies. Here every length is held against
the size of the file, and a cut-off file still offers the tensors that lie inside.

Numerics: a dequantised weight is what llama.cpp computes with, in fp32. Cost: one pass over the bytes, plus fp32 copy.

Left out on purpose: names of other families than the llama-like ones below are kept (GGUF re-orders their fused
attention, so that no rule for the Hugging Face layout may touch it); big-endian files; GGUF version 1.
"""

import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.sources.stored import FileContents, Problem, StoredTensor, read_span, sharing_bytes

LLAMA_LIKE = frozenset({"llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3"})
"""Values of ``general.architecture`` whose tensors have the names below."""

OUTER_NAMES = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
"""``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``; an expert stack keeps its three dimensions."""

SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Where gemma2 and gemma3 differ."""

_PLAIN = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.I64: torch.int64,
    GGMLQuantizationType.I32: torch.int32,
    GGMLQuantizationType.I16: torch.int16,
    GGMLQuantizationType.I8: torch.int8,
}
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEEPEST_ARRAY = 8
_BLOCK_ELEMENTS = 1 << 20
_AGAIN = "download or convert the file again"

Metadata = dict[str, object]
"""Single values and strings; an array is None."""


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file, and how its bytes become ``shape``; ``heads`` is 0 where no row is permuted."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    nbytes: int
    heads: int


def gguf_contents(file: Path) -> FileContents:
    """The tensors of ``file`` in the order of its header, and the problems of those that cannot be read.

    Raises:
        ModelError: the file cannot be opened, is not GGUF, or has a header that cannot be used at all.
    """
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            metadata, entries, data_start = _header(_Cursor(stream, size))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror or error}); make it a readable file.") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ModelError(f"{file} is not a whole GGUF file ({error}); {_AGAIN}.") from error
    return _contents(file, metadata, entries, data_start, size)


class _Cursor:
    """Reads little-endian numbers and strings, and raises ValueError instead of passing the end of the file."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size, self.position = stream, size, 0

    def skip(self, count: int) -> None:
        self._claim(count)
        self._stream.seek(count, 1)

    def take(self, count: int) -> bytes:
        self._claim(count)
        taken = self._stream.read(count)
        if len(taken) < count:
            raise ValueError("it became shorter while it was read")
        return taken

    def _claim(self, count: int) -> None:
        if count > self._size - self.position:
            raise ValueError(f"{count} bytes are announced at byte {self.position}, the file has {self._size}")
        self.position += count

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")


def _header(cursor: _Cursor) -> tuple[Metadata, list[_Entry], int]:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is none of {_VERSIONS}")
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    metadata: Metadata = {}
    for _ in range(value_count):
        key = cursor.text()
        metadata[key] = _value(cursor, cursor.number("I"))
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"general.alignment is {alignment!r}, not a positive number")
    return metadata, entries, cursor.position + -cursor.position % alignment


def _value(cursor: _Cursor, kind: int, depth: int = 0) -> object:
    if kind == GGUFValueType.STRING:
        return cursor.text()
    if kind in _SCALARS:
        return struct.unpack("<" + _SCALARS[GGUFValueType(kind)], cursor.take(_width(kind)))[0]
    if kind != GGUFValueType.ARRAY or depth > _DEEPEST_ARRAY:
        raise ValueError(f"value type {kind} at byte {cursor.position} is not known")
    item, count = cursor.number("I"), cursor.number("Q")
    if item in _SCALARS:
        cursor.skip(count * _width(item))
    else:  # every item takes at least eight bytes, so a count that lies runs into the end of the file
        for _ in range(count):
            _value(cursor, item, depth + 1)
    return None


def _width(kind: int) -> int:
    return struct.calcsize(_SCALARS[GGUFValueType(kind)])


def _entry(cursor: _Cursor) -> _Entry:
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions, more than {_MOST_DIMENSIONS}")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    return _Entry(name, cursor.number("I"), shape, cursor.number("Q"))


def _contents(file: Path, metadata: Metadata, entries: list[_Entry], data_start: int, size: int) -> FileContents:
    names = [_hugging_face_name(entry.name, metadata) for entry in entries]
    counts = Counter(names)
    places, problems = [], []
    for entry, name in zip(entries, names, strict=True):
        try:
            if counts[name] > 1:
                raise ModelError(f"The header names it {counts[name]} times; {_AGAIN}.")
            places.append(_place(entry, name, metadata, data_start, size))
        except ModelError as error:
            problems.append(Problem(str(file), name, str(error)))
    shared = sharing_bytes((place.name, place.begin, place.begin + place.nbytes) for place in places)
    problems += [
        Problem(str(file), name, f"It shares bytes with tensor {other!r}; {_AGAIN}.") for name, other in shared.items()
    ]
    return [_stored(file, place) for place in places if place.name not in shared], problems


def _hugging_face_name(name: str, metadata: Metadata) -> str:
    architecture = metadata.get("general.architecture")
    if architecture not in LLAMA_LIKE:
        return name
    names = BLOCK_NAMES | (SANDWICH_NORMS if architecture in ("gemma2", "gemma3") else {})
    stem, dot, ending = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in names:
        return f"model.layers.{block[1]}.{names[block[2]]}{dot}{ending}"
    return OUTER_NAMES.get(stem, stem) + dot + ending


def _place(entry: _Entry, name: str, metadata: Metadata, data_start: int, size: int) -> _Place:
    """The place, or a `ModelError` whose sentence is the reason of its problem."""
    kind = _kind(entry.kind)
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if entry.shape and entry.shape[-1] % block_elements:
        raise ModelError(f"Its rows of {entry.shape[-1]} do not divide into blocks of {block_elements}; {_AGAIN}.")
    nbytes, begin = math.prod(entry.shape) // block_elements * block_bytes, data_start + entry.offset
    if not entry.shape or 0 in entry.shape or begin + nbytes > size:
        raise ModelError(
            f"Its shape {list(entry.shape)} takes bytes {begin} to {begin + nbytes} of the file, "
            f"which has {size}; {_AGAIN}."
        )
    return _Place(name, kind, entry.shape, begin, nbytes, _permuted_heads(entry, metadata))


def _kind(number: int) -> GGMLQuantizationType:
    try:
        kind = GGMLQuantizationType(number)
        if kind not in _PLAIN:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"Its type {number} cannot be dequantised by this gguf package; upgrade gguf.") from error
    return kind


def _permuted_heads(entry: _Entry, metadata: Metadata) -> int:
    """How many heads the rows of a llama-type query or key are permuted within, or 0."""
    projection = re.fullmatch(r"blk\.\d+\.attn_([qk])\.weight", entry.name)
    if metadata.get("general.architecture") != "llama" or not projection or len(entry.shape) != 2:
        return 0
    heads = metadata.get("llama.attention.head_count")
    if projection[1] == "k":
        heads = metadata.get("llama.attention.head_count_kv", heads)
    if not isinstance(heads, int) or heads <= 0 or entry.shape[0] % (2 * heads):
        raise ModelError(
            f"Its {entry.shape[0]} rows are permuted within heads, but the file gives {heads!r} heads; {_AGAIN}."
        )
    return heads


def _stored(file: Path, place: _Place) -> StoredTensor:
    return StoredTensor(place.name, place.shape, place.kind.name, place.nbytes, file, partial(_read, file, place))


def _read(file: Path, place: _Place) -> Tensor:
    raw = read_span(file, place.begin, place.nbytes, place.name)
    plain = _PLAIN.get(place.kind)
    tensor = raw.view(plain).view(place.shape) if plain else _dequantised(raw, place)
    if not place.heads:
        return tensor
    # llama.cpp turns the two halves of each head into pairs; this turns pairs back into halves.
    return tensor.view(place.heads, -1, 2, place.shape[1]).transpose(1, 2).reshape(place.shape)


def _dequantised(raw: Tensor, place: _Place) -> Tensor:
    """In fp32, a block of rows at a time: the package needs several times the memory of what it returns."""
    columns = place.shape[-1]
    rows = math.prod(place.shape[:-1])
    blocks, step = raw.view(rows, -1).numpy(), max(1, _BLOCK_ELEMENTS // columns)
    weights = torch.empty(rows, columns)
    with np.errstate(all="ignore"):  # a scale that is not finite gives weights that are not finite, which are reported
        for start in range(0, rows, step):
            block = dequantize(blocks[start : start + step], place.kind)
            weights[start : start + step] = torch.from_numpy(block)
    return weights.view(place.shape)
