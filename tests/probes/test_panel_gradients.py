"""Gradients of single examples, against plain backward passes and numpy."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stablerank.errors import DataError, ModelError
from stablerank.probes.panel_gradients import noise_scale, panel_gradients
from stablerank.zoo.resolve import resolve

TEXTS = [[3, 5, 7, 4, 6, 9, 11, 2], [8, 2, 2, 5, 3], [4, 4, 10, 6, 12, 7, 5]]
MODULES = r"layers\.[01]\..*(q_proj|down_proj)"


def loaded():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))


def losses_of(model, texts=TEXTS):
    def loss_of(ids):
        ids_1L = torch.tensor([ids])
        return lambda: model(input_ids=ids_1L, labels=ids_1L).loss

    return [loss_of(ids) for ids in texts]


def plain_gradients(model, names):
    """``(E, W)`` matrices from `backward` on a model of its own."""
    weights = dict(model.named_parameters())
    found = []
    for loss in losses_of(model.eval()):
        model.zero_grad()
        loss().backward()
        found.append([weights[f"{name}.weight"].grad.double().numpy().copy() for name in names])
    return found


def test_norms_cosines_and_ranks_are_those_of_plain_backward_passes():
    model = loaded()
    found = panel_gradients(model, losses_of(model), MODULES)
    assert len(found.names) == 4
    single_EW = plain_gradients(loaded(), found.names)
    flat_EP = np.array([np.concatenate([part.ravel() for part in row]) for row in single_EW])
    mean_P = flat_EP.mean(0)
    np.testing.assert_allclose(found.norm_E, np.linalg.norm(flat_EP, axis=1), rtol=1e-6)
    expected = flat_EP @ mean_P / np.linalg.norm(flat_EP, axis=1) / np.linalg.norm(mean_P)
    np.testing.assert_allclose(found.cosine_E, expected, rtol=1e-6)
    spread = flat_EP.var(0, ddof=1).sum()
    signal = mean_P @ mean_P - spread / len(TEXTS)
    assert found.noise_scale == pytest.approx(spread / signal if signal > 0 else math.nan, rel=1e-6, nan_ok=True)
    for weight in range(4):
        for example in range(len(TEXTS)):
            values = np.linalg.svd(single_EW[example][weight], compute_uv=False)
            rank = found.example_ranks_WE["stable_rank"][weight, example]
            assert rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-6)
            nuclear = found.example_ranks_WE["nuclear_rank"][weight, example]
            assert nuclear == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
        values = np.linalg.svd(np.mean([row[weight] for row in single_EW], axis=0), compute_uv=False)
        assert found.mean_ranks_W["stable_rank"][weight] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-6)


def test_frozen_weights_under_an_adapter_give_the_gradient_of_the_whole_weight():
    bare = loaded()
    adapted = get_peft_model(loaded(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    before = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    found = panel_gradients(adapted, losses_of(adapted), MODULES + r".*base_layer")
    expected = panel_gradients(bare, losses_of(bare), MODULES)
    np.testing.assert_allclose(found.norm_E, expected.norm_E, rtol=1e-6)
    assert {name: parameter.requires_grad for name, parameter in adapted.named_parameters()} == before
    assert all(parameter.grad is None for parameter in adapted.parameters())


def test_every_linear_layer_of_the_blocks_counts_and_no_factor_of_an_adapter():
    adapted = get_peft_model(loaded(), LoraConfig(r=4, target_modules="all-linear"))
    names = panel_gradients(adapted, losses_of(adapted, TEXTS[:2])).names
    assert len(names) == 4 * 7 and not any("lora" in name for name in names)


def test_mode_and_random_state_are_left_alone():
    model = loaded().train()
    state = torch.get_rng_state()
    panel_gradients(model, losses_of(model, TEXTS[:2]), MODULES)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_a_gradient_of_zero_has_no_rank_and_no_direction():
    model = loaded()
    zero = losses_of(model)[0]
    found = panel_gradients(model, [*losses_of(model, TEXTS[:2]), lambda: 0 * zero()], MODULES)
    assert found.norm_E[2] == 0 and np.isnan(found.cosine_E[2])
    assert np.isnan(found.example_ranks_WE["stable_rank"][:, 2]).all()
    assert np.isfinite(found.mean_ranks_W["stable_rank"]).all()


def test_the_noise_scale_is_zero_for_equal_gradients_and_undefined_for_opposite_ones():
    assert noise_scale(np.array([4.0, 4.0, 4.0]), 4.0) == 0
    assert math.isnan(noise_scale(np.array([1.0, 1.0]), 0.0))
    # Two gradients (3, 1) and (1, 3): spread 4, mean (2, 2) of square 8, signal 8 - 4 / 2.
    assert noise_scale(np.array([10.0, 10.0]), 8.0) == pytest.approx(4 / 6)


def test_bad_panels_are_refused():
    model = loaded()
    with pytest.raises(DataError, match="a panel of 1 example"):
        panel_gradients(model, losses_of(model, TEXTS[:1]))
    with pytest.raises(ModelError, match="no module"):
        panel_gradients(model, losses_of(model), "nothing_like_it")
