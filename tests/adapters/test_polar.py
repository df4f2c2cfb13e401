"""What PoLAR promises beyond the contract of all adapters: orthonormal factors, and the values in Theta."""

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.layer import SpectralLinear
from stablerank.adapters.variants.polar import stiefel_parameters
from stablerank.errors import ModelError
from stablerank.optimisers.landing import drift

THETAS = ("free", "diagonal", "identity")
DTYPES = (torch.float32, torch.bfloat16)
TARGETS = ["q_proj", "up_proj"]


def polar_config(theta: str, r: int = 4, targets: list[str] | str = TARGETS) -> SpectralLoraConfig:
    return SpectralLoraConfig(
        r=r, lora_alpha=2 * r, target_modules=targets, spectral={"method": "polar", "theta": theta}
    )


def layers(model):
    return [module for module in model.modules() if isinstance(module, SpectralLinear)]


def theta_of(layer) -> np.ndarray:
    weight = layer.lora_S["default"].weight.detach().double().numpy()
    return weight if weight.shape[0] == weight.shape[1] else np.diag(weight[0])


@pytest.fixture
def polar(load):
    """A tiny Qwen3 with PoLAR on it; ``trained`` moves every trained tensor, X and Y along the manifold only."""

    def build(theta, dtype=torch.float32, trained=False, **settings):
        torch.manual_seed(1)
        model = get_peft_model(load("qwen3", dtype), polar_config(theta, **settings))
        for name, value in model.named_parameters():
            if trained and "lora_S" in name:
                value.data.normal_()
            elif trained and value.requires_grad:
                torch.nn.init.orthogonal_(value.data)
        return model

    return build


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_step_is_the_base_to_the_bit_with_orthonormal_factors_in_fp32(polar, load, ids, theta, dtype):
    model = polar(theta, dtype)
    untouched = logits_of(load("qwen3", dtype), ids)
    assert torch.equal(logits_of(model, ids), untouched)
    factors = stiefel_parameters(model)
    assert len(factors) == 2 * len(layers(model)) == 8
    assert all(factor.dtype == torch.float32 and float(drift(factor)) < 1e-5 for factor in factors.values())
    model.merge_adapter()
    assert torch.equal(logits_of(model, ids), untouched)


@pytest.mark.parametrize(("theta", "moving"), [("free", {"S"}), ("diagonal", {"S"}), ("identity", {"A", "B"})])
def test_at_the_first_step_only_these_have_a_gradient(polar, ids, theta, moving):
    model = polar(theta)
    model(ids, labels=ids).loss.backward()
    moved = {
        name.split("lora_")[1].split(".")[0]
        for name, value in model.named_parameters()
        if value.grad is not None and value.grad.any()
    }
    assert moved == moving


@pytest.mark.parametrize("theta", THETAS)
def test_later_every_trained_tensor_has_a_gradient_and_no_other(polar, ids, theta):
    model = polar(theta, trained=True)
    model(ids, labels=ids).loss.backward()
    for name, value in model.named_parameters():
        assert (value.grad is not None and bool(value.grad.any())) == value.requires_grad, name
    trained = {name.split("lora_")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == ({"A", "B"} if theta == "identity" else {"A", "B", "S"})


@pytest.mark.parametrize("theta", ["free", "diagonal"])
def test_the_updates_singular_values_are_those_of_theta_times_the_scale(polar, theta):
    for layer in layers(polar(theta, trained=True)):
        values = np.linalg.svd(layer.get_delta_weight("default").double().numpy(), compute_uv=False)
        expected = 2.0 * np.linalg.svd(theta_of(layer), compute_uv=False)
        np.testing.assert_allclose(values[:4], expected, rtol=2e-6)
        assert values[4] < 1e-5 * values[0]


def test_with_the_identity_the_update_is_a_difference_of_two_isometries(polar):
    for layer in layers(polar("identity", trained=True)):
        for a, b in (("lora_A", "lora_B"), ("lora_A0", "lora_B0")):
            product = getattr(layer, b)["default"].weight @ getattr(layer, a)["default"].weight
            values = np.linalg.svd(product.detach().double().numpy(), compute_uv=False)
            np.testing.assert_allclose(values[:4], 1, rtol=1e-5)
        assert np.linalg.matrix_rank(layer.get_delta_weight("default").numpy(), tol=1e-4) == 8


@pytest.mark.parametrize(("theta", "rank"), [("free", 4), ("diagonal", 4), ("identity", 8)])
def test_the_plain_factors_give_the_update(polar, theta, rank):
    for layer in layers(polar(theta, trained=True)):
        b_OR, a_RI = layer.lora_variant["default"].factors(layer, "default")
        assert b_OR.shape[1] == a_RI.shape[0] == rank and not b_OR.requires_grad and not a_RI.requires_grad
        torch.testing.assert_close(2.0 * b_OR @ a_RI, layer.get_delta_weight("default"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("theta", THETAS)
def test_merged_unmerged_and_switched_off(polar, load, ids, theta):
    model, untouched = polar(theta, trained=True), logits_of(load("qwen3"), ids)
    trained = logits_of(model, ids)
    assert (trained - untouched).abs().max() > 0.1
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model, ids), trained, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits_of(model, ids), trained)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, ids), untouched)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), ids), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_and_loaded_it_is_the_same(polar, load, ids, tmp_path, theta, dtype):
    model = polar(theta, dtype, trained=True)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load("qwen3", dtype), tmp_path, is_trainable=True)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    assert loaded.peft_config["default"].spectral == {"method": "polar", "theta": theta}
    assert stiefel_parameters(loaded).keys() == stiefel_parameters(model).keys()


def test_only_trained_factors_are_listed_by_their_names_in_the_model(polar):
    model = polar("free")
    model.add_adapter("frozen", polar_config("identity"))
    model.add_adapter("plain", SpectralLoraConfig(r=2, target_modules=TARGETS))
    named = dict(model.named_parameters())
    found = stiefel_parameters(model)
    assert all(named[name] is factor for name, factor in found.items())
    assert {name.split(".")[-2] for name in found} == {"default"} and len(found) == 8


def test_one_adapter_among_others_can_be_deleted(polar, load, ids):
    model = polar("free", trained=True)
    before = logits_of(model, ids)
    model.add_adapter("second", polar_config("identity"))
    model.delete_adapter("second")
    assert torch.equal(logits_of(model, ids), before)
    assert not any("second" in name for name, _ in model.named_parameters())


def test_rank_one_and_a_rank_of_the_whole_side(polar, ids):
    for rank, theta in ((1, "free"), (1, "diagonal"), (32, "free")):
        model = polar(theta, trained=True, r=rank, targets=["q_proj"])
        trained = logits_of(model, ids)
        torch.testing.assert_close(logits_of(model.merge_and_unload(), ids), trained, atol=2e-4, rtol=1e-4)


def test_a_rank_above_a_side_and_an_unknown_theta_are_refused(load):
    with pytest.raises(ModelError, match="rank 33 is more than a 32-by-32 weight"):
        get_peft_model(load("qwen3"), polar_config("free", r=33, targets=["q_proj"]))
    with pytest.raises(ModelError, match=r"no theta 'triangular'.*free, diagonal, identity"):
        get_peft_model(load("qwen3"), polar_config("triangular"))
