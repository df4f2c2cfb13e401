"""The frequency search against scipy's least squares, and as an adapter that loads."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from stablerank.compression.compress import compress, encode_adapter, load_compressed, read_adapter
from stablerank.compression.factors import modules
from stablerank.compression.frequency import PHASES, search_frequency, with_sine
from stablerank.compression.spec import CompressionSpec
from stablerank.compression.tensors import decode_tensor
from stablerank.errors import ModelError


@pytest.fixture(scope="module")
def both(adapters):
    config, tensors = read_adapter(adapters("lora")[1])
    encoded, _ = encode_adapter(config, tensors, CompressionSpec(bits=2))
    return config, tensors, {part.record.name: decode_tensor(part.record, part.payload, part.side) for part in encoded}


def entries(tensors):
    pairs = modules(tensors).values()
    return np.concatenate([(tensors[b].double() @ tensors[a].double()).numpy().ravel() for b, a in pairs])


def test_gain_and_error_are_least_squares(both):
    config, before, after = both
    found = search_frequency(config, before, after)
    w, p = entries(before), entries(after)
    assert [fit.phase for fit in found.fits_F] == list(PHASES)
    for fit in found.fits_F:
        assert fit.omega * np.sqrt((p**2).mean()) == pytest.approx(fit.phase, rel=1e-5)
        shape = np.sin(fit.omega * p)
        best = minimize_scalar(lambda inverse, shape=shape: ((shape * inverse - w) ** 2).sum())
        assert 1 / fit.gain == pytest.approx(best.x, rel=1e-3)
        assert fit.error == pytest.approx(np.sqrt(best.fun / (w**2).sum()), rel=1e-3)
    assert found.best.error == min(fit.error for fit in found.fits_F)


def test_a_low_frequency_is_the_linear_fit(both):
    found = search_frequency(*both, phases=[1e-4])
    assert found.best.error == pytest.approx(found.linear, rel=1e-5)


def test_a_sine_is_found_where_there_is_one():
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(40, 1, generator=generator), torch.randn(1, 30, generator=generator)
    u, values, v = torch.linalg.svd((0.8 * b @ a).sin())
    target = {"m.lora_B.weight": u[:, :30] * values, "m.lora_A.weight": v}
    found = search_frequency({}, target, {"m.lora_B.weight": b, "m.lora_A.weight": a}, [0.1, 0.2, 0.4, 0.8, 1.6])
    assert found.best.omega == pytest.approx(0.8, rel=0.25)
    assert found.best.error < 0.5 * found.linear


def test_a_compressed_sine_loads(adapters, load, both, tmp_path):
    _, folder = adapters("lora")
    done = compress(folder, tmp_path / "small", CompressionSpec(bits=2, sine=True))
    assert done.frequency is not None
    model = load_compressed(done.file, load())
    config, before, after = both
    best = search_frequency(config, before, after).best
    assert done.frequency.best == best
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    wanted = layer.scaling["default"] * torch.sin(best.omega * (b @ a)) / best.gain
    torch.testing.assert_close(layer.get_delta_weight("default"), wanted, rtol=1e-4, atol=1e-6)
    assert with_sine(config, best)["spectral"]["omega"] == best.omega


@pytest.mark.parametrize("family", ["dora", "sinelora"])
def test_a_sine_on_what_is_no_plain_lora_is_refused(family, adapters, tmp_path):
    with pytest.raises(ModelError, match="plain LoRA of linear layers only"):
        compress(adapters(family)[1], tmp_path / "small", CompressionSpec(sine=True))
    assert not (tmp_path / "small").exists()


def test_zero_updates_are_refused():
    tensors = {"m.lora_B.weight": torch.zeros(4, 2), "m.lora_A.weight": torch.ones(2, 3)}
    with pytest.raises(ModelError, match="nothing to fit"):
        search_frequency({}, tensors, tensors)
