"""How many parameters a method trains on an architecture, counted without weights."""

import copy

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
        if isinstance(spec, FullSpec):
            return total, total
        if isinstance(spec, BitfitSpec):
            return sum(
                p.numel() for p in train_biases(model, biases=spec.biases).parameters() if p.requires_grad
            ), total
        if isinstance(spec, SparseSpec):
            return sum(layer.weight.numel() for layer in target_layers(model).values()), total
        return _trainable(get_peft_model(model, spec.peft_config())), total


def _trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
