"""What a checkpoint on disk offers: named tensors, each read alone when asked for, and what cannot be read.

Contract: listing a source reads headers only. ``StoredTensor.read`` opens the file, copies one tensor into private
memory and closes the file, so the peak is the largest tensor; everything here can be sent to another process.

Left out on purpose: memory maps. Their pages count as memory of the process, and a file that is cut off while it is
mapped ends the process with SIGBUS where a short read is one sentence.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablerank.errors import ModelError


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: as stored, or the Hugging Face name where the format has its own.
        shape: of the tensor that ``read`` returns.
        dtype: as the format calls it, such as ``BF16`` or ``Q4_1``.
        nbytes: bytes on disk.
        file: the file that holds it.
        read: a fresh writable copy in the dtype on disk (block-quantised GGUF: fp32); raises `ModelError` when the file
            cannot be read any more.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """Something that cannot be measured: a tensor, or with ``tensor=None`` a whole file; ``reason`` is one sentence."""

    file: str
    tensor: str | None
    reason: str


@dataclass(frozen=True)
class Source:
    """A checkpoint: its tensors in file order, what is wrong with it, and its ``config.json`` (empty without one)."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    problems: tuple[Problem, ...]
    config: Mapping[str, Any]


FileContents = tuple[list[StoredTensor], list[Problem]]
"""What one file holds and what is wrong in it."""


def read_span(file: Path, offset: int, nbytes: int, tensor: str) -> Tensor:
    """``nbytes`` bytes of ``file`` from ``offset`` on as a fresh 1-D uint8 tensor.

    Raises:
        ModelError: the file cannot be opened or ends too early; names the file and the ``tensor`` it was read for.
    """
    # Not a bytearray: that would be zero-filled first, one more pass over the memory.
    span = torch.empty(nbytes, dtype=torch.uint8)
    rest = memoryview(span.numpy().data)
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while rest:  # one call stops short at 2 GiB
                count = stream.readinto(rest)
                if not count:
                    raise ModelError(
                        f"{file} now ends {len(rest)} bytes before its tensor {tensor!r} of {nbytes} bytes does; "
                        "measure again when nothing writes to the file."
                    )
                rest = rest[count:]
    except OSError as error:
        raise ModelError(
            f"Tensor {tensor!r} of {file} cannot be read ({error.strerror or error}); make the file readable again."
        ) from error
    return span


def sharing_bytes(spans: Iterable[tuple[str, int, int]]) -> dict[str, str]:
    """Of spans ``(tensor, begin, end)`` those that overlap another: the tensor and one that it shares bytes with."""
    shared: dict[str, str] = {}
    last, last_end = "", 0
    for name, begin, end in sorted((span for span in spans if span[1] < span[2]), key=lambda span: span[1]):
        if begin < last_end:
            shared.setdefault(name, last)
            shared.setdefault(last, name)
        if end > last_end:
            last, last_end = name, end
    return shared
