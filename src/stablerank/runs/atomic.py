"""Files and folders that are either whole or absent: written beside their place, then renamed over it."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stablerank.errors import RunFolderError


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step; a kill at any moment leaves the old file or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by indented JSON in one step; NaN is written as NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def refuse_occupied(out: Path) -> None:
    """Refuse a place that holds something, or cannot be a folder; nothing is made yet.

    Raises:
        RunFolderError: ``out`` is a file, a folder that is not empty, or below something that is not a folder.
    """
    nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise RunFolderError(f"{out} cannot be made a folder ({nearest} is a file); choose another one with `--out`.")
    if nearest == out and any(out.iterdir()):
        raise RunFolderError(f"{out} is not empty; choose another folder with `--out`.")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``out`` when the block ends well, and goes without a trace otherwise.

    Raises:
        RunFolderError: ``out`` is occupied (see `refuse_occupied`) or cannot be written.
    """
    refuse_occupied(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise RunFolderError(f"{out} cannot be written ({error.strerror}); choose another one with `--out`.") from error
    try:
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
