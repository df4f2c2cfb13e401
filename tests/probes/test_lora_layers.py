"""What each adapted layer changes: the oracle is the layer's own forward pass on the unit vectors, in fp64."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Conv1D

from stablerank.errors import ModelError
from stablerank.peft import SpectralLoraConfig
from stablerank.probes.updates import adapter_updates, first_products, measure_updates
from stablerank.spectral.nulls import dense_null, factored_null
from stablerank.spectral.operators import Dense, Factored

RANK = 3
METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"spectral": {"method": "pissa", "svd": "exact"}},
    "polar free": {"spectral": {"method": "polar", "theta": "free"}},
    "polar diagonal": {"spectral": {"method": "polar", "theta": "diagonal"}},
    "polar identity": {"spectral": {"method": "polar", "theta": "identity"}},
    "sinelora": {"spectral": {"method": "sinelora", "omega": 30.0}},
}
INNER = {
    "lora": RANK,
    "rslora": RANK,
    "pissa": 2 * RANK,
    "polar free": RANK,
    "polar diagonal": RANK,
    "polar identity": 2 * RANK,
}
"""Inner rank of what is a product; the others are dense."""
FROM_A_PRODUCT = ("pissa", "polar identity")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(12, 20), "down": nn.Linear(20, 12)}) for _ in "ab")


def adapted(method, base=None, *, trained=True, dtype=torch.float32, **settings):
    settings = {"r": RANK, "lora_alpha": 5, "target_modules": ["up", "down"]} | settings
    model = get_peft_model(base or Model().to(dtype), SpectralLoraConfig(**settings, **METHODS[method]))
    if trained:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def computed(model, name):
    """What the layer adds to its weight, from its forward."""
    layer = copy.deepcopy(model.get_submodule(name)).double()
    units = torch.eye(layer.in_features, dtype=torch.float64)
    return (layer(units) - layer.base_layer(units)).T.numpy()


def rows_of(updates, **settings):
    rows = measure_updates(updates, run="run", seed=0, step=1, **settings)
    return {(row.layer, row.module, row.metric): row for row in rows}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_match_the_dense_update_that_the_layer_computes(method, dtype):
    model = adapted(method, dtype=dtype)
    updates = adapter_updates(model)
    rows = rows_of(updates)
    assert len(updates) == 4
    for (layer, module), update in zip(((i, m) for i in (0, 1) for m in ("up", "down")), updates, strict=True):
        delta = computed(model, update.name)
        rank, norm = rows[layer, module, "stable_rank"], rows[layer, module, "frobenius"]
        assert update.operator.shape == delta.shape
        assert rank.value == pytest.approx(np.linalg.norm(delta) ** 2 / np.linalg.norm(delta, 2) ** 2, rel=2e-5)
        assert norm.value == pytest.approx(np.linalg.norm(delta), rel=2e-5)
        expected = factored_null(*delta.shape, INNER[method]) if method in INNER else dense_null(*delta.shape)
        assert (rank.null, rank.null_kind) == (expected.median, expected.kind)
        assert rank.status in ("exact", "certified")


@pytest.mark.parametrize("method", METHODS)
def test_products_stay_products_and_the_rest_is_dense(method):
    operator = adapter_updates(adapted(method))[0].operator
    if method in INNER:
        assert isinstance(operator, Factored)
        assert operator.b_OR.shape[1] == INNER[method]
    else:
        assert isinstance(operator, Dense)


@pytest.mark.parametrize("method", METHODS)
def test_before_the_first_step_every_update_is_zero(method):
    rows = rows_of(adapter_updates(adapted(method, trained=False)))
    for (_, _, metric), row in rows.items():
        if metric == "stable_rank":
            assert row.status == "zero"
            assert math.isnan(row.value)
        else:
            assert row.lower == 0
            assert row.value < 1e-14


def test_dora_matches_what_peft_merges():
    model = adapted("dora").double()
    measured = {update.name: update.operator.materialised() for update in adapter_updates(model)}
    before = {name: model.get_submodule(name).base_layer.weight.detach().clone() for name in measured}
    model.merge_adapter()
    for name, delta in measured.items():
        merged = model.get_submodule(name).base_layer.weight
        torch.testing.assert_close(delta, merged - before[name], rtol=1e-10, atol=1e-12)


def test_dora_on_a_transposed_weight_matches_what_peft_merges():
    base = nn.Module()
    base.c_attn = Conv1D(24, 8)
    model = get_peft_model(
        base, LoraConfig(r=2, use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)
    ).double()
    layer = model.base_model.model.c_attn
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
    delta, before = adapter_updates(model)[0].operator.materialised(), base.c_attn.weight.detach().clone()
    model.merge_adapter()
    torch.testing.assert_close(delta, layer.base_layer.weight - before, rtol=1e-10, atol=1e-12)


def test_an_update_has_the_orientation_of_the_stored_weight():
    base = nn.Module()
    base.embed, base.c_attn = nn.Embedding(30, 8), Conv1D(24, 8)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["embed", "c_attn"], fan_in_fan_out=True))
    for update in adapter_updates(model):
        assert update.operator.shape == tuple(update.weight().shape)
        layer = model.get_submodule(update.name)
        with torch.no_grad():
            for factor in (*layer.lora_B.parameters(), *layer.lora_embedding_A.parameters()):
                factor.fill_(0.1)
        delta = layer.get_delta_weight("default").detach()
        torch.testing.assert_close(update.operator.matmat(torch.eye(delta.shape[1])), delta)


@pytest.mark.parametrize("method", METHODS)
def test_merging_changes_no_row_or_is_refused(method):
    model = adapted(method)
    before = rows_of(adapter_updates(model))
    model.merge_adapter()
    if method == "dora":
        with pytest.raises(ModelError, match=r"default is merged into its Linear layer.*unmerge_adapter"):
            rows_of(adapter_updates(model))
    else:
        assert repr(rows_of(adapter_updates(model))) == repr(before)
    with pytest.raises(ModelError, match="is merged"):
        adapter_updates(model)[0].weight()


@pytest.mark.parametrize("method", METHODS)
def test_measuring_an_adapter_disturbs_nothing(method):
    model = adapted(method).train()
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    rows_of(adapter_updates(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_the_first_product_is_that_of_the_untrained_factors(method):
    untrained, trained = adapted(method, trained=False), adapted(method)
    products = first_products(trained)
    assert len(products) == (4 if method in FROM_A_PRODUCT else 0)
    for product in products:
        layer = untrained.get_submodule(product.name)
        b, a = (factor["default"].weight.detach().double().numpy() for factor in (layer.lora_B, layer.lora_A))
        row = rows_of([product], kind="initial")
        (norm,) = [found for (_, _, metric), found in row.items() if metric == "frobenius"]
        assert norm.kind == "initial"
        assert norm.value == pytest.approx(np.linalg.norm(layer.scaling["default"] * b @ a), rel=1e-5)


def test_variants_without_a_matrix_of_their_own_are_skipped():
    model = get_peft_model(Model(), LoraConfig(r=2, target_modules=["up"], alora_invocation_tokens=[1]))
    with pytest.raises(ModelError, match="with an update that can be measured"):
        adapter_updates(model)
