"""First factors on disk, by content: a sweep over scales, learning rates or seeds factorises a weight once.

Contract: an entry is named after the bytes, shape and dtype of the weight, the method with those of its settings that
count, the rank, and `ALGORITHM`, which changes with the numbers that an initialiser gives. Scales are not part of it:
what is kept is the factors at scale 1. An entry carries the hash of its content; a damaged one is computed again and
replaced. A cache that cannot be written costs time and one warning, never a run.

Entries lie in ``factors/`` of the cache folder (``STABLERANK_CACHE``, else ``~/.cache/stablerank``); delete the folder
to clear them. They take as much room as the adapters, 20 MB for SmolLM2 at rank 16. ``STABLERANK_FACTORS_GB`` (2 if
unset) bounds the folder: what was used longest ago is removed first. 0 turns the cache off.

Concurrency: an entry arrives by one rename and is never changed, so that writers at once cost time only, and a reader
finds a whole entry or none.

Hash: xxh3 with 128 bits, at the speed of memory, where SHA-256 would take half the time that a second start saves. It
protects from accidents, not from forgery: whoever can write the folder could write the weights.

Left out on purpose: OLoRA and CorDA, which PEFT computes.
"""

import json
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stablerank.errors import RecipeError
from stablerank.zoo.cache import cache_folder

ALGORITHM = 1
Factors = tuple[Tensor, Tensor]


def cached_factors(weight_OI: Tensor, recipe: Mapping[str, Any], compute: Callable[[], Factors]) -> Factors:
    """The factors that ``compute`` gives for a weight, from disk where they have been computed before.

    Args:
        weight_OI: what is factorised.
        recipe: plain data that determines the factors: method, settings, rank.
        compute: gives fp32 factors on any device; they are returned on that of the weight.

    Raises:
        RecipeError: ``STABLERANK_FACTORS_GB`` is not a number.
    """
    limit = _limit()
    if limit == 0:
        return compute()
    place = cache_folder() / "factors" / f"{_name(weight_OI, recipe)}.safetensors"
    found = _read(place)
    if found is None:
        found = compute()
        _write(place, found, limit)
    return found[0].to(weight_OI.device), found[1].to(weight_OI.device)


def content_hash(*tensors: Tensor) -> str:
    """Hexadecimal xxh3 (128 bits) of the bytes of tensors, in row order."""
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name(weight_OI: Tensor, recipe: Mapping[str, Any]) -> str:
    whole = {
        "algorithm": ALGORITHM,
        "content": content_hash(weight_OI),
        "shape": list(weight_OI.shape),
        "dtype": str(weight_OI.dtype),
        "recipe": dict(recipe),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(whole, sort_keys=True).encode())


def _read(place: Path) -> Factors | None:
    """The entry, or None where there is none or its content is not what was written."""
    try:
        with safe_open(place, "pt") as file:
            factors = file.get_tensor("B0"), file.get_tensor("A0")
            if (file.metadata() or {}).get("content") != content_hash(*factors):
                return None
        os.utime(place)
    except (OSError, SafetensorError):
        return None
    return factors


def _write(place: Path, factors: Factors, limit: int) -> None:
    b_OR, a_RI = (factor.cpu().contiguous() for factor in factors)
    beside = place.with_name(f".{place.stem}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(save({"B0": b_OR, "A0": a_RI}, metadata={"content": content_hash(b_OR, a_RI)}))
        beside.replace(place)
        _make_room(place.parent, place.stat().st_size, limit)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            beside.unlink()
        warnings.warn(f"First factors are not cached: {error}", stacklevel=2)


_used: dict[Path, int] = {}
"""Bytes in a folder as this process knows: read once, then counted."""


def _make_room(folder: Path, added: int, limit: int) -> None:
    """Remove what was used longest ago until the folder is below the limit."""
    _used[folder] = _used[folder] + added if folder in _used else sum(size for _, size, _ in _entries(folder))
    if _used[folder] <= limit:
        return
    entries = sorted(_entries(folder))
    _used[folder] = sum(size for _, size, _ in entries)
    for _, size, path in entries:
        if _used[folder] <= limit:
            return
        path.unlink(missing_ok=True)
        _used[folder] -= size


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """Time of last use, bytes and place of every file; one that another process removes meanwhile is left out."""
    found = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((status.st_mtime, status.st_size, path))
    return found


def _limit() -> int:
    """Bytes that the folder may hold."""
    setting = os.environ.get("STABLERANK_FACTORS_GB") or "2"
    try:
        limit = int(float(setting) * 1e9)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise RecipeError(
            f"STABLERANK_FACTORS_GB is {setting!r}, but it must be a number of gigabytes of at least 0: "
            "unset it for 2, or set 0 to turn the cache of first factors off."
        )
    return limit
