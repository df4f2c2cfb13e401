"""First factors against numpy and PEFT's own initialisers, on real PEFT layers."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from scipy.linalg import subspace_angles
from torch import nn

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.inits.geora import geora_masks
from stablerank.errors import ModelError
from stablerank.spectral.update_masks import low_magnitude_mask

RANK = 6
ROWS, COLUMNS = 130, 120


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path))
    monkeypatch.delenv("STABLERANK_FACTORS_GB", raising=False)
    return tmp_path / "factors"


class Model(nn.Module):
    """One linear layer that PEFT can find."""

    def __init__(self, weight):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        self.layer.weight.data = weight.clone()

    def forward(self, x):
        return self.layer(x)


def gaussian(rows=ROWS, columns=COLUMNS, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 10


def gapped(rows=ROWS, columns=COLUMNS):
    """A spectrum with a gap at the rank at both ends, so that heads and tails are well defined."""
    u, values, vh = np.linalg.svd(gaussian(rows, columns).double().numpy(), full_matrices=False)
    values[:RANK] += 2
    values[:-RANK] += 1
    return torch.from_numpy((u * values) @ vh).float()


def ours(weight, method, *, alpha=RANK, r=RANK, **settings):
    config = SpectralLoraConfig(
        r=r, lora_alpha=alpha, target_modules=["layer"], spectral={"method": method, **settings}
    )
    return get_peft_model(Model(weight), config).base_model.model.layer


def pefts(weight, init, alpha=RANK):
    config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["layer"], init_lora_weights=init)
    return get_peft_model(Model(weight), config).base_model.model.layer


def product(layer, adapter="default"):
    """``s B A`` in fp64."""
    b_OR, a_RI = layer.lora_B[adapter].weight.detach().double(), layer.lora_A[adapter].weight.detach().double()
    return (layer.scaling[adapter] * b_OR @ a_RI).numpy()


def part(matrix, index):
    u, values, vh = np.linalg.svd(np.asarray(matrix, dtype=np.float64), full_matrices=False)
    return (u[:, index] * values[index]) @ vh[index]


@pytest.mark.parametrize("svd", ["randomised", "exact"])
@pytest.mark.parametrize("alpha", [RANK, 3 * RANK])
@pytest.mark.parametrize("shape", [(130, 120), (120, 130)])
def test_pissa_starts_where_pefts_exact_pissa_does(svd, alpha, shape):
    weight = gapped(*shape)
    mine, oracle = ours(weight, "pissa", alpha=alpha, svd=svd), pefts(weight, "pissa", alpha)
    error = np.linalg.norm(product(mine) - product(oracle)) / np.linalg.norm(product(oracle))
    assert error < (1e-5 if svd == "exact" else 1e-2)
    for name in ("lora_A", "lora_B"):
        one, two = (getattr(layer, name)["default"].weight.detach().double() for layer in (mine, oracle))
        one, two = (x.mT if name == "lora_A" else x for x in (one, two))
        assert np.degrees(subspace_angles(one, two)).max() < (0.01 if svd == "exact" else 1.0)
        np.testing.assert_allclose(one.norm(dim=0).sort().values, two.norm(dim=0).sort().values, rtol=1e-3)


def test_the_head_of_a_flat_spectrum_keeps_the_energy_of_pefts():
    weight = gaussian(300, 200)
    mine, oracle = ours(weight, "pissa"), pefts(weight, "pissa")
    assert np.square(product(mine)).sum() == pytest.approx(np.square(product(oracle)).sum(), rel=1e-3)


@pytest.mark.parametrize("alpha", [RANK, 3 * RANK])
@pytest.mark.parametrize("shape", [(130, 120), (120, 130), (120, 120)])
def test_milora_starts_from_numpys_tail(alpha, shape):
    weight = gapped(*shape)
    np.testing.assert_allclose(
        product(ours(weight, "milora", alpha=alpha)), part(weight, slice(-RANK, None)), atol=1e-6
    )


def numpy_masks(weight, rho):
    def smallest(matrix):
        magnitudes = np.abs(matrix)
        count = round(rho * magnitudes.size)
        return magnitudes <= np.partition(magnitudes.ravel(), count - 1)[count - 1]

    return smallest(part(weight, slice(RANK))), smallest(weight.numpy())


@pytest.mark.parametrize("rho", [0.05, 0.2, 0.7])
def test_georas_masks_are_numpys_partitions(rho):
    weight = gapped()
    spectral, euclidean = geora_masks(weight, RANK, rho, "exact")
    expected = numpy_masks(weight, rho)
    assert np.count_nonzero(spectral.numpy() != expected[0]) <= 2  # fp32 against fp64 at the threshold
    np.testing.assert_array_equal(euclidean, expected[1])
    for mask in (spectral, euclidean):
        assert mask.float().mean().item() == pytest.approx(rho, abs=1 / weight.numel())


@pytest.mark.parametrize("is_spectral", [True, False])
@pytest.mark.parametrize("is_euclidean", [True, False])
@pytest.mark.parametrize("alpha", [RANK, 2 * RANK])
def test_geora_starts_from_the_head_of_the_masked_weight_times_the_scale(is_spectral, is_euclidean, alpha):
    weight = gapped()
    settings = {"rho": 0.3, "spectral_mask": is_spectral, "euclidean_mask": is_euclidean, "svd": "exact"}
    if not (is_spectral or is_euclidean):
        with pytest.raises(ModelError, match="keeps no entry"):
            ours(weight, "geora", **settings)
        return
    spectral, euclidean = numpy_masks(weight, 0.3)
    union = (spectral & is_spectral) | (euclidean & is_euclidean)
    expected = alpha / RANK * part(weight.numpy() * union, slice(RANK))
    error = np.linalg.norm(product(ours(weight, "geora", alpha=alpha, **settings)) - expected)
    assert error < 0.02 * np.linalg.norm(expected)


def test_georas_tail_is_numpys_and_its_random_triplets_are_triplets():
    weight = gapped()
    masked = weight.numpy() * np.logical_or(*numpy_masks(weight, 0.2))
    tail = product(ours(weight, "geora", component="tail", svd="exact"))
    assert np.linalg.norm(tail) == pytest.approx(np.linalg.norm(part(masked, slice(-RANK, None))), rel=0.05)
    drawn = np.linalg.svd(product(ours(weight, "geora", component="random", svd="exact")), compute_uv=False)[:RANK]
    values = np.linalg.svd(masked, compute_uv=False)
    nearest = np.abs(values[:, None] / drawn - 1).min(0)
    assert nearest.max() < 1e-3
    assert drawn[0] < values[0] * 0.99 or drawn[-1] < values[RANK] * 0.99  # not the head


def test_random_triplets_depend_on_the_weight_alone(monkeypatch):
    monkeypatch.setenv("STABLERANK_FACTORS_GB", "0")
    first = product(ours(gaussian(), "geora", component="random"))
    torch.manual_seed(99)
    ours(gaussian(seed=5), "geora", component="random")
    np.testing.assert_array_equal(product(ours(gaussian(), "geora", component="random")), first)
    other = np.linalg.svd(product(ours(gaussian(seed=5), "geora", component="random")), compute_uv=False)
    assert np.abs(other[:RANK] - np.linalg.svd(first, compute_uv=False)[:RANK]).max() > 1e-3


def test_ties_and_zeros_all_belong_to_a_mask():
    weight = gapped().bfloat16().float()
    weight[:70] = weight[:70].sign()
    weight[:20] = 0.0
    euclidean = geora_masks(weight, RANK, 0.1)[1]
    assert euclidean[:20].all() and euclidean.float().mean() >= 20 / ROWS
    assert torch.equal(euclidean, weight.abs() <= weight.abs()[euclidean].max())
    assert np.isfinite(product(ours(weight, "geora", rho=0.5))).all()
    with pytest.raises(ModelError, match="never train"):  # both masks hold nothing but the zeros
        ours(weight, "geora", rho=0.1)


def test_a_quantile_above_2_to_the_24_entries_is_exact():
    weight = torch.randn(4100, 4100, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert weight.numel() > 2**24
    magnitudes = weight.float().abs().numpy().ravel()
    count = round(0.2 * magnitudes.size)
    threshold = np.partition(magnitudes, count - 1)[count - 1]
    mask = low_magnitude_mask(weight, 0.2)
    assert np.count_nonzero(mask) == np.count_nonzero(magnitudes <= threshold) >= count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_olora_is_pefts_and_the_base_is_what_it_was(dtype):
    weight = gaussian().to(dtype)
    mine, oracle = ours(weight, "olora", alpha=2 * RANK), pefts(weight, "olora", alpha=2 * RANK)
    for name in ("lora_A", "lora_B"):
        one, two = getattr(mine, name)["default"].weight, getattr(oracle, name)["default"].weight
        # PEFT rounds what it computed to the dtype of the base.
        assert torch.equal(one.to(dtype).float(), two.float())
    assert torch.equal(mine.base_layer.weight, weight)
    assert not torch.equal(oracle.base_layer.weight, weight)


def calibrated(weight):
    model = Model(weight)
    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules=["layer"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm"),
    )
    x = torch.randn(400, weight.shape[1], generator=torch.Generator().manual_seed(2))
    preprocess_corda(model, config, run_model=lambda: model(x[None]))
    return model, config


def test_corda_is_pefts_and_the_base_is_what_it_was():
    weight = gaussian(30, 20)
    model, config = calibrated(weight)
    oracle = get_peft_model(copy.deepcopy(model), config).base_model.model.layer
    config = SpectralLoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"], spectral={"method": "corda"})
    mine = get_peft_model(model, config).base_model.model.layer
    for name in ("lora_A", "lora_B"):
        assert torch.equal(getattr(mine, name)["default"].weight, getattr(oracle, name)["default"].weight)
    assert torch.equal(mine.base_layer.weight, weight)


def test_corda_without_covariances_says_what_to_run():
    with pytest.raises(ModelError, match="preprocess_corda"):
        ours(gaussian(30, 20), "corda")


@pytest.mark.parametrize("method", ["pissa", "milora", "geora", "olora"])
def test_a_rank_above_the_smaller_side_is_refused(method):
    with pytest.raises(ModelError, match=r"Rank 21 exceeds"):
        ours(gaussian(30, 20), method, r=21)


@pytest.mark.parametrize("method", ["pissa", "milora", "geora"])
def test_a_weight_of_zeros_is_refused(method):
    with pytest.raises(ModelError, match="never train"):
        ours(torch.zeros(30, 20), method)


@pytest.mark.parametrize("method", ["pissa", "milora", "geora"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(method, bad):
    weight = gaussian(30, 20)
    weight[2, 3] = bad
    with pytest.raises(ModelError, match="not finite"):
        ours(weight, method)


@pytest.mark.parametrize("shape", [(130, 120), (30, 20)])
def test_milora_of_a_weight_without_a_tail_is_refused(shape):
    weight = torch.zeros(shape)
    weight[:8, :8] = torch.eye(8)
    with pytest.raises(ModelError, match="never train"):
        ours(weight, "milora")
    assert np.isfinite(product(ours(weight, "pissa"))).all()


@pytest.mark.parametrize("method", ["pissa", "milora", "geora", "olora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_fp32_contiguous_and_the_base_untouched(method, dtype):
    weight = gaussian().to(dtype)
    layer = ours(weight, method)
    assert torch.equal(layer.base_layer.weight, weight)
    for factor in (layer.lora_A0["default"].weight, layer.lora_B0["default"].weight):
        assert factor.dtype == torch.float32 and factor.is_contiguous() and not factor.requires_grad


def test_a_sweep_over_scales_factorises_once(cache, monkeypatch):
    weight = gaussian()
    ours(weight, "pissa")
    (entry,) = cache.iterdir()
    monkeypatch.setattr("stablerank.adapters.inits.components.leading_triplets", None)
    for alpha in (RANK, 2 * RANK, 7):
        energy = np.square(product(ours(weight, "pissa", alpha=alpha))).sum()
        assert energy == pytest.approx(np.square(part(weight, slice(RANK))).sum(), rel=1e-3)
    assert list(cache.iterdir()) == [entry]


def test_methods_settings_and_ranks_have_entries_of_their_own(cache):
    weight = gaussian()
    calls = (
        ("pissa", {}),
        ("pissa", {"svd": "exact"}),
        ("pissa", {"r": 5}),
        ("milora", {}),
        ("geora", {}),
        ("geora", {"rho": 0.3}),
        ("geora", {"spectral_mask": False}),
        ("geora", {"component": "tail"}),
    )
    for number, (method, settings) in enumerate(calls, start=1):
        ours(weight, method, **settings)
        assert len(list(cache.iterdir())) == number


def test_a_second_adapter_of_the_same_settings_takes_the_first_ones_factors(monkeypatch):
    monkeypatch.setenv("STABLERANK_FACTORS_GB", "0")
    config = SpectralLoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"], spectral={"method": "pissa"})
    model = get_peft_model(Model(gaussian()), config)
    layer = model.base_model.model.layer
    expected = product(layer)
    layer.lora_B["default"].weight.data.zero_()  # training moves B, not B0
    with monkeypatch.context() as patched:
        patched.setattr("stablerank.adapters.inits.components.leading_triplets", None)
        model.add_adapter("ref", copy.deepcopy(config))
        with pytest.raises(TypeError):
            model.add_adapter("other", SpectralLoraConfig(**{**config.to_dict(), "r": 5, "init_lora_weights": True}))
    np.testing.assert_array_equal(product(layer, "ref"), expected)
    assert layer.lora_B0["ref"].weight.data_ptr() != layer.lora_B0["default"].weight.data_ptr()


def test_another_scale_is_another_start():
    config = SpectralLoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"], spectral={"method": "pissa"})
    model = get_peft_model(Model(gaussian()), config)
    scaled = SpectralLoraConfig(r=RANK, lora_alpha=4 * RANK, target_modules=["layer"], spectral={"method": "pissa"})
    model.add_adapter("scaled", scaled)
    layer = model.base_model.model.layer
    np.testing.assert_allclose(product(layer, "scaled"), product(layer), atol=1e-6)
    assert not torch.equal(layer.lora_B0["scaled"].weight, layer.lora_B0["default"].weight)
