"""Chains and blocks against numpy, scipy's quadrature and inputs that were kept whole."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen3Config

from stablerank.testbeds import initialisation as world

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}


def numpy_stable_rank(matrix):
    values = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    return (values**2).sum() / values[0] ** 2


@pytest.mark.parametrize("activation", world.ACTIVATIONS)
def test_a_chain_is_numpys_on_the_same_draws(activation):
    found = world.chain(activation, 16, 3, 40, 5)
    kept = [numpy_stable_rank(each) for each in world.layers(activation, 16, 3, 40, 5)]
    assert found == pytest.approx(kept, rel=1e-9)


@pytest.mark.parametrize("activation", ["relu", "squared_relu", "gelu", "silu"])
def test_a_wide_layer_is_near_its_noise_to_signal_ratio(activation):
    def act(t):
        x = torch.tensor(float(t), dtype=torch.float64)
        return float(world.ACTIVATIONS[activation](x, x))

    def moment(power):
        def integrand(t):
            return act(t) ** power * norm.pdf(t)

        return quad(integrand, -12, 0)[0] + quad(integrand, 0, 12)[0]

    bound = moment(2) / moment(1) ** 2
    (found,) = world.chain(activation, 512, 1, 2048, 0)
    assert 0.7 * bound < found < 1.1 * bound


def test_without_a_mean_the_stable_rank_grows_with_width():
    for activation in ("tanh", "swiglu"):
        small, large = (world.chain(activation, width, 1, 4 * width, 0)[0] for width in (32, 128))
        assert large > 2 * small


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LlamaConfig(num_key_value_heads=2, **SIZES), ("q_proj", "o_proj", "up_proj", "down_proj")),
        (Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES), ("q_proj", "o_proj", "up_proj", "down_proj")),
        (GPTNeoXConfig(**SIZES), ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")),
    ],
    ids=["llama", "qwen3", "neox"],
)
def test_blocks_read_the_inputs_of_a_random_model(config, names):
    found = world.blocks(config, 3, 20, 7)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).eval()
    kept = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: kept.update({name: args[0].flatten(0, 1)}))
    with torch.no_grad():
        model(input_ids=torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(7)))
    for role, ending in zip(
        ("before_attention", "attention_output", "before_mlp", "post_activation"), names, strict=True
    ):
        expected = [numpy_stable_rank(x) for name, x in kept.items() if name.endswith(ending)]
        assert found[role] == pytest.approx(expected, rel=1e-5)
