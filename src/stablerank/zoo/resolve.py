"""From what a recipe calls a model to what ``from_pretrained`` takes, checked before anything heavy is loaded.

A local folder is checked down to the headers of its safetensors files, so that a cut-off download is one sentence now
and not a traceback after a minute of imports.

Left out on purpose: weights as pickle (``pytorch_model.bin``). Unpickling runs code of whoever wrote the file.
"""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from stablerank.errors import ModelError
from stablerank.zoo.cache import folder_of
from stablerank.zoo.catalogue import SCHEME, entry
from stablerank.zoo.fetch import Progress, fetch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")


def resolve(path: str, progress: Progress | None = None) -> str:
    """A folder with a model in it, or a hub id.

    Args:
        path: ``zoo:NAME`` (fetched now if need be), a local folder, or a hub id, which is returned unchanged.
        progress: see `stablerank.zoo.fetch.fetch`.

    Raises:
        ModelError: an unknown zoo name, a folder that is missing or not a whole safetensors model, or a name that can
            be neither a folder nor a hub id.
    """
    if path.startswith(SCHEME):
        return str(check_folder(_zoo_folder(path, progress)))
    folder = Path(path).expanduser()
    if folder.exists():
        return str(check_folder(folder))
    if _HUB_ID.fullmatch(path):
        return path
    raise ModelError(f"Model folder {path!r} does not exist; give zoo:NAME, an existing folder or a hub id.")


def check_folder(folder: Path) -> Path:
    """The folder itself, if it holds ``config.json`` and whole safetensors weights; raises `ModelError` otherwise."""
    if not folder.is_dir():
        raise ModelError(f"Model {folder} is a file; give the folder with its config.json and safetensors weights.")
    _check_config(folder)
    for file in _weight_files(folder):
        _check_header(file)
    return folder


def _zoo_folder(path: str, progress: Progress | None) -> Path:
    chosen = entry(path)
    if chosen.source is not None:
        return fetch(chosen.name, progress)
    folder = folder_of(chosen)
    if not folder.is_dir():
        raise ModelError(f"{path} is missing from this installation ({folder}); reinstall stablerank.")
    return folder


def _check_config(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"Model folder {folder} has no config.json; {_way_out(folder)}.")
    try:
        readable = isinstance(json.loads(config.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        readable = False
    if not readable:
        raise ModelError(f"{config} is not a JSON object; save the model again with `save_pretrained`.")


def _way_out(folder: Path) -> str:
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        return "it is a PEFT adapter, so give its base model here, or merge the two and give the merged folder"
    return "give a folder that `save_pretrained` wrote"


def _weight_files(folder: Path) -> list[Path]:
    """The files that ``from_pretrained`` will read: one, or those that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / name for name in _shard_names(index)]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"Model folder {folder} holds its weights as pickle only ({pickled[0]}), which runs code when loaded; "
            "if you trust it, load it with transformers and write it again with `save_pretrained`."
        )
    raise ModelError(f"Model folder {folder} has no model.safetensors; give a folder that `save_pretrained` wrote.")


def _shard_names(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is not an index of shards; save the model again with `save_pretrained`.") from None


def _check_header(file: Path) -> None:
    try:
        # "numpy" only names the framework of tensors that are never asked for: it keeps torch unloaded.
        with safe_open(file, framework="numpy") as tensors:
            empty = not list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error}); download or save the model again.") from error
    if empty:
        raise ModelError(f"{file} holds no tensor; download or save the model again.")
