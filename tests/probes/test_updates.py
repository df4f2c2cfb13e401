"""Update geometry on real tiny models: PEFT's own delta weights and numpy's SVD are the oracle."""

import math
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Conv1D, Qwen3Config, Qwen3ForCausalLM

from stablerank.errors import ModelError
from stablerank.probes.rows import layer_and_module
from stablerank.probes.updates import adapter_updates, full_updates, measure_updates, snapshot
from stablerank.spectral.nulls import dense_null, factored_null


def tiny_model():
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=40,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config)


def lora_model(base=None, trained=True, **settings):
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear"} | settings)
    model = get_peft_model(base or tiny_model(), config)
    if trained:
        randomise(model)
    return model


@torch.no_grad()
def randomise(model):
    generator = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator).to(weight.dtype))


def measure(updates):
    rows = measure_updates(updates, run="run", seed=3, step=10)
    assert [row.metric for row in rows] == ["stable_rank", "frobenius"] * len(updates)
    return list(zip(rows[::2], rows[1::2], strict=True))


def assert_matches(rank, norm, delta, rel):
    assert rank.value == pytest.approx(np.linalg.norm(delta) ** 2 / np.linalg.norm(delta, 2) ** 2, rel=rel)
    assert norm.value == pytest.approx(np.linalg.norm(delta), rel=rel)
    assert rank.lower <= rank.value <= rank.upper
    assert norm.lower <= norm.value <= norm.upper


@pytest.mark.parametrize("rank", [1, 4, 20])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapter_rows_match_peft_delta_weights(rank, use_rslora):
    model = lora_model(r=rank, use_rslora=use_rslora)
    updates = adapter_updates(model)
    assert len(updates) == 2 * 7
    for update, (stable, norm) in zip(updates, measure(updates), strict=True):
        delta = model.get_submodule(update.name).get_delta_weight("default").detach().double().numpy()
        assert_matches(stable, norm, delta, rel=1e-5)


def test_equal_shapes_of_unequal_rank_each_get_their_own_null():
    model = lora_model(target_modules=["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2})
    nulls = [stable.null for stable, _ in measure(adapter_updates(model))]
    assert nulls == [factored_null(32, 32, 4).median, factored_null(32, 32, 2).median]


def test_a_row_carries_its_place_its_certificate_and_the_null_of_its_structure():
    model = lora_model()
    rows = {(row.layer, row.module): row for row, _ in measure(adapter_updates(model))}
    row = rows[1, "mlp.down_proj"]
    null = factored_null(32, 48, 4)
    assert (row.run, row.seed, row.step, row.kind, row.tokens) == ("run", 3, 10, "update", None)
    assert (row.status, row.passes, row.confidence) == ("exact", 1, 1.0)
    assert (row.null, row.null_low, row.null_high, row.null_kind) == (null.median, null.low, null.high, null.kind)
    assert {layer for layer, _ in rows} == {0, 1}
    assert "self_attn.q_proj" in {module for _, module in rows}


def test_a_norm_has_no_null():
    _, norm = measure(adapter_updates(lora_model()))[0]
    assert norm.null_kind == "none"
    assert all(map(math.isnan, (norm.null, norm.null_low, norm.null_high)))


def test_random_factors_mostly_lie_inside_their_null():
    rows = [row for row, _ in measure(adapter_updates(lora_model(init_lora_weights=False)))]
    inside = [row.null_low <= row.value <= row.null_high for row in rows]
    assert sum(inside) >= 10


def test_an_untrained_adapter_is_zero_with_a_norm_but_no_stable_rank():
    for stable, norm in measure(adapter_updates(lora_model(trained=False))):
        assert stable.status == "zero"
        assert all(map(math.isnan, (stable.value, stable.lower, stable.upper)))
        assert (norm.status, norm.value) == ("exact", 0.0)


def test_a_diverged_adapter_is_named_and_spares_the_others():
    model = lora_model()
    updates = adapter_updates(model)
    with torch.no_grad():
        model.get_submodule(updates[3].name).lora_A["default"].weight[0, 0] = math.nan
    statuses = [stable.status for stable, _ in measure(adapter_updates(model))]
    assert [index for index, status in enumerate(statuses) if status == "non_finite"] == [3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_read_as_stored(dtype):
    model = lora_model().to(dtype)
    updates = adapter_updates(model)
    for update, (stable, norm) in zip(updates, measure(updates), strict=True):
        layer = model.get_submodule(update.name)
        b, a = (factor["default"].weight.detach().double().numpy() for factor in (layer.lora_B, layer.lora_A))
        assert_matches(stable, norm, layer.scaling["default"] * b @ a, rel=1e-10)


def test_merging_does_not_change_the_rows():
    model = lora_model()
    before = repr(measure(adapter_updates(model)))
    model.merge_adapter()
    assert repr(measure(adapter_updates(model))) == before


def test_embedding_adapters_are_measured_as_the_transposed_product_they_are():
    model = lora_model(target_modules=["embed_tokens", "q_proj"])
    updates = adapter_updates(model)
    assert layer_and_module(updates[0].name) == (None, "base_model.model.model.embed_tokens")
    delta = model.get_submodule(updates[0].name).get_delta_weight("default").detach().double().numpy()
    assert delta.shape == (40, 32)
    assert_matches(*measure(updates)[0], delta, rel=1e-5)


def test_gpt2_style_layers_are_measured():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = Conv1D(24, 8)

    base = nn.Module()
    base.h = nn.ModuleList([Block(), Block()])
    model = lora_model(base, target_modules=["c_attn"], fan_in_fan_out=True)
    (_, _), (stable, norm) = measure(adapter_updates(model))
    assert (stable.layer, stable.module) == (1, "c_attn")
    delta = model.base_model.model.h[1].c_attn.get_delta_weight("default").detach().double().numpy()
    assert_matches(stable, norm, delta, rel=1e-5)


def test_convolutions_are_skipped_and_a_model_of_nothing_else_is_refused():
    base = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(6, 5))
    updates = adapter_updates(lora_model(base, target_modules=["0", "1"]))
    assert [update.operator.shape for update in updates] == [(5, 6)]
    with pytest.raises(ModelError, match=r"LoRA adapter named 'default' with an update that can be measured"):
        adapter_updates(lora_model(nn.Sequential(nn.Conv2d(3, 6, 3)), target_modules=["0"]))


def test_an_unknown_adapter_is_refused_and_a_second_one_is_found():
    model = lora_model()
    with pytest.raises(ModelError, match="'ref'"):
        adapter_updates(model, "ref")
    model.add_adapter("ref", LoraConfig(r=2, target_modules=["q_proj"]))
    assert [update.operator.a_RI.shape for update in adapter_updates(model, "ref")] == [(2, 32)] * 2


def test_full_updates_match_numpy_and_their_dense_null():
    model = tiny_model()
    initial = snapshot(model)
    stored = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    randomise(model)
    updates = full_updates(model, initial)
    rows = measure(updates)
    assert len(updates) == 2 * 7 + 2
    assert (rows[0][0].layer, rows[0][0].module) == (None, "model.embed_tokens")
    for update, (stable, norm) in zip(updates, rows, strict=True):
        after = model.get_submodule(update.name).weight.detach()
        before = stored[f"{update.name}.weight"]
        assert_matches(stable, norm, after.double().numpy() - before.double().numpy(), rel=1e-10)
        assert stable.null == dense_null(*after.shape).median


def test_a_snapshot_is_a_copy_in_fp32_of_trainable_matrices_only():
    model = tiny_model().bfloat16()
    model.lm_head.weight.requires_grad_(False)
    initial = snapshot(model)
    assert {weight.dtype for weight in initial.values()} == {torch.float32}
    assert {weight.ndim for weight in initial.values()} == {2}
    assert "lm_head.weight" not in initial
    kept = initial["model.embed_tokens.weight"].clone()
    randomise(model)
    assert torch.equal(initial["model.embed_tokens.weight"], kept)


def test_fully_trained_modules_beside_an_adapter_are_full_updates_and_factors_are_not():
    model = lora_model(trained=False, target_modules=["q_proj"], modules_to_save=["lm_head"])
    initial = snapshot(model)
    randomise(model)
    (update,) = full_updates(model, initial)
    assert "lm_head" in update.name
    assert update.operator.shape == (40, 32)


def test_a_snapshot_of_another_model_is_refused_with_the_missing_name():
    with pytest.raises(ModelError, match=r"no entry 'model\.embed_tokens\.weight'"):
        full_updates(tiny_model(), {})


def test_a_model_that_trains_only_vectors_has_no_updates():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model[0].weight.requires_grad_(False)
    initial = snapshot(model)
    assert initial == {}
    assert full_updates(model, initial) == []
    assert measure_updates([], run="run", seed=0, step=1) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj", (3, "self_attn.q_proj")),
        ("transformer.h.11.attn.c_attn", (11, "attn.c_attn")),
        ("gpt_neox.layers.3.mlp.dense_h_to_4h", (3, "mlp.dense_h_to_4h")),
        ("model.layers.2.mlp.experts.5.down_proj", (2, "mlp.experts.5.down_proj")),
        ("lm_head", (None, "lm_head")),
        ("base_model.model.1", (None, "base_model.model.1")),
    ],
)
def test_layer_and_module_of_a_name(name, expected):
    assert layer_and_module(name) == expected


def test_measuring_disturbs_nothing():
    model = lora_model().train()
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    measure(adapter_updates(model) + full_updates(model, snapshot(model)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert model.training
    assert torch.is_grad_enabled()
    assert gradients
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name])
        assert name not in gradients or torch.equal(weight.grad, gradients[name])
