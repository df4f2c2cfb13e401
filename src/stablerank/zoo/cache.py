"""The cache of fetched models: where it lies, and whether a folder in it is still what was written.

Every cached folder holds a ``provenance.json`` with the size and SHA-256 of each file beside it. Checking 270 MB takes
under a second, so a copy is checked in full each time it is resolved.

Left out on purpose: locks. A folder arrives by one rename, so two fetches at once cost time and never a torn folder.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from stablerank.zoo.catalogue import ZooEntry

PROVENANCE = "provenance.json"


def cache_folder() -> Path:
    """``STABLERANK_CACHE``, else ``~/.cache/stablerank``; it need not exist yet."""
    return Path(os.environ.get("STABLERANK_CACHE") or "~/.cache/stablerank").expanduser()


def folder_of(entry: ZooEntry) -> Path:
    """Where the entry's files are, or would be once fetched."""
    return entry.embedded_folder if entry.source is None else cache_folder() / "zoo" / entry.name


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_provenance(folder: Path, origin: dict[str, Any]) -> None:
    """Record where the folder came from and the size and hash of every file in it; the last write to a folder."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != PROVENANCE
    }
    (folder / PROVENANCE).write_text(json.dumps({"origin": origin, "files": files}, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a cached folder, in a few words, or None where every file is as it was written."""
    recorded = _recorded_files(folder)
    if recorded is None:
        return f"{PROVENANCE} is missing or unreadable"
    # Sizes of all files before the hash of any: a cut-off file is then found without reading the others.
    for name, wanted in recorded.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {wanted['size']}"
    changed = [name for name, wanted in recorded.items() if sha256(folder / name) != wanted["sha256"]]
    return f"{changed[0]} has another SHA-256 than recorded" if changed else None


def _recorded_files(folder: Path) -> dict[str, dict[str, Any]] | None:
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files
