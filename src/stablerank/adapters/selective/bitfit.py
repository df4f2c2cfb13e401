"""BitFit: every bias trains, of linear layers and of LayerNorm, and nothing else.

Contract: a bias is a parameter whose name ends in ``.bias``. Llama, Qwen3 and most models with RMSNorm have none: they
are refused, or get zero biases on request. Those are the ones that the architecture's own configuration can switch on
(`SWITCHES`), so that the saved folder loads in stock transformers; Qwen3's switch covers attention only. Adding them
leaves weights, ties, buffers and generation settings alone, and the path from which TRL loads the reference.

Numerics: a zero bias left logits bitwise as they were in fp32 and under bf16 autocast, on CPU; a fused kernel that
rounds once more without a bias may differ in the last place.

Source: Ben Zaken, Ravfogel & Goldberg, BitFit (2106.10199). A vector has rank 1 trivially: measure what BitFit does by
activations, not by weight updates (METHODS.md 8.5).

Left out on purpose: biases of expert stacks (``*_proj_bias``) and of routers' score corrections (buffers).
"""

import copy
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from stablerank.adapters.selective.in_place import require_in_place
from stablerank.errors import ModelError

SWITCHES = (
    "attention_bias",
    "attention_out_bias",
    "mlp_bias",
    "use_bias",
    "qkv_bias",
    "use_qkv_bias",
    "use_attention_bias",
    "add_bias_linear",
    "bias",
)
"""Fields of transformers' configurations that give linear layers a bias."""


def train_biases(model: PreTrainedModel, biases: Literal["existing", "added"] = "existing") -> PreTrainedModel:
    """Train the biases that are there, or those and zero ones ``added`` where the configuration can switch them on.

    Raises:
        ModelError: there is no bias to train or to add, or the model is wrapped by PEFT, quantised, or not in fp32.
    """
    require_in_place(model, "BitFit")
    if biases == "added":
        _add_biases(model)
    trained = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    if not trained:
        raise ModelError(f"BitFit trains biases, but {type(model).__name__} has no bias; {_remedy(model.config)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def _add_biases(model: PreTrainedModel) -> None:
    """Give the model's linear layers the biases that it would have with every switch on, at zero."""
    switches = _switches_off(model.config)
    wider = copy.deepcopy(model.config)
    wider.update(dict.fromkeys(switches, True))
    with torch.device("meta"):
        names = [name for name, _ in type(model)(wider).named_parameters()]
    own = dict(model.named_parameters())
    lacking = [name for name in names if name not in own]
    owners = [_linear_without_bias(model, name) for name in lacking]
    if not lacking or None in owners or not set(own) <= set(names):
        raise ModelError(
            f"{type(model).__name__}'s configuration has no switch that adds a bias to its linear layers alone; "
            "set `biases: existing` where it has some, or train another member (`kind: lora`)."
        )
    for linear in filter(None, owners):
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
    model.config.update(dict.fromkeys(switches, True))


def _linear_without_bias(model: PreTrainedModel, name: str) -> nn.Linear | None:
    """The layer that a new parameter belongs to; None where it is no bias of a linear layer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    return module if leaf == "bias" and isinstance(module, nn.Linear) and module.bias is None else None


def _switches_off(config: PretrainedConfig) -> list[str]:
    return [switch for switch in SWITCHES if getattr(config, switch, None) is False]


def _remedy(config: PretrainedConfig) -> str:
    if switches := _switches_off(config):
        return f"set `biases: added` for zero ones (its configuration has {', '.join(switches)})"
    return "its configuration cannot switch any on, so train another member (`kind: lora`)"
