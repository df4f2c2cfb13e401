"""What can be put right in a policy that a TRL trainer was given, each as an act that is planned before it is done.

Contract: planning changes nothing. The acts are done in the order in which they are given: the base, the policy's
adapter, then the copy of it.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from stablerank.adapters.policy_tensors import POLICY, REFERENCE, adapted_layers, pairs
from stablerank.adapters.residual import Residual


@dataclass(frozen=True)
class Mend:
    """What is wrong, and the act that puts it right."""

    what: str
    act: Callable[[], object]


def residual_mends(policy: PeftModel, residuals: list[Residual], is_used: bool) -> Iterator[Mend]:
    """The base that an initialiser wrote into, and the reference that it needs."""
    for residual in residuals:
        if not torch.equal(residual.weight, residual.wanted()):
            yield Mend("the residual base", residual.write)
    if residuals and is_used and REFERENCE not in policy.peft_config:
        yield Mend("a missing adapter 'ref'", partial(_add_reference, policy))


def _add_reference(policy: PeftModel) -> None:
    """A frozen copy of the policy's factors without dropout, made without drawing into the base again."""
    config = copy.deepcopy(policy.peft_config[POLICY])
    initialiser, config.init_lora_weights, config.lora_dropout = config.init_lora_weights, True, 0.0
    policy.add_adapter(REFERENCE, config)
    config.init_lora_weights = initialiser  # saved with the checkpoint: without the residual the factors mean nothing
    for source, target in pairs(policy):
        _copy(target, source)


def magnitude_mends(policy: PeftModel) -> Iterator[Mend]:
    """DoRA's first magnitude is the norm as its forward computes it, in the factors' dtype and not in the base's."""
    for _, layer in adapted_layers(policy):
        for adapter, magnitude in layer.lora_magnitude_vector.items():
            if type(magnitude) is not DoraLinearLayer or layer.lora_B[adapter].weight.any():
                continue
            weight = dequantize_module_weight(layer.get_base_layer()).to(layer.lora_A[adapter].weight.dtype)
            zero = magnitude.get_lora_weight(layer.lora_A[adapter], layer.lora_B[adapter])
            norm = magnitude.get_weight_norm(weight, zero, layer.scaling[adapter])
            if (norm != magnitude.weight).any():
                yield Mend("DoRA's rounded magnitudes", partial(magnitude.weight.copy_, norm))


def reference_mends(policy: PeftModel, is_used: bool) -> Iterator[Mend]:
    """What TRL left behind in the adapter "ref"."""
    if not is_used or REFERENCE not in policy.peft_config:
        return
    for source, target in pairs(policy):
        if source.dtype != target.dtype or not torch.equal(source, target):
            yield Mend("tensors not copied to 'ref'", partial(_copy, target, source))
    for _, layer in adapted_layers(policy):
        if getattr(layer.lora_dropout[REFERENCE], "p", 0.0) > 0:
            yield Mend("dropout in 'ref'", partial(layer.lora_dropout.update, {REFERENCE: nn.Identity()}))


def _copy(target: Tensor, source: Tensor) -> None:
    """Values and dtype: TRL rounds the policy's factors on a quantised base, and not the reference's."""
    target.data = source.detach().clone()
