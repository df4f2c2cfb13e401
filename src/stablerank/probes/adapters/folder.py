"""Read a PEFT adapter's folder as the updates that it makes, without its base, its model, or a transformers class.

Contract: ``adapter_config.json`` and the header of ``adapter_model.safetensors`` are read at once, tensors when an
update is built. Names are the base's: without ``base_model.model.``, ``.base_layer`` and ``.weight``; an expert of a
stack has its number at the end. A module that cannot be read is a problem with its reason, and the others are offered.

Which update: relative to the weights that PEFT would load the adapter onto. An initialiser that takes its first factors
out of the base (PiSSA and kin) makes that the residual base, which a note says; with ``initial``, the folder of the
adapter as it was saved before training, the update is relative to the true base, ``s (B A - B0 A0)``, exactly and of
rank 2 r. What PEFT converts itself (``path_initial_model_for_weight_conversion``) is already so, and so are our own
adapters (spectral.py), which leave the base alone.

Source: METHODS.md 2.4, 9.5; the files that PEFT 0.21 writes.

Left out on purpose: pickled adapters, which run code when they are opened; the hub; adapters merged in memory.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING

from stablerank.errors import ModelError
from stablerank.probes.adapters.adalora import adalora_updates
from stablerank.probes.adapters.layers import PARTS, peft_updates
from stablerank.probes.adapters.lora import lora_updates, subtracts
from stablerank.probes.adapters.lycoris import loha_updates, lokr_updates
from stablerank.probes.adapters.spectral import spectral_updates
from stablerank.probes.adapters.types import AdapterFile, AdapterSource, BaseWeight, StoredUpdate, each_module, mapping
from stablerank.probes.sources.safetensors_files import safetensors_contents
from stablerank.probes.sources.stored import Problem, StoredTensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

_BY_MODULE = {"ADALORA": adalora_updates, "LOHA": loha_updates, "LOKR": lokr_updates}
MEASURABLE = ("LORA", *_BY_MODULE, *PARTS)
"""The adapter types that have an additive update which can be read."""


def open_adapter(
    path: Path | str,
    *,
    adapter: str | None = None,
    base_weight: BaseWeight | None = None,
    initial: Path | str | None = None,
) -> AdapterSource:
    """The updates of the adapter in a folder.

    Args:
        path: a folder that PEFT saved; with several adapters in it, ``adapter`` names one of its sub-folders.
        adapter: the sub-folder to open.
        base_weight: reads the base's weight by an update's name. DoRA and the types with shared random parts need it.
        initial: the folder of the same adapter before training, for initialisers that changed the base.

    Raises:
        ModelError: there is no adapter, it is a pickle or of a type without an additive update, or its base is needed.
    """
    folder = _adapter_folder(Path(path), adapter)
    found = _read_file(folder)
    first = None if initial is None else _read_initial(Path(initial), found)
    updates, problems = _updates(found, base_weight, first)
    name = found.config.get("base_model_name_or_path")
    return AdapterSource(
        path=folder,
        peft_type=found.config["peft_type"],
        base_model_name=name if isinstance(name, str) and name else None,
        updates=tuple(updates),
        problems=(*found.problems, *_unknown_settings(found), *problems),
        notes=tuple(_notes(found, first)),
        replaced=found.replaced,
    )


def _updates(
    found: AdapterFile, base_weight: BaseWeight | None, initial: AdapterFile | None
) -> tuple[list[StoredUpdate], list[Problem]]:
    kind = found.config["peft_type"]
    if kind in PARTS:
        return peft_updates(found, base_weight)
    if kind == "LORA" and mapping(found.config, "spectral"):
        return each_module(found, partial(spectral_updates, adapter=found, initial=initial))
    if kind == "LORA":
        return each_module(found, partial(lora_updates, adapter=found, base_weight=base_weight, initial=initial))
    return each_module(found, partial(_BY_MODULE[kind], adapter=found))


def _adapter_folder(path: Path, adapter: str | None) -> Path:
    if adapter is not None:
        path = path / adapter
    if (path / CONFIG).is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder: name the folder that holds {CONFIG}.")
    named = [folder.name for folder in _sub_adapters(path)]
    if len(named) == 1:
        return path / named[0]
    raise ModelError(
        f"{path} holds {len(named)} adapters, {', '.join(named)}: name the sub-folder of one."
        if named
        else f"{path} has no {CONFIG}: name the folder of a PEFT adapter."
    )


def _sub_adapters(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if (folder / CONFIG).is_file())


def _read_file(folder: Path) -> AdapterFile:
    config = _read_config(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(
            f"{folder / PICKLE} is a pickle, which runs code of whoever wrote it when it is loaded, so it is not read: "
            "load the adapter with PEFT in a sandbox that you trust and write it again with save_pretrained."
            if (folder / PICKLE).is_file()
            else f"{folder} has {CONFIG} but no {WEIGHTS}: copy the whole adapter."
        )
    tensors, problems = safetensors_contents(weights)
    if not tensors and not problems:
        raise ModelError(f"{weights} holds no tensor: save the adapter again.")
    return _sorted_tensors(weights, config, tensors, problems)


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not readable as JSON ({error}): copy the adapter again.") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise ModelError(f"{file} has no peft_type: it is not the configuration of a PEFT adapter.")
    if kind not in MEASURABLE:
        raise ModelError(
            f"{file.parent} is a {kind} adapter, and this type has no additive weight update that can be read from the "
            f"file (these have: {', '.join(sorted(MEASURABLE))}): if it can be merged, measure the merged checkpoint "
            "against its base."
        )
    return config


def _sorted_tensors(
    weights: Path, config: Mapping[str, Any], tensors: list[StoredTensor], problems: list[Problem]
) -> AdapterFile:
    """Each tensor by what it is, which its name says."""
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config["peft_type"]]
    modules: dict[str, dict[str, StoredTensor]] = {}
    shared: dict[str, StoredTensor] = {}
    replaced: list[StoredTensor] = []
    biases = token_rows = 0
    for tensor in tensors:
        key = tensor.name.removeprefix("base_model.model.")
        module, adapted, rest = key.rpartition(f".{prefix}")
        if key.endswith(".bias"):
            biases += 1
        elif key.startswith("base_model."):
            shared[key] = tensor
        elif adapted:
            modules.setdefault(module, {})[prefix + rest.removesuffix(".weight")] = tensor
        elif ".token_adapter." in key:
            token_rows += tensor.shape[0]
        else:
            replaced.append(dataclasses.replace(tensor, name=key.replace(".base_layer.", ".")))
    return AdapterFile(weights, config, modules, shared, tuple(replaced), biases, token_rows, tuple(problems))


def _read_initial(folder: Path, found: AdapterFile) -> AdapterFile:
    initial = _read_file(_adapter_folder(folder, None))
    kinds = found.config["peft_type"], initial.config["peft_type"]
    if kinds != ("LORA", "LORA"):
        raise ModelError(f"An initial adapter belongs to LORA adapters, but these two are {kinds[0]} and {kinds[1]}.")
    return initial


def _unknown_settings(found: AdapterFile) -> Iterator[Problem]:
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[found.config["peft_type"]])}
    known |= {"spectral"} if found.config["peft_type"] == "LORA" else set()
    unknown = {name: value for name, value in found.config.items() if value and name not in known}
    if unknown:
        listed = ", ".join(f"{name} = {value!r}" for name, value in sorted(unknown.items()))
        yield Problem(
            str(found.path.parent / CONFIG),
            None,
            f"It sets {listed}, which PEFT {peft.__version__} does not know and ignores: the numbers are those of the "
            "adapter without it, so check what trained it.",
        )


def _notes(found: AdapterFile, initial: AdapterFile | None) -> Iterator[str]:
    config = found.config
    init = config.get("init_lora_weights")
    if subtracts(config) and initial is None:
        yield (
            f"init_lora_weights = {init!r} took its first factors out of the base: the updates are s B A, relative to "
            "that residual base and not to the base model; with the initial adapter they become s (B A - B0 A0)."
        )
    if init == "loftq":
        yield "init_lora_weights = 'loftq' quantised the base: the updates are relative to the quantised weights."
    if config.get("kasa_config"):
        yield "kasa_config truncated the base to its largest singular values: the updates are relative to that base."
    if config.get("alora_invocation_tokens"):
        yield "alora_invocation_tokens is set: the updates act only on tokens after the invocation."
    if config.get("save_projection") is False:
        yield "save_projection is off: the shared projections are drawn again from projection_prng_key, as PEFT does."
    if found.biases:
        yield f"Biases skipped, for a vector has no spectrum: {found.biases}."
    if found.token_rows:
        yield f"Rows of trainable_token_indices skipped, for they replace rows of a matrix: {found.token_rows}."
    if found.replaced:
        yield f"Tensors saved whole (modules_to_save), whose update needs the base: {len(found.replaced)}."
    if others := _sub_adapters(found.path.parent):
        yield f"Other adapters lie in sub-folders: {', '.join(folder.name for folder in others)}."
