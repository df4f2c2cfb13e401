"""The residual form of a frozen difference: a base of its own, ``W - s B0 A0``, and a plain LoRA of rank r on it.

Legend: O output features, I input features, R rank.

Contract: for trainers that know neither us nor a frozen pair of factors. ``W_res x + s B A x`` is the adapter's
function on the *written* base and is wrong on the original one. "Adapter off" is then ``W_res``, not the model that
training began from, so a reference policy needs the initial adapter (METHODS.md 2.2).

Numerics: formed in fp32, rounded once to the dtype asked for. What that loses is measured, not assumed: the largest
``|W_res + s B0 A0 - W|`` of a matrix, in fp64, over its largest ``|W|``; about 1e-7 in fp32, about 2e-3 in bf16.

Source: PiSSA (2404.02948), section 3; GeoRA (2601.09361), Eq. 3 to 5.

Left out on purpose: quantised bases, which would be rounded again.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stablerank.adapters.cards import residual_adapter_card, residual_base_card
from stablerank.adapters.export import (
    PREFIX,
    Exported,
    adapter_layers,
    base_fingerprint,
    described,
    fingerprint,
    fp32,
    method_name,
    plain_config,
)
from stablerank.adapters.variants.base import base_weight, is_quantised
from stablerank.adapters.variants.difference import DifferenceVariant
from stablerank.errors import ModelError
from stablerank.runs.atomic import whole_folder, write_json, write_text

_ROWS = 1024


@dataclass(frozen=True)
class ResidualExport:
    """What a residual export wrote: a base, the adapter on it, and what rounding the base lost."""

    base: Path
    adapter: Exported
    dtype: str
    error: float
    """The largest error of an entry over the largest entry, of the worst matrix."""
    worst: str
    """That matrix."""


def export_residual(
    model: PeftModel,
    out: str | Path,
    adapter: str = "default",
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ResidualExport:
    """Write ``out/base`` (with the tokenizer) and ``out/adapter``, at any point of training; the model stays as it is.

    Raises:
        ModelError: the adapter is no frozen difference, or its base is quantised or tied to another layer.
        RunFolderError: ``out`` is not empty or cannot be written; nothing was.
    """
    out = Path(out).absolute()
    layers = _difference_layers(model, adapter)
    weights, errors = {}, {}
    for name, layer in layers.items():
        weights[f"{name}.weight"], errors[name] = residual_weight(layer, adapter, dtype)
    worst = max(errors, key=lambda name: errors[name])
    with whole_folder(out) as folder:
        _write_base(model, folder / "base", weights, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / "base")
        written = _write_adapter(model, folder / "adapter", out, adapter, weights)
        residual = ResidualExport(out / "base", written, str(dtype).removeprefix("torch."), errors[worst], worst)
        _write_cards(model, folder, residual, adapter)
    return residual


@torch.no_grad()
def residual_weight(layer: Linear, adapter: str, dtype: torch.dtype) -> tuple[Tensor, float]:
    """``W - s B0 A0`` in ``dtype``, and the largest error of an entry over the largest entry of W."""
    weight_OI, scale = base_weight(layer), layer.scaling[adapter]
    b_OR, a_RI = layer.lora_B0[adapter].weight.float(), layer.lora_A0[adapter].weight.float()
    rounded_OI = (weight_OI.float() - scale * (b_OR @ a_RI)).to(dtype)
    blocks = zip(*(torch.split(matrix, _ROWS) for matrix in (rounded_OI, weight_OI, b_OR)), strict=True)
    largest = max(
        float((rounded.double() + scale * (b.double() @ a_RI.double()) - weight.double()).abs().max())
        for rounded, weight, b in blocks
    )
    return rounded_OI, largest / max(float(weight_OI.abs().max()), torch.finfo(torch.float32).tiny)


def _difference_layers(model: PeftModel, adapter: str) -> dict[str, Linear]:
    """The adapted layers, by their names in the base."""
    config, layers = adapter_layers(model, adapter)
    if not all(isinstance(layer.lora_variant.get(adapter), DifferenceVariant) for layer in layers.values()):
        raise ModelError(
            f"A {method_name(config)} adapter has no residual form, because it takes no part out of its base; "
            "choose `--form lora` or `--form native`."
        )
    quantised = [name for name, layer in layers.items() if is_quantised(layer.get_base_layer())]
    if quantised:
        raise ModelError(
            f"{quantised[0].removeprefix(PREFIX)} is quantised and a residual of it would be rounded again; load the "
            "base in full precision, or choose `--form lora`."
        )
    _refuse_tied(model, layers)
    return {name.removeprefix(PREFIX): layer for name, layer in layers.items()}


def _refuse_tied(model: PeftModel, layers: dict[str, Linear]) -> None:
    places = Counter(value.data_ptr() for value in model.get_base_model().state_dict().values() if value.numel())
    for name, layer in layers.items():
        if places[layer.get_base_layer().weight.data_ptr()] > 1:
            raise ModelError(
                f"{name.removeprefix(PREFIX)} shares its weight with another layer, which a residual would change too; "
                "leave it out of the adapter's targets, or choose `--form lora`."
            )


def _write_base(model: PeftModel, folder: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    """The base model as a plain folder, with these weights in the place of its own."""
    base = model.get_base_model()
    converted: dict[tuple[int, torch.Size], Tensor] = {}
    tensors = {}
    for key, value in base.state_dict().items():
        name = _own_name(key)
        if name is None:
            continue
        place = (value.data_ptr(), value.shape)  # tied weights stay one tensor, which transformers writes once
        if place not in converted:
            fresh = weights.get(name, value)
            converted[place] = (fresh.to(dtype) if fresh.is_floating_point() else fresh).contiguous()
        tensors[name] = converted[place]
    base.save_pretrained(folder, state_dict=tensors)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**settings, "dtype": str(dtype).removeprefix("torch.")})


def _own_name(key: str) -> str | None:
    """A tensor's name in the base as it was before PEFT wrapped it; None for what PEFT put there."""
    if ".lora_" in key or ".modules_to_save." in key:
        return None
    return key.replace(".base_layer.", ".").replace(".original_module.", ".")


def _write_adapter(model: PeftModel, folder: Path, out: Path, adapter: str, weights: dict[str, Tensor]) -> Exported:
    tensors = {
        key: fp32(value)
        for key, value in get_peft_model_state_dict(model, adapter_name=adapter).items()
        if ".lora_A0." not in key and ".lora_B0." not in key
    }
    config = plain_config(model.peft_config[adapter], {"base_model_name_or_path": str(out / "base")})
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    own = fingerprint((name.removesuffix(".weight"), weight) for name, weight in weights.items())
    return described(out / "adapter", tensors, config, own)


def _write_cards(model: PeftModel, folder: Path, residual: ResidualExport, adapter: str) -> None:
    config = model.peft_config[adapter]
    origin = config.base_model_name_or_path or "a model in memory without a name"
    facts = (method_name(config), origin, base_fingerprint(model, adapter), residual.dtype, residual.error)
    write_text(folder / "base" / "README.md", residual_base_card(*facts))
    card = residual_adapter_card(residual.base, residual.adapter.fingerprint, *facts)
    write_text(folder / "adapter" / "README.md", card)
