"""The zoo as rows, for ``stablerank zoo list``."""

from typing import Any

from stablerank.zoo.cache import PROVENANCE, folder_of
from stablerank.zoo.catalogue import ENTRIES, SCHEME, ZooEntry


def rows() -> list[dict[str, Any]]:
    """One row an entry: ``name, what, kind, bytes, cached, licence, folder``.

    ``bytes`` is the size on disk, or that of the download for a model that is not there yet. Nothing is hashed here.
    """
    return [_row(entry) for entry in ENTRIES.values()]


def _row(entry: ZooEntry) -> dict[str, Any]:
    folder = folder_of(entry)
    marker = "config.json" if entry.source is None else PROVENANCE
    cached = (folder / marker).is_file()
    download = entry.source.bytes if entry.source else 0
    return {
        "name": SCHEME + entry.name,
        "what": entry.summary,
        "kind": entry.kind,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()) if cached else download,
        "cached": cached,
        "licence": entry.licence,
        "folder": str(folder),
    }
