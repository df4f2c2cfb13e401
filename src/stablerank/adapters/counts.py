"""What a method trains on an architecture, and how many parameters that is, without weights."""

import copy
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from stablerank.adapters.selective.bitfit import train_biases
from stablerank.adapters.selective.sparse import target_layers
from stablerank.adapters.specs import AdapterSpec, BitfitSpec, FullSpec, SparseSpec


def parameter_counts(spec: AdapterSpec, config: PretrainedConfig) -> tuple[int, int]:
    """``(trainable, of the model itself)``, counted on a weightless copy of the architecture.

    SparseFT counts every entry of the matrices it masks: how many the masks keep is known once weights are there.

    Raises:
        ValueError: the adapter's targets are not in the model.
        ModelError: the model has no biases to train, or a saved adapter cannot be read.
    """
    with torch.device("meta"):
        # A method may switch something on in it.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    total = model.num_parameters()
    if isinstance(spec, SparseSpec):
        return sum(layer.weight.numel() for layer in target_layers(model).values()), total
    policy = _prepared(spec, model)
    return sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad), total


def weightless_policy(spec: AdapterSpec, config: PretrainedConfig) -> nn.Module:
    """The architecture with the adapter on it, without weights: for what depends on names and shapes alone.

    Raises: as `parameter_counts`.
    """
    with torch.device("meta"):
        return _prepared(spec, AutoModelForCausalLM.from_config(copy.deepcopy(config)))


def _prepared(spec: AdapterSpec, model: Any) -> nn.Module:
    with torch.device("meta"):
        if isinstance(spec, FullSpec):
            return model
        if isinstance(spec, BitfitSpec):
            return train_biases(model, biases=spec.biases)
        peft_config = spec.peft_config()
        assert peft_config is not None
        peft_config.inference_mode = False  # a saved adapter's own says True, and it goes on training
        return get_peft_model(model, peft_config)
