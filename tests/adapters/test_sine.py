"""What SineLoRA promises beyond the contract of all adapters: exact gradients, bounded memory, a frequency."""

import math

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.layer import SpectralLinear
from stablerank.adapters.variants import sine
from stablerank.adapters.variants.sine import sine_product
from stablerank.errors import ModelError

DTYPES = (torch.float32, torch.bfloat16)
CHUNKS = (1, 14, 2**20)
"""One row at a time, two rows, all rows."""


def sine_config(dropout: float = 0.0, **settings) -> SpectralLoraConfig:
    spectral = {"method": "sinelora", "omega": 200.0, **settings}
    return SpectralLoraConfig(
        r=2, lora_alpha=4, lora_dropout=dropout, target_modules=["q_proj", "down_proj"], spectral=spectral
    )


def layers(model):
    return [module for module in model.modules() if isinstance(module, SpectralLinear)]


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def sinelora(load):
    """A tiny Qwen3 with SineLoRA on it; ``trained`` fills B."""

    def build(dtype=torch.float32, trained=False, **settings):
        torch.manual_seed(1)
        model = get_peft_model(load("qwen3", dtype), sine_config(**settings))
        for name, value in model.named_parameters():
            if trained and "lora_B" in name:
                value.data.normal_(std=0.3)
        return model

    return build


def operands(dtype=torch.float64, tokens=(3, 4), inputs=7, outputs=5, rank=2):
    generator = torch.Generator().manual_seed(0)
    shapes = ((*tokens, inputs), (outputs, rank), (rank, inputs))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(True) for shape in shapes]


def dense(x, b_OR, a_RI, omega, amplitude):
    """The same by autograd, with the whole update in memory."""
    return torch.nn.functional.linear(x, amplitude * torch.sin(omega * (b_OR @ a_RI)))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_against_finite_differences(monkeypatch, chunk):
    monkeypatch.setattr(sine, "CHUNK", chunk)
    assert torch.autograd.gradcheck(lambda *values: sine_product(*values, 1.7, 0.3), operands())


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "needed", [(True, True, True), (False, True, True), (True, False, False), (False, False, True)]
)
def test_product_and_gradients_are_those_of_the_dense_form(monkeypatch, chunk, needed):
    monkeypatch.setattr(sine, "CHUNK", chunk)
    values = [value.detach().requires_grad_(need) for value, need in zip(operands(), needed, strict=True)]
    wanted = [value for value in values if value.requires_grad]
    found, expected = sine_product(*values, 9.0, 0.3), dense(*values, 9.0, 0.3)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).reshape(found.shape)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * weights).sum(), wanted) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.entries = max(self.entries, made.numel())
        return made


def test_no_matrix_of_the_updates_size_is_kept_or_made(monkeypatch):
    monkeypatch.setattr(sine, "CHUNK", 90)
    values = operands(torch.float32, tokens=(3,), inputs=30, outputs=40)
    kept = []
    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sine_product(*values, 9.0, 0.3).sum().backward()
    assert {tuple(tensor.shape) for tensor in kept} <= {(3, 30), (40, 2), (2, 30), (3, 40)}
    assert 90 <= seen.entries <= 3 * 40


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_step_is_the_base_to_the_bit(sinelora, load, ids, dtype):
    model, untouched = sinelora(dtype), logits_of(load("qwen3", dtype), ids)
    assert torch.equal(logits_of(model, ids), untouched)
    model.merge_adapter()
    assert torch.equal(logits_of(model, ids), untouched)


def test_gradients_reach_b_first_then_both_factors_and_nothing_else(sinelora, ids):
    for trained, expected in ((False, {"B"}), (True, {"A", "B"})):
        model = sinelora(trained=trained)
        model(ids, labels=ids).loss.backward()
        reached = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()]
        assert {name.split("lora_")[1][0] for name in reached} == expected
        assert len(reached) == len(layers(model)) * len(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_unmerged_switched_off_and_reloaded(sinelora, load, ids, tmp_path, dtype):
    model, untouched = sinelora(dtype, trained=True), logits_of(load("qwen3", dtype), ids)
    trained = logits_of(model, ids)
    assert (trained - untouched).abs().max() > 0.1
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load("qwen3", dtype), tmp_path)
    assert torch.equal(logits_of(loaded, ids), trained)
    # A frequency of 200 turns the phase around many times: a sine in bf16 would be noise.
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model, ids), trained, atol=tolerance, rtol=0)
    model.unmerge_adapter()
    assert torch.equal(logits_of(model, ids), trained)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, ids), untouched)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), ids), trained, atol=tolerance, rtol=0)


def test_the_update_is_bounded_far_above_the_rank_and_no_product(sinelora):
    for layer in layers(sinelora(trained=True)):
        delta = layer.get_delta_weight("default").numpy()
        bound = 2.0 / math.sqrt(layer.in_features)
        assert 0.99 * bound < np.abs(delta).max() <= bound * (1 + 1e-6)
        assert np.linalg.matrix_rank(delta) > 10
        assert layer.lora_variant["default"].factors(layer, "default") is None


def test_a_gain_that_is_given_replaces_the_root_of_the_inputs(sinelora):
    default, given = (layers(sinelora(trained=True, gain=gain)) for gain in (None, 8.0))
    for one, other in zip(default, given, strict=True):
        ratio = math.sqrt(one.in_features) / 8.0
        torch.testing.assert_close(other.get_delta_weight("default"), one.get_delta_weight("default") * ratio)


def test_under_autocast_the_product_is_in_bf16_and_the_phase_in_fp32():
    values = [value.detach() for value in operands(torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = sine_product(*values, 300.0, 0.3)
    assert torch.equal(inside, sine_product(*values, 300.0, 0.3))
    in_bf16 = sine_product(values[0].bfloat16(), *values[1:], 300.0, 0.3)
    assert in_bf16.dtype == torch.bfloat16
    torch.testing.assert_close(in_bf16.float(), inside, atol=0.02, rtol=0.02)


def test_a_model_trains_under_autocast_with_dropout(sinelora, ids):
    model = sinelora(trained=True, dropout=0.2).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(ids, labels=ids).loss.backward()
    reached = [value.grad for value in model.parameters() if value.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() and grad.any() for grad in reached)


def test_dropout_thins_the_inputs_in_training_only(sinelora, ids):
    model = sinelora(trained=True, dropout=0.5)
    assert torch.equal(logits_of(model.eval(), ids), logits_of(model, ids))
    assert not torch.equal(logits_of(model.train(), ids), logits_of(model, ids))


def test_one_adapter_among_others_can_be_deleted(sinelora, ids):
    model = sinelora(trained=True)
    before = logits_of(model, ids)
    model.add_adapter("second", sine_config(omega=20.0))
    model.delete_adapter("second")
    assert torch.equal(logits_of(model, ids), before)
    assert all(layer.sine_wave.keys() == {"default"} for layer in layers(model))


@pytest.mark.parametrize("omega", [0, -1.0, math.inf, math.nan, None, "200"])
def test_a_frequency_that_is_no_positive_number_is_refused(load, omega):
    with pytest.raises(ModelError, match=r"SineLoRA's omega is .*positive number"):
        get_peft_model(load("qwen3"), sine_config(omega=omega))


def test_a_gain_of_zero_is_refused(load):
    with pytest.raises(ModelError, match="SineLoRA's gain is 0"):
        get_peft_model(load("qwen3"), sine_config(gain=0))
