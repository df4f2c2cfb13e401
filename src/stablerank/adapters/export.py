"""An adapter as the plain LoRA that stock PEFT, and every server that reads PEFT's format, loads on the untouched base.

Legend: O output features, I input features, R rank.

Contract: exact, never fitted. A frozen difference ``s (B A - B0 A0)`` is ``s [B, -B0] [A; A0]``, a LoRA of rank 2r; a
PoLAR is its own two factors. The scale stays in ``lora_alpha``, so that ``alpha / rank`` is s: to the last bit where
the rank doubles, to one unit in the last place of fp64 where rsLoRA's root was in it. LoRA, rsLoRA and DoRA go out as
they are. Tensors are fp32 whatever the base, so a folder of rank 2r is twice as large as its LoRA of rank r.

The export is valid on the base it names and on no other. The name is where the base was loaded from; the card also
holds `base_fingerprint`, which a renamed or downloaded base keeps.

At step 0 a rank-2r export is the base up to the rounding of one product (its halves cancel, no longer bit by bit), and
in stock PEFT both halves train: to go on training take the native folder or `export_residual`.

Left out on purpose: a low-rank fit of what has no exact factors (SineLoRA); PEFT's own ``pissa``, ``olora``, ``corda``
and ``loftq``, which changed the base they stand on.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from stablerank.adapters.cards import lora_card
from stablerank.adapters.residual import unsafe_initialiser
from stablerank.adapters.variants.base import base_weight
from stablerank.errors import ModelError
from stablerank.runs.atomic import whole_folder, write_text

PREFIX = "base_model.model."
"""What PEFT puts before the name of a module of the base."""
_FIRST_ENTRIES = 1 << 16
_Layers = dict[str, LoraLayer]


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: Path
    rank: int
    """The largest rank of a layer."""
    parameters: int
    bytes: int
    """Size of the adapter's tensors."""
    base: str
    """What the adapter is valid on."""
    fingerprint: str
    """`base_fingerprint` of that base."""


def plain_lora(model: PeftModel, adapter: str = "default") -> tuple[dict[str, Tensor], LoraConfig]:
    """The adapter's tensors, named as PEFT saves them, in fp32 on the CPU, and a configuration without a trace of us.

    Raises:
        ModelError: no such adapter, or one that is no exact product of factors on the untouched base.
    """
    config, layers = adapter_layers(model, adapter)
    tensors = get_peft_model_state_dict(model, adapter_name=adapter)
    changes: dict[str, Any] = {}
    if getattr(config, "spectral", None):
        products = {name: _factors(layer, adapter) for name, layer in layers.items()}
        tensors = {key: value for key, value in tensors.items() if key.partition(".lora_")[0] not in products}
        for name, (b_OR, a_RI) in products.items():
            tensors |= {f"{name}.lora_A.weight": a_RI, f"{name}.lora_B.weight": b_OR}
        ranks = {name: a_RI.shape[0] for name, (_, a_RI) in products.items()}
        changes = ranks_and_alphas(ranks, {name: layers[name].scaling[adapter] for name in ranks})
    return {key: fp32(value) for key, value in tensors.items()}, plain_config(config, changes)


def export_lora(model: PeftModel, out: str | Path, adapter: str = "default") -> Exported:
    """Write a folder that stock ``PeftModel.from_pretrained`` loads on the untouched base, and its card.

    Raises:
        ModelError: as `plain_lora`.
        RunFolderError: ``out`` is not empty or cannot be written; nothing was.
    """
    out = Path(out)
    tensors, config = plain_lora(model, adapter)
    method = method_name(model.peft_config[adapter])
    with whole_folder(out) as folder:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        written = described(out, tensors, config, base_fingerprint(model, adapter))
        is_doubled = config.r != model.peft_config[adapter].r
        write_text(folder / "README.md", lora_card(method, written.base, written.fingerprint, written.rank, is_doubled))
    return written


def described(out: Path, tensors: dict[str, Tensor], config: LoraConfig, fingerprint: str) -> Exported:
    """The record of an adapter folder with these tensors."""
    return Exported(
        folder=out,
        rank=max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r,
        parameters=sum(value.numel() for value in tensors.values()),
        bytes=sum(value.nbytes for value in tensors.values()),
        base=config.base_model_name_or_path or "a model in memory without a name",
        fingerprint=fingerprint,
    )


def adapter_layers(model: PeftModel, adapter: str) -> tuple[LoraConfig, _Layers]:
    """An adapter's configuration, and its layers by their full names.

    Raises:
        ModelError: the model has no such LoRA adapter, it is merged, or its initialiser changed the base.
    """
    config = model.peft_config.get(adapter)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer) and adapter in m.scaling}
    if config is None or not layers:
        known = ", ".join(model.peft_config)
        raise ModelError(f"The model has no LoRA adapter {adapter!r}; its adapters are {known}.")
    if any(layer.merged for layer in layers.values()):
        raise ModelError(f"Adapter {adapter!r} is merged into the base; call `model.unmerge_adapter()` first.")
    if initialiser := unsafe_initialiser(config):
        raise ModelError(
            f"The adapter was started by PEFT's own {initialiser!r}, which changed its base, so it is valid on no base "
            "that can be named; start it with the spec of the same name of stablerank.peft."
        )
    return config, layers


def method_name(config: LoraConfig) -> str:
    """What the adapter is, for people."""
    spectral = getattr(config, "spectral", None)
    if spectral:
        return str(spectral["method"])
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"


def base_fingerprint(model: PeftModel, adapter: str = "default") -> str:
    """SHA-256 of the adapted weights' names, shapes and first 65536 entries each, rounded to bf16.

    The rounding makes a base loaded in bf16 and in fp32 the same base. It tells bases apart; it is no seal.
    """
    layers = adapter_layers(model, adapter)[1].items()
    return fingerprint((name.removeprefix(PREFIX), base_weight(layer)) for name, layer in layers)


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """As `base_fingerprint`, of weights by the names of their layers."""
    parts = []
    for name, weight in weights:
        first = weight.flatten()[:_FIRST_ENTRIES].to("cpu", torch.bfloat16).contiguous()
        content = hashlib.sha256(first.view(torch.uint8).numpy().tobytes()).hexdigest()
        parts.append(f"{name} {tuple(weight.shape)} {content}\n")
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()


def _factors(layer: Linear, adapter: str) -> tuple[Tensor, Tensor]:
    product: tuple[Tensor, Tensor] | None = layer.lora_variant[adapter].factors(layer, adapter)
    if product is None:
        raise ModelError(
            "The adapter cannot be written as LoRA: its update is the sine of a product, entry by entry, which is no "
            "product of two thin factors; merge it into the base with `model.merge_and_unload()`."
        )
    return product


def ranks_and_alphas(ranks: dict[str, int], scales: dict[str, float]) -> dict[str, Any]:
    """The commonest rank and alpha for all, and a pattern for each layer that differs."""
    pairs = {name.removeprefix(PREFIX): (rank, _alpha(rank, scales[name])) for name, rank in ranks.items()}
    (rank, alpha), _ = Counter(pairs.values()).most_common(1)[0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": False,
        "rank_pattern": {name: pair[0] for name, pair in pairs.items() if pair[0] != rank},
        "alpha_pattern": {name: pair[1] for name, pair in pairs.items() if pair[1] != alpha},
    }


def _alpha(rank: int, scale: float) -> float:
    """An int where it is one: PEFT annotates alpha as an int, and some readers of its format insist."""
    alpha = rank * scale
    return int(alpha) if float(alpha).is_integer() else alpha


def plain_config(config: LoraConfig, changes: dict[str, Any]) -> LoraConfig:
    """PEFT's own configuration with the same settings, to be loaded and not to be initialised."""
    settings = {field.name: copy.deepcopy(getattr(config, field.name)) for field in fields(LoraConfig) if field.init}
    return LoraConfig(
        **{**settings, "init_lora_weights": True, "eva_config": None, "inference_mode": True, **changes},
    )


def fp32(value: Tensor) -> Tensor:
    """A copy to write: fp32, contiguous, on the CPU."""
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()
