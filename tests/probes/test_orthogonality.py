"""The drift of PoLAR's factors against numpy, on a real adapted model."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from stablerank.peft import SpectralLoraConfig
from stablerank.probes.orthogonality import measure_orthogonality

MOMENT = {"run": "run", "seed": 1, "step": 4}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8))


def polar(theta="free"):
    config = SpectralLoraConfig(r=3, target_modules=["0", "1"], spectral={"method": "polar", "theta": theta})
    return get_peft_model(network(), config)


@pytest.mark.parametrize("theta", ["free", "diagonal", "identity"])
def test_a_fresh_adapter_has_no_drift(theta):
    rows = measure_orthogonality(polar(theta), **MOMENT)
    assert [row.module for row in rows] == ["base_model.model.0", "base_model.model.1"]
    assert all(0 <= row.value < 1e-5 for row in rows)
    assert {(row.kind, row.metric, row.null_kind, row.step) for row in rows} == {
        ("update", "orthogonality_drift", "none", 4)
    }


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_the_larger_drift_of_the_two_factors_is_reported(side):
    model = polar()
    layer = model.base_model.model[0]
    factor = getattr(layer, side)["default"].weight
    with torch.no_grad():
        factor.add_(0.1 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(1)))
    tall = factor.detach().double().numpy()
    tall = tall if side == "lora_B" else tall.T
    first, second = measure_orthogonality(model, **MOMENT)
    assert first.value == pytest.approx(np.linalg.norm(tall.T @ tall - np.eye(3)), rel=1e-9)
    assert first.value > 0.05 > second.value


def test_other_adapters_have_no_rows():
    lora = get_peft_model(network(), LoraConfig(r=3, target_modules=["0"]))
    pissa = get_peft_model(
        network(), SpectralLoraConfig(r=3, target_modules=["0"], spectral={"method": "pissa", "svd": "exact"})
    )
    assert measure_orthogonality(lora, **MOMENT) == measure_orthogonality(pissa, **MOMENT) == []
