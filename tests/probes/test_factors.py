"""Nuclear rank and factors of real adapters, against numpy's spectra of PEFT's own weights."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from stablerank.probes.factors import measure_factors
from stablerank.probes.updates import adapter_updates, full_updates, snapshot

MOMENT = {"run": "run", "seed": 0, "step": 1}


def adapted(trained=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=6, lora_alpha=12, target_modules="all-linear"))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and trained:
                weight.add_(torch.randn(weight.shape))
    return model


def test_rows_are_numpys_numbers():
    model = adapted()
    rows = {(f"{row.layer}.{row.module}", row.metric): row for row in measure_factors(adapter_updates(model), **MOMENT)}
    assert len(rows) == 2 * 7 * 5
    for layer in (0, 1):
        place = model.base_model.model.model.layers[layer].mlp.up_proj
        values = np.linalg.svd(place.get_delta_weight("default").detach().double().numpy(), compute_uv=False)
        found = rows[f"{layer}.mlp.up_proj", "nuclear_rank"]
        assert found.value == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)
        assert (found.kind, found.null_kind) == ("update", "gaussian_factors")
        for factor in ("lora_A", "lora_B"):
            weight = getattr(place, factor)["default"].weight.detach().double().numpy()
            values = np.linalg.svd(weight, compute_uv=False)
            rank = rows[f"{layer}.mlp.up_proj.{factor}", "stable_rank"]
            assert rank.value == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
            assert rank.kind == "factor" and rank.null_low < rank.null < rank.null_high
            assert rows[f"{layer}.mlp.up_proj.{factor}", "frobenius"].value == pytest.approx(np.linalg.norm(weight))


def test_before_the_first_step_b_is_zero_and_a_is_not():
    rows = measure_factors(adapter_updates(adapted(trained=False)), **MOMENT)
    status = {(row.module.rpartition(".")[2], row.status) for row in rows if row.metric == "stable_rank"}
    assert status == {("lora_A", "exact"), ("lora_B", "zero")}
    assert {row.status for row in rows if row.metric == "nuclear_rank"} == {"zero"}


def test_updates_that_are_no_product_have_no_rows():
    model = adapted().merge_and_unload()
    for weight in model.parameters():
        weight.requires_grad_(True)
    assert measure_factors(full_updates(model, snapshot(model)), **MOMENT) == []
