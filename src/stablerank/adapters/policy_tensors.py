"""What a PEFT policy is made of: tensors of the base, tensors of the adapter, and those of its frozen copy.

Left out on purpose: PEFT's own `get_peft_model_state_dict`, which drops what is not saved.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

POLICY, REFERENCE = "default", "ref"
"""The names of the two adapters: TRL knows no others."""


def pairs(policy: PeftModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Every tensor of the policy's adapter with its counterpart in the reference's."""
    tensors = dict(tensors_of(policy))
    for name, source in tensors.items():
        parts = name.split(".")
        if POLICY in parts:
            yield source, tensors[".".join(REFERENCE if part == POLICY else part for part in parts)]


def adapted_layers(policy: PeftModel) -> list[tuple[str, LoraLayer]]:
    """The adapted layers under the names they have in the base."""
    return [(name, m) for name, m in base_of(policy).named_modules() if isinstance(m, LoraLayer)]


def base_of(policy: PeftModel) -> PreTrainedModel:
    """The model inside the policy, its layers adapted."""
    return policy.get_base_model()


def stored_at(policy: PeftModel) -> str:
    """The folder or hub id that the base names; TRL loads a full reference from there."""
    return str(base_of(policy).config._name_or_path or "")


def base_tensors(policy: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the base inside the policy, under the names they have without an adapter."""
    for name, tensor in tensors_of(base_of(policy)):
        if not is_adapters(name):
            yield name.replace(".base_layer", "").replace(".original_module", ""), tensor


def is_adapters(name: str) -> bool:
    """PEFT names the adapter in every tensor it adds."""
    return not {POLICY, REFERENCE}.isdisjoint(name.split("."))


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, shared ones under every name."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def relative_error(ours: Tensor, theirs: Tensor | None) -> float:
    """Relative Frobenius distance; 0 means equal bit by bit, infinity that there is nothing to compare with."""
    if theirs is None or ours.shape != theirs.shape:
        return float("inf")
    theirs = theirs.to(ours.device)
    if ours.dtype == theirs.dtype and torch.equal(ours, theirs):
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=torch.finfo(torch.float64).tiny))
