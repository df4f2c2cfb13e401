"""Directions of updates: PEFT's own delta weights, numpy's SVD and scipy's angles are the oracle."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.linalg import subspace_angles
from transformers import LlamaConfig, LlamaForCausalLM

from stablerank.errors import ModelError
from stablerank.probes.directions import adjacent, bonus, distance, leading, overlap, profile
from stablerank.probes.updates import adapter_updates, full_updates, snapshot

K = 3


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
    )
    return LlamaForCausalLM(config)


def lora_model(seed=7, trained=True):
    model = get_peft_model(tiny_model(), LoraConfig(r=6, lora_alpha=12, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and trained:
                weight.add_(torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def updates():
    return adapter_updates(lora_model())


def dense(model, name):
    return model.get_submodule(name).get_delta_weight("default").detach().double().numpy()


def test_leading_directions_are_those_of_the_delta_weight(updates):
    model = lora_model()
    for found in leading(updates, K):
        u, _, vh = np.linalg.svd(dense(model, found.name))
        assert np.degrees(subspace_angles(found.u_OK.numpy(), u[:, :K])).max() < 1e-3
        assert np.degrees(subspace_angles(found.v_IK.numpy(), vh[:K].T)).max() < 1e-3


def test_directions_of_full_fine_tuning_are_those_of_the_difference():
    model = tiny_model()
    before = snapshot(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    changed = dict(model.named_parameters())
    for found in leading(full_updates(model, before), K):
        name = f"{found.name}.weight"
        u = np.linalg.svd((changed[name].detach().double() - before[name].double()).numpy())[0]
        assert np.degrees(subspace_angles(found.u_OK.numpy(), u[:, :K])).max() < 1e-3


def test_overlap_is_the_mean_squared_cosine_of_scipys_angles(updates):
    one, other = leading(updates, K), leading(adapter_updates(lora_model(seed=8)), K)
    for a, b in zip(one, other, strict=True):
        expected = np.cos(subspace_angles(a.v_IK.numpy(), b.v_IK.numpy())) ** 2
        assert overlap(a.v_IK, b.v_IK) == pytest.approx(expected.mean(), abs=1e-12)
        assert overlap(a.v_IK, a.v_IK) == pytest.approx(1)


def test_random_subspaces_overlap_by_their_share_of_dimensions():
    generator = torch.Generator().manual_seed(0)
    draws = [
        overlap(*(torch.linalg.qr(torch.randn(30, K, generator=generator).double()).Q for _ in range(2)))
        for _ in range(400)
    ]
    assert np.mean(draws) == pytest.approx(K / 30, abs=4 * np.std(draws) / 20)


def test_the_bonus_is_one_for_a_random_update_and_the_share_of_dimensions_turned_over_for_the_weight_itself(updates):
    weight = torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    vh = torch.linalg.svd(weight.double()).Vh
    found = leading(updates, K)[0]
    itself = type(found)("w", found.u_OK, vh[:K].mT)
    assert bonus(itself, weight) == pytest.approx(24 / K)
    away = type(found)("w", found.u_OK, vh[K : 2 * K].mT)
    assert bonus(away, weight) == pytest.approx(0, abs=1e-12)


def test_a_profile_is_the_energy_along_numpys_right_vectors(updates):
    model = lora_model()
    for update in updates[:7]:
        weight, delta = update.weight(), dense(model, update.name)
        vh = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)[2]
        expected = ((delta @ vh.T) ** 2).sum(0) / (delta**2).sum()
        assert profile(update.operator, weight).numpy() == pytest.approx(expected, abs=1e-6)


def test_distance_of_profiles_is_their_total_variation():
    one, other = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.25, 0.25])
    # Half of the second lies outside the basis.
    assert distance(one, other) == pytest.approx((0.5 + 0.25 + 0.25 + 0.5) / 2)
    assert distance(one, one) == 0


def test_neighbours_are_the_same_module_one_layer_on(updates):
    found = leading(updates, K)
    near = adjacent(found, "right")
    assert len(near) == 7 * 2 and not any(".2." in name for name in near)
    by_name = {one.name: one for one in found}
    name = next(name for name in near if name.endswith("0.mlp.down_proj"))
    expected = overlap(by_name[name].v_IK, by_name[name.replace(".0.", ".1.")].v_IK)
    assert near[name] == expected


def test_an_update_of_zero_has_no_directions():
    found = leading(adapter_updates(lora_model(trained=False)), K)
    assert all(np.isnan(overlap(one.v_IK, one.v_IK)) for one in found)


def test_more_directions_than_the_adapter_has_are_refused(updates):
    with pytest.raises(ModelError, match="has 6 directions, but 7 are asked for; ask for 6 or fewer"):
        leading(updates, 7)
