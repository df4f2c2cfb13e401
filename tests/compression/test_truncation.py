"""Truncation against numpy's SVD of the dense update, and against the update that PEFT computes."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from stablerank.compression.compress import compress, expand, load_compressed, read_adapter
from stablerank.compression.factors import modules
from stablerank.compression.spec import CompressionSpec
from stablerank.compression.truncation import truncated
from stablerank.errors import ModelError


def deltas(model):
    """Each module's update, scale included, by PEFT."""
    return {
        name: layer.get_delta_weight("default").double().numpy()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def cut(matrix, kept):
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :kept] * values[:kept] @ v[:kept]


@pytest.mark.parametrize("family", ["lora", "rslora", "patterns"])
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_each_update_is_its_best_of_that_rank(family, rank, adapters, load, tmp_path):
    _, folder = adapters(family)
    before = deltas(PeftModel.from_pretrained(load(), str(folder)))
    done = compress(folder, tmp_path / "small", CompressionSpec("fp16", rank=rank))
    after = deltas(load_compressed(done.file, load()))
    assert before.keys() == after.keys()
    for name, matrix in before.items():
        np.testing.assert_allclose(after[name], cut(matrix, rank), atol=2e-3 * np.abs(matrix).max())
    if rank < 5:
        assert done.account.file < 0.8 * done.account.fp16


@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_energy_keeps_the_fewest_directions(energy, adapters):
    config, tensors = read_adapter(adapters("lora")[1])
    _, written = truncated(config, tensors, rank=None, energy=energy)
    for b_name, a_name in modules(tensors).values():
        matrix = (tensors[b_name].double() @ tensors[a_name].double()).numpy()
        shares = np.cumsum(np.linalg.svd(matrix, compute_uv=False)[:8] ** 2) / np.linalg.norm(matrix) ** 2
        wanted = int(np.argmax(shares >= energy * (1 - 1e-9))) + 1
        assert written[a_name].shape[0] == written[b_name].shape[1] == wanted


def test_ranks_that_differ_load_in_stock_peft(adapters, load, tmp_path):
    _, folder = adapters("lora")
    done = compress(folder, tmp_path / "small", CompressionSpec(bits=8, energy=0.7))
    expand(done.file, tmp_path / "plain")
    stock = PeftModel.from_pretrained(load(), str(tmp_path / "plain"))
    ranks = {layer.r["default"] for layer in stock.modules() if hasattr(layer, "get_delta_weight")}
    assert len(ranks) > 1
    assert max(ranks) < 8


def test_a_zero_update_keeps_one_direction():
    tensors = {"m.lora_A.weight": torch.randn(4, 6), "m.lora_B.weight": torch.zeros(5, 4)}
    config, written = truncated({"lora_alpha": 8, "r": 4}, tensors, rank=None, energy=0.9)
    assert written["m.lora_A.weight"].shape == (1, 6)
    assert not written["m.lora_B.weight"].any()
    assert (config["r"], config["lora_alpha"]) == (1, 2)


def test_stacks_of_experts_are_refused():
    with pytest.raises(ModelError, match="stacks of experts"):
        truncated({"target_parameters": ["experts.up"]}, {}, rank=2, energy=None)
