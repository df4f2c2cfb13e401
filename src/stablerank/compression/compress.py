"""An adapter's folder to one smaller file, the file to a model, and the file back to a folder.

Contract: the factors of a LoRA, rsLoRA, DoRA or SineLoRA are cut (if asked), quantised and written; whatever else the
adapter holds (magnitudes, biases, modules saved whole) goes in as fp16. The sine of a SineLoRA is applied at load, on
the quantised factors: quantise, then activate. A file holds PEFT's configuration too, so that it alone is the adapter;
on a base whose fingerprint differs from the one in the file, loading is refused.

Source: SineLoRA-delta (2505.21895); METHODS.md 4.4.

Left out on purpose: computing with codes (a loaded adapter has plain tensors); bases, which GGUF and bitsandbytes
quantise.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn

import stablerank.adapters.config  # noqa: F401  PEFT reads our adapters once it is imported
from stablerank.compression.base_print import folder_print, model_print
from stablerank.compression.container import Account, Container, read_container, write_container
from stablerank.compression.distortion import UpdateLoss, update_losses
from stablerank.compression.factors import is_factor, modules, require_lora
from stablerank.compression.frequency import FrequencySearch, search_frequency, with_sine
from stablerank.compression.spec import FULL, CompressionSpec
from stablerank.compression.tensors import EncodedTensor, decode_tensor, encode_tensor
from stablerank.compression.truncation import truncated
from stablerank.errors import ModelError, RunFolderError
from stablerank.runs.atomic import whole_folder, write_json
from stablerank.zoo.resolve import resolve

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DEFAULT = CompressionSpec()
_HEADER_KEY = {"format": "pt"}


@dataclass(frozen=True)
class Compressed:
    """What was written, its bytes and its losses."""

    file: Path
    spec: CompressionSpec
    account: Account
    losses: tuple[UpdateLoss, ...]
    """One a module; empty where it was not measured."""
    base: str
    fingerprint: str
    frequency: FrequencySearch | None = None
    """Where a sine was put on a LoRA."""


def compress(
    adapter: str | Path,
    out: str | Path,
    spec: CompressionSpec = _DEFAULT,
    *,
    base: str | None = None,
    measure: bool = True,
) -> Compressed:
    """Write an adapter as one smaller file.

    Args:
        adapter: the folder of a PEFT adapter, or of a run of ours.
        out: a file that does not exist.
        spec: how.
        base: where the base is, for its fingerprint, if not where the adapter says.
        measure: whether to say what each update lost; a SineLoRA's takes its dense update.

    Raises:
        StablerankError: the adapter cannot be read or compressed, or the file exists; nothing was written.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise RunFolderError(f"{out} exists; choose another file with `--out`.")
    config, tensors = read_adapter(adapter)
    encoded, config_after = encode_adapter(config, tensors, spec)
    fingerprint = folder_print(base or str(config.get("base_model_name_or_path") or ""), modules(tensors))
    after = {part.record.name: decode_tensor(part.record, part.payload, part.side) for part in encoded}
    frequency = search_frequency(config, tensors, after) if spec.sine else None
    if frequency is not None:
        config_after = with_sine(config_after, frequency.best)
    losses = tuple(update_losses(config, tensors, after, config_after)) if measure else ()
    try:
        parts = write_container(out, config_after, encoded, fingerprint)
    except OSError as error:
        raise RunFolderError(f"{out} cannot be written ({error.strerror}); choose another file.") from error
    values = sum(tensor.numel() for tensor in tensors.values())
    account = Account(parts["payload"], parts["side"], parts["index"], parts["header"], fp16_bytes(tensors), values)
    named = str(config.get("base_model_name_or_path") or "")
    return Compressed(out, spec, account, losses, named, fingerprint, frequency)


def load_compressed(
    file: str | Path, model: nn.Module | str | None = None, *, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """The model with the adapter of a file on it.

    Args:
        file: what `compress` wrote.
        model: the base in memory, its name (``zoo:NAME``, folder, hub id), or None for the name in the file; by a name
            a causal language model is loaded.
        adapter_name: what the adapter is called in the model.
        is_trainable: whether it goes on training.

    Raises:
        ModelError: the file is damaged, or of another base.
    """
    found = read_container(Path(file).expanduser())
    if model is None or isinstance(model, str):
        model = _base(Path(file), model or found.base)
    names = modules(found.tensors)
    if found.fingerprint and model_print(model, names) not in (found.fingerprint, ""):
        raise ModelError(
            f"{file} is an adapter of {found.base or 'another base'}, and the weights of this model differ from it; "
            "give the base that it was trained on."
        )
    with tempfile.TemporaryDirectory() as folder:
        _write_adapter(Path(folder), found)
        loaded: PeftModel = PeftModel.from_pretrained(
            model, folder, adapter_name=adapter_name, is_trainable=is_trainable
        )
    return loaded


def expand(file: str | Path, out: str | Path) -> Container:
    """Write the adapter of a file as a plain PEFT folder, for programs that do not know this format.

    Raises:
        ModelError: the file is damaged.
        RunFolderError: ``out`` is not empty or cannot be written; nothing was.
    """
    found = read_container(Path(file).expanduser())
    with whole_folder(Path(out).expanduser()) as folder:
        _write_adapter(folder, found)
    return found


def read_adapter(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an adapter's folder, or of the one in a run folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    places = (Path(path).expanduser(), Path(path).expanduser() / "model")
    folder = next((place for place in places if (place / CONFIG).is_file()), None)
    if folder is None:
        raise ModelError(f"{path} has no {CONFIG}; give the folder of a PEFT adapter, or of a run that trained one.")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"Adapter {folder} cannot be read ({error}); save it again with `save_pretrained`.") from error
    return config, tensors


def encode_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], spec: CompressionSpec
) -> tuple[list[EncodedTensor], dict[str, Any]]:
    """Every tensor encoded, and the configuration that goes with them.

    Raises:
        ModelError: no LoRA, no factors, or numbers that are not finite.
    """
    require_lora(config)
    if not modules(tensors):
        raise ModelError("The adapter holds no pair of LoRA factors; nothing can be compressed.")
    changed = dict(config)
    if spec.truncates:
        changed, tensors = truncated(config, tensors, rank=spec.rank, energy=spec.energy)
    rest = CompressionSpec(FULL, entropy=spec.entropy)
    encoded = [
        encode_tensor(name, tensor, spec if is_factor(name, tensor) else rest) for name, tensor in tensors.items()
    ]
    return encoded, changed


def fp16_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The size of a safetensors file of these tensors in fp16, as PEFT would write it."""
    empty = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    return len(safetensors.torch.save(empty, metadata=_HEADER_KEY))


def _write_adapter(folder: Path, found: Container) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in found.tensors.items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata=_HEADER_KEY)
    write_json(folder / CONFIG, found.config)


def _base(file: Path, named: str) -> nn.Module:
    # A base that is in memory already needs none of transformers.
    from transformers import AutoModelForCausalLM

    if not named:
        raise ModelError(f"{file} does not say which base it is of; give the model.")
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(resolve(named), dtype="auto")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"Base {named} of {file} cannot be loaded ({reason}); give the model itself.") from error
    return model
