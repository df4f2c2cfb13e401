"""The experiment itself: an update is added to a stored weight, rounded, read back; the estimate meets the truth."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stablerank.spectral.exact import stable_rank_exact
from stablerank.spectral.operators import Difference, Factored
from stablerank.spectral.representable import representable_fraction
from stablerank.zoo.resolve import resolve

SIZE = 700


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base(dtype, size=SIZE, scale=0.02):
    return (scale * random(size, size, seed=0)).to(dtype)


def update(kind, weight, relative_norm):
    rows, columns = weight.shape
    if kind == "dense":
        delta = random(rows, columns, seed=1)
    elif kind == "sparse":
        delta = random(rows, columns, seed=1) * (random(rows, columns, seed=2) < -1.28)
    else:
        delta = random(rows, int(kind), seed=1) @ random(int(kind), columns, seed=2)
    return delta * relative_norm * weight.double().norm() / delta.norm()


def stored(weight, delta, dtype=None):
    return (weight.double() + delta).to(dtype or weight.dtype)


def true_cosine_sq(after, before, delta):
    read = after.double() - before.double()
    return ((read * delta).sum() ** 2 / (read.square().sum() * delta.square().sum())).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["1", "8", "dense", "sparse"])
@pytest.mark.parametrize("relative_norm", [1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4])
def test_estimate_is_the_cosine_between_the_update_intended_and_read_back(dtype, kind, relative_norm):
    before = base(dtype)
    delta = update(kind, before, relative_norm)
    after = stored(before, delta)
    found = representable_fraction(after, before)
    truth = true_cosine_sq(after, before, delta)
    assert found.fraction == pytest.approx(truth, rel=0.15 if kind == "sparse" else 0.1)
    assert found.moved == pytest.approx((after != before).double().mean().item())


def test_sheppards_correction_takes_out_the_bias_of_a_coarse_ruler():
    """Without it a dense update on a million entries reads 4 % high on average."""
    before, ratios = base(torch.bfloat16, size=1024), []
    for relative_norm in (1.5e-3, 8e-4, 4e-4):
        delta = update("dense", before, relative_norm)
        after = stored(before, delta)
        ratios.append(representable_fraction(after, before).fraction / true_cosine_sq(after, before, delta))
    assert sum(ratios) / 3 == pytest.approx(1.0, abs=0.025)


@pytest.mark.parametrize(("relative_norm", "cosine", "read_rank"), [(1e-3, 0.73, 1.6), (1e-4, 0.27, 8.8)])
def test_published_loss_of_a_rank_one_update_in_bf16(relative_norm, cosine, read_rank):
    """Cosines 0.73 and 0.27, stable ranks 1.6 and 8.8 for a rank-1 update read back from bf16."""
    before = base(torch.bfloat16, size=512)
    b, a = random(512, 1, seed=1), random(1, 512, seed=2)
    factors = Factored(b, a, relative_norm * before.double().norm().item() / (b.norm() * a.norm()).item())
    after = stored(before, factors.scale * b @ a)
    assert math.sqrt(representable_fraction(after, before).fraction) == pytest.approx(cosine, abs=0.03)
    assert stable_rank_exact(factors).value == pytest.approx(1.0)
    assert stable_rank_exact(Difference(after, before)).value == pytest.approx(read_rank, rel=0.35)


def test_uniform_noise_cannot_explain_an_update_below_the_grid():
    """Why there is a ruler: the textbook formula calls this update pure noise, half of it arrived."""
    before = base(torch.bfloat16)
    delta = update("1", before, 1e-3)
    after = stored(before, delta)
    found = representable_fraction(after, before)
    assert found.noise_energy == 1.0
    assert true_cosine_sq(after, before, delta) > 0.5 and found.fraction > 0.5


@pytest.mark.parametrize("relative_norm", [1e-2, 3e-3, 1e-3])
def test_a_base_off_the_grid_turns_rounding_into_uniform_noise(relative_norm):
    before = base(torch.float32)
    delta = update("1", before, relative_norm)
    after = stored(before, delta, torch.bfloat16)
    found = representable_fraction(after, before)
    assert found.fraction == 1 - found.noise_energy
    assert found.fraction == pytest.approx(true_cosine_sq(after, before, delta), abs=0.02)


def test_fp32_keeps_everything_and_scale_does_not_matter():
    before = base(torch.float32)
    delta = update("8", before, 1e-3)
    assert representable_fraction(stored(before, delta), before).fraction == pytest.approx(1.0, abs=1e-6)
    small, large = (representable_fraction(stored(w, update("8", w, 1e-3)), w).fraction for w in _two_scales())
    assert small == pytest.approx(large, rel=1e-3)


def _two_scales():
    return base(torch.bfloat16, scale=2.0**-10), base(torch.bfloat16, scale=2.0**10)


def test_estimate_holds_on_trained_weights():
    folder = Path(resolve("zoo:arith-student"))
    tensors = load_file(next(folder.glob("*.safetensors")))
    before = max((t for t in tensors.values() if t.ndim == 2), key=lambda t: t.numel()).to(torch.bfloat16)
    for relative_norm in (1e-2, 1e-3, 3e-4):
        delta = update("8", before, relative_norm)
        after = stored(before, delta)
        truth = true_cosine_sq(after, before, delta)
        assert representable_fraction(after, before).fraction == pytest.approx(truth, rel=0.15)


def test_an_update_that_no_small_weight_can_show_is_not_estimated():
    before = torch.ones(500, 500, dtype=torch.bfloat16)
    after = stored(before, 1e-3 * random(500, 500, seed=3))
    found = representable_fraction(after, before)
    assert math.isnan(found.fraction) and 0 < found.moved < 0.05 and found.noise_energy == 1.0


@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf])
def test_zero_and_non_finite_updates_give_nan(bad):
    before = base(torch.bfloat16, size=8)
    after = before.clone()
    if bad is not None:
        after[2, 3] = bad
    found = representable_fraction(after, before)
    assert math.isnan(found.fraction) and math.isnan(found.moved) and math.isnan(found.noise_energy)


def test_wrong_shapes_and_types_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        representable_fraction(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="int8"):
        representable_fraction(torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 3, dtype=torch.int8))
