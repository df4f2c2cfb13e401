"""Merging and unmerging in bf16, as TRL does before every generation with vLLM: the frozen base must not drift."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from stablerank.peft import SpectralLoraConfig

CYCLES = 200
SHAPE = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

Load = Callable[..., PreTrainedModel]


def _trained(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """An adapter whose update is not zero."""
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapted


def _base_bits(model: PeftModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".default" not in n}


def _changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, bits in before.items() if not torch.equal(bits, after[name])]


def _cycle(model: PeftModel, cycles: int) -> None:
    for _ in range(cycles):
        model.merge_adapter()
        model.unmerge_adapter()


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"spectral": {"method": "pissa"}}],
    ids=["lora", "dora", "pissa"],
)
def test_our_layer_gives_the_bf16_base_back_bit_by_bit(settings: dict[str, object], load: Load) -> None:
    model = _trained(load("qwen3", torch.bfloat16), SpectralLoraConfig(**SHAPE, **settings))
    before = _base_bits(model)
    model.merge_adapter()
    assert len(_changed(before, _base_bits(model))) == 14  # every linear layer of two blocks: it was merged
    model.unmerge_adapter()
    _cycle(model, CYCLES - 1)
    assert _changed(before, _base_bits(model)) == []


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_the_base_drifts_under_stock_peft(settings: dict[str, object], load: Load) -> None:
    """The control: the same adapters and cycles, PEFT's own layer."""
    model = _trained(load("qwen3", torch.bfloat16), LoraConfig(**SHAPE, **settings))
    before = _base_bits(model)
    _cycle(model, 20)
    assert len(_changed(before, _base_bits(model))) == 14
