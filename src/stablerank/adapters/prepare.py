"""From a spec to a model that is ready to train: one call for every method.

Contract: low-rank adapters go through PEFT's `get_peft_model` and give a `PeftModel` on the untouched base; methods
that train the model's own parameters give the same model with those left trainable. Methods that look at data (EVA,
CorDA) are PEFT's own and need ``calibration``: batches with ``input_ids`` and, where there is padding, an
``attention_mask``; nothing else of a batch is read, and sequences are batched anew.

Cost: the SVD-type methods factorise every adapted weight, seconds to minutes; ``progress`` is told after each layer.

Left out on purpose: PEFT's own residual inits under the names ``pissa`` and ``olora``, which change the base.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.layer import spectral_linear
from stablerank.adapters.selective.bitfit import train_biases
from stablerank.adapters.selective.in_place import train_all
from stablerank.adapters.selective.sparse import target_layers, train_sparse
from stablerank.adapters.specs import (
    AdapterSpec,
    BitfitSpec,
    CordaSpec,
    EvaSpec,
    InPlaceSpec,
    LowRankSpec,
    SavedSpec,
    SparseSpec,
)
from stablerank.errors import ModelError

Batch = Mapping[str, Tensor]
"""What a model's forward takes, by name."""
Progress = Callable[[int, int], None]
"""``(layers done, layers in all)``."""
NEEDS_DATA = ("eva", "corda")
"""Kinds that start from the inputs of each layer."""
_EVA_TOKENS = 1024


def prepare_adapter(
    model: PreTrainedModel,
    spec: AdapterSpec,
    calibration: Iterable[Batch] = (),
    progress: Progress | None = None,
) -> PeftModel | PreTrainedModel:
    """The model with the spec's adapter on it, freshly started, or with the spec's own parameters left trainable.

    Args:
        model: as ``from_pretrained`` gave it; its weights are not written.
        spec: of `stablerank.peft`, such as ``GeoraSpec(kind="geora", r=16)``.
        calibration: for EVA and CorDA; others do not read it.
        progress: told after each factorised layer.

    Raises:
        ModelError: the model has an adapter already, has no layer that the targets name, or one too small for the rank;
            a method that starts from data got none.
    """
    if isinstance(model, PeftModel):
        raise ModelError("The model holds an adapter already; pass the base, or merge with `model.merge_and_unload()`.")
    if isinstance(spec, InPlaceSpec):
        return _in_place(model, spec)
    if isinstance(spec, SavedSpec):
        return PeftModel.from_pretrained(model, spec.path, is_trainable=True)
    config, targets = spec.peft_config(), target_layers(model, spec.targets)
    # EVA looks for more directions than it keeps, and keeps those that explain most.
    sought = round(spec.r * config.eva_config.rho) if isinstance(spec, EvaSpec) else spec.r
    _check_rank(spec, sought, targets)
    rows = _sequences(spec.kind, calibration, sought) if spec.kind in NEEDS_DATA else []
    if isinstance(spec, CordaSpec):
        _collect_eigens(model, spec, list(targets), rows)
    with _told(config, progress, len(targets)):
        # EVA makes every factor anew, so PEFT advises to leave the first ones without memory.
        wrapped = get_peft_model(model, config, low_cpu_mem_usage=isinstance(spec, EvaSpec))
    if isinstance(spec, EvaSpec):
        initialize_lora_eva_weights(wrapped, _eva_batches(rows, sought), show_progress_bar=False)
        cast_adapter_dtype(wrapped, "default")  # layers that got another rank have factors in the base's dtype
    return wrapped


def _in_place(model: PreTrainedModel, spec: InPlaceSpec) -> PreTrainedModel:
    if isinstance(spec, BitfitSpec):
        return train_biases(model, spec.biases)
    if isinstance(spec, SparseSpec):
        return train_sparse(model, spec.rho, spec.spectral_mask, spec.euclidean_mask, spec.rank)
    return train_all(model)


def _check_rank(spec: LowRankSpec, sought: int, targets: Mapping[str, nn.Linear]) -> None:
    """What starts from directions of a weight needs that many; plain LoRA merely wastes what is more."""
    if spec.spectral() is None and not isinstance(spec, EvaSpec):
        return
    limits = {
        name: layer.in_features if isinstance(spec, EvaSpec) else min(layer.in_features, layer.out_features)
        for name, layer in targets.items()
    }
    name = min(limits, key=lambda name: limits[name])
    if sought > limits[name]:
        layer = targets[name]
        raise ModelError(
            f"{spec.kind} with r={spec.r} needs {sought} directions of {name}, and a weight of {layer.out_features} by "
            f"{layer.in_features} has {limits[name]}; lower r, or leave that layer out of `targets`."
        )


def _sequences(kind: str, calibration: Iterable[Batch], rank: int) -> list[Tensor]:
    """The token ids ``(T,)`` of every sequence, without padding.

    Raises:
        ModelError: there are fewer tokens than directions to find.
    """
    rows = []
    for batch in calibration:
        ids_NT = batch["input_ids"]
        kept_NT = batch.get("attention_mask", torch.ones_like(ids_NT)).bool()
        rows += [ids[kept] for ids, kept in zip(ids_NT, kept_NT, strict=True)]
    tokens = sum(len(row) for row in rows)
    if tokens < rank:
        raise ModelError(
            f"{kind} starts from the inputs of the layers and needs at least r={rank} tokens of calibration data, but "
            f"got {tokens}; give batches of your task as `calibration=`, or a text file with `--calibration`."
        )
    return rows


def _eva_batches(rows: list[Tensor], rank: int) -> list[dict[str, Tensor]]:
    """Batches of about a thousand tokens or more, and never fewer than r: PEFT skips such a one, and would not end."""
    groups: list[list[Tensor]] = [[]]
    for row in rows:
        if sum(len(other) for other in groups[-1]) >= max(rank, _EVA_TOKENS):
            groups.append([])
        groups[-1].append(row)
    if len(groups) > 1 and sum(len(row) for row in groups[-1]) < rank:
        rest = groups.pop()
        groups[-1] += rest
    return [
        {
            "input_ids": pad_sequence(group, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in group], batch_first=True),
        }
        for group in groups
    ]


def _collect_eigens(model: PreTrainedModel, spec: CordaSpec, targets: list[str], rows: list[Tensor]) -> None:
    """PEFT's CorDA preprocessing: leaves the triplets that the initialiser reads on each layer."""
    if getattr(model, "is_loaded_in_4bit", False):
        raise ModelError(
            f"PEFT's CorDA multiplies the packed 4-bit weights of {type(model).__name__} as they are; load the base "
            "in 8 bits or unquantised, or start with PiSSA."
        )
    config = LoraConfig(r=spec.r, target_modules=targets, init_lora_weights="corda", corda_config=CordaConfig())
    was_training = model.training

    def run() -> None:
        for row in rows:  # its hook takes one sequence at a time
            model(input_ids=row[None].to(model.device))

    preprocess_corda(model, config, run)
    model.train(was_training)


@contextmanager
def _told(config: SpectralLoraConfig, progress: Progress | None, total: int) -> Iterator[None]:
    """Tell ``progress`` of every layer that PEFT asks us to make."""
    if progress is None:
        yield
        return
    done = 0

    def made(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        layer = spectral_linear(*args, **kwargs)
        done += 1
        progress(done, total)
        return layer

    progress(0, total)
    config._register_custom_module({nn.Linear: made})
    try:
        yield
    finally:
        config._register_custom_module({nn.Linear: spectral_linear})
