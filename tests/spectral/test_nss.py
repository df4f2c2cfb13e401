"""The spectral shift against numpy, Mirsky's bound as a property, its null against full random updates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from stablerank.spectral.nss import LARGEST_DRAWN, nss, nss_bound, nss_null
from stablerank.spectral.operators import Dense, Difference, Factored


def spectrum(matrix):
    return torch.linalg.svdvals(torch.as_tensor(matrix))


def real_shifts(sigma, shape, relative_norm, rank, draws, seed=9):
    """NSS of random updates of a dense base with random singular vectors: nothing rotated, nothing reduced."""
    rng = np.random.default_rng(seed)
    u, v = ortho_group.rvs(shape[0], random_state=rng), ortho_group.rvs(shape[1], random_state=rng)
    base = u[:, : len(sigma)] * sigma @ v[:, : len(sigma)].T
    shifts = []
    for _ in range(draws):
        if rank is None:
            update = rng.standard_normal(shape)
        else:
            update = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
        update *= relative_norm * np.linalg.norm(sigma) / np.linalg.norm(update)
        moved = np.linalg.svd(base + update, compute_uv=False)
        shifts.append(np.linalg.norm(moved - sigma) / np.linalg.norm(sigma))
    return np.array(shifts)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(-9, 3), st.integers(0, 2**20))
def test_shift_never_exceeds_mirskys_bound(rows, columns, exponent, seed):
    rng = np.random.default_rng(seed)
    before = rng.standard_normal((rows, columns))
    after = before + 10**exponent * rng.standard_normal((rows, columns))
    before_K = spectrum(before)
    bound = nss_bound(Difference(torch.as_tensor(after), torch.as_tensor(before)), before_K)
    assert bound == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert 0 <= nss(spectrum(after), before_K) <= bound * (1 + 1e-9) + 1e-14


def test_scaling_attains_the_bound_and_rotation_does_not_shift():
    before = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before_K = spectrum(before)
    assert nss(spectrum(1.25 * before), before_K) == pytest.approx(0.25)
    assert nss_bound(Dense(0.25 * before), before_K) == pytest.approx(0.25)
    rotated = torch.from_numpy(ortho_group.rvs(8, random_state=1)) @ before
    assert nss(spectrum(rotated), before_K) < 1e-14
    assert nss(before_K, before_K) == 0.0


def test_small_shifts_survive_fp32_spectra_being_given_in_fp64():
    before_K = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert nss(before_K * (1 + 1e-12), before_K) == pytest.approx(1e-12, rel=1e-3)


def test_undefined_inputs_give_nan():
    ones, zeros = torch.ones(3), torch.zeros(3)
    assert math.isnan(nss(ones, zeros))
    assert math.isnan(nss(torch.tensor([1.0, torch.nan, 0.0]), ones))
    assert math.isnan(nss(ones, torch.tensor([torch.inf, 1.0, 0.0])))
    assert math.isnan(nss_bound(Dense(torch.ones(3, 3)), zeros))
    for before_K, norm in ((zeros, 0.1), (ones, 0.0), (ones, math.nan), (ones * math.nan, 0.1)):
        assert nss_null(before_K, (3, 3), norm).kind == "none"


CASES = [
    (np.arange(1, 49) ** -0.7, (48, 48), 1e-3),
    (np.arange(1, 25) ** -0.5, (60, 24), 1e-3),
    (np.linspace(3, 1, 30), (30, 80), 3e-3),
    (np.arange(1, 25) ** -0.7, (60, 24), 0.3),
    (np.ones(20), (20, 20), 1e-4),
]


@pytest.mark.parametrize("rank", [None, 1, 4])
@pytest.mark.parametrize(("sigma", "shape", "relative_norm"), CASES, ids=["square", "tall", "wide", "large", "flat"])
def test_null_is_the_shift_of_full_random_updates(sigma, shape, relative_norm, rank):
    null = nss_null(torch.from_numpy(sigma), shape, relative_norm, rank=rank, draws=200)
    shifts = real_shifts(sigma, shape, relative_norm, rank, draws=200)
    assert null.median == pytest.approx(np.median(shifts), rel=0.15)
    assert np.mean((shifts >= null.low) & (shifts <= null.high)) > 0.85
    small = relative_norm < 0.1 and sigma[0] != sigma[-1]
    structure = "gaussian_matrix" if rank is None else "gaussian_factors"
    assert null.kind == structure + ("_first_order" if small else "")


def test_typical_size_is_far_below_the_bound():
    null = nss_null(torch.linspace(2, 1, 400), (400, 10_000), 1e-5)
    assert null.median == pytest.approx(1e-5 / 100, rel=0.02)


def test_a_large_matrix_beyond_first_order_has_no_null():
    null = nss_null(torch.ones(LARGEST_DRAWN + 1), (LARGEST_DRAWN + 1, 2000), 0.1)
    assert math.isnan(null.median) and null.kind == "none"


def test_a_factored_update_has_a_bound_too():
    b, a = torch.ones(4, 1), torch.ones(1, 3)
    assert nss_bound(Factored(b, a, 0.5), torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(0.5 * math.sqrt(12) / 5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        nss(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match=r"all 4 singular values of a matrix \(5, 4\).*\(3,\)"):
        nss_null(torch.ones(3), (5, 4), 0.1)
    with pytest.raises(ValueError, match="draws=10"):
        nss_null(torch.linspace(2, 1, 4), (4, 4), 1e-5, rank=1, draws=10)
