"""The fingerprint of an adapter's base, from its files or from the model in memory, without its class.

Contract: the same text as `stablerank.adapters.export.base_fingerprint` of the adapter on that base. From files it is
found where the base is a local folder whose tensors are named as the modules are; otherwise it is not known, which is
no error: the file then says nothing about its base but the name.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stablerank.adapters.export import PREFIX, fingerprint
from stablerank.errors import ModelError
from stablerank.zoo.resolve import resolve


def folder_print(base: str, modules: Collection[str]) -> str:
    """Of a model folder or a zoo name; empty if it cannot be found."""
    names = {f"{module.removeprefix(PREFIX)}.weight" for module in modules}
    try:
        folder = Path(resolve(base))
        held = dict(_weights(folder, names)) if folder.is_dir() else {}
    except (ModelError, OSError, SafetensorError):
        return ""
    if held.keys() != names:
        return ""
    return fingerprint((name.removesuffix(".weight"), weight) for name, weight in held.items())


def model_print(model: nn.Module, modules: Collection[str]) -> str:
    """Of a model in memory; empty if it lacks one of the modules, or has quantised them, which changes their values."""
    held = dict(model.named_parameters(remove_duplicate=False))
    names = [module.removeprefix(PREFIX) for module in modules]
    if any(f"{name}.weight" not in held or not held[f"{name}.weight"].is_floating_point() for name in names):
        return ""
    return fingerprint((name, held[f"{name}.weight"].detach()) for name in names)


def _weights(folder: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of these names in a folder's files, mapped and not read."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in names.intersection(tensors.keys()):
                yield name, tensors.get_tensor(name)
