"""Power-law tails against scipy's Pareto fit and Kolmogorov-Smirnov test over every xmin, and known exponents."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_1samp, pareto

from stablerank.spectral.tail import TailFit, hill_fit, power_law_fit, tail_exponent

FITS = [power_law_fit, hill_fit]


def singular_values(eigenvalues, dtype=torch.float64):
    return torch.from_numpy(np.sqrt(eigenvalues)).to(dtype)


def pareto_eigenvalues(alpha, count, seed):
    """Density ~ x^-alpha above 1; scipy's shape is that of the survival function, alpha - 1."""
    return pareto.rvs(alpha - 1, size=count, random_state=seed)


def scipy_fit(tail, xmin):
    """Alpha and distance; scipy searches for alpha numerically, to about 1e-8."""
    shape, _, _ = pareto.fit(tail, floc=0, fscale=xmin)
    return shape + 1, ks_1samp(tail, pareto(shape, scale=xmin).cdf).statistic


def brute_force(eigenvalues):
    """Every distinct eigenvalue but the last as xmin: ``(distance, xmin, alpha, tail)`` of the closest."""
    fits = []
    for xmin in np.unique(eigenvalues)[:-1]:
        tail = eigenvalues[eigenvalues >= xmin]
        alpha, distance = scipy_fit(tail, xmin)
        fits.append((distance, xmin, alpha, len(tail)))
    return min(fits)


def assert_is_brute_force(fit, eigenvalues):
    distance, xmin, alpha, tail = brute_force(eigenvalues)
    assert fit.status == "estimated"
    assert (fit.tail, fit.eigenvalues) == (tail, len(eigenvalues))
    assert fit.xmin == pytest.approx(xmin, rel=1e-12)
    assert fit.alpha == pytest.approx(alpha, rel=1e-7)
    assert fit.distance == pytest.approx(distance, rel=1e-6)
    assert fit.standard_error == pytest.approx((alpha - 1) / math.sqrt(tail), rel=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["pareto", "lognormal", "gaussian_matrix"])
def test_the_scan_is_scipys_over_every_xmin(kind, seed):
    rng = np.random.default_rng(seed)
    eigenvalues = {
        "pareto": lambda: rng.pareto(2.0, 150) + 1,
        "lognormal": lambda: rng.lognormal(0, 2, 150),
        "gaussian_matrix": lambda: np.linalg.svd(rng.standard_normal((90, 120)), compute_uv=False) ** 2,
    }[kind]()
    values = singular_values(eigenvalues)
    assert_is_brute_force(power_law_fit(values), values.square().numpy())


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 12), min_size=50, max_size=80).filter(lambda levels: len(set(levels)) > 1))
def test_equal_eigenvalues_stay_together(levels):
    values = torch.tensor(levels, dtype=torch.float64)
    fit = power_law_fit(values)
    distance, _, _, _ = brute_force(values.square().numpy())
    assert fit.distance == pytest.approx(distance, rel=1e-6)
    tail = values.square().numpy()
    tail = tail[tail >= fit.xmin * (1 - 1e-9)]
    assert (fit.tail, fit.alpha) == (len(tail), pytest.approx(scipy_fit(tail, tail.min())[0], rel=1e-7))


def test_blocks_of_the_scan_join():
    eigenvalues = pareto_eigenvalues(2.5, 1200, seed=0)  # six blocks
    values = singular_values(eigenvalues)
    assert_is_brute_force(power_law_fit(values), values.square().numpy())


@pytest.mark.parametrize("count", [50, 151])
def test_hill_is_scipys_fit_of_the_upper_half_from_the_eigenvalue_below_it(count):
    values = singular_values(pareto_eigenvalues(2.2, count, seed=count))
    ascending = values.square().sort().values.numpy()
    tail = ascending[-(count // 2) :]
    xmin = ascending[-(count // 2) - 1]
    fit = hill_fit(values)
    assert (fit.alpha, fit.distance) == pytest.approx(scipy_fit(tail, xmin), rel=1e-6)
    assert fit.xmin == pytest.approx(xmin, rel=1e-12)
    assert (fit.tail, fit.eigenvalues, fit.status) == (count // 2, count, "estimated")


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("alpha", [1.5, 2.5, 4.0])
def test_a_known_exponent_is_found(fit, alpha):
    fits = [fit(singular_values(pareto_eigenvalues(alpha, 1000, seed))) for seed in range(20)]
    scores = np.array([(found.alpha - alpha) / found.standard_error for found in fits])
    assert np.abs(scores).max() < 4
    assert abs(scores.mean()) < 1  # 4.5 standard errors of the mean


def test_the_start_of_the_tail_is_found():
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate((rng.uniform(0, 10, 1000), 10 * pareto_eigenvalues(3.0, 1000, seed=0)))
    fit = power_law_fit(singular_values(eigenvalues))
    assert 9 < fit.xmin < 15
    assert abs(fit.alpha - 3.0) < 4 * fit.standard_error


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("scale", [1e-120, 1e-3, 1e120])
def test_scale_order_and_zeros_change_nothing_but_xmin(fit, scale):
    values = singular_values(pareto_eigenvalues(2.5, 300, seed=1))
    changed = torch.cat((values.flip(0), torch.zeros(7, dtype=torch.float64))) * scale
    expected, found = fit(values), fit(changed)
    assert (found.tail, found.eigenvalues) == (expected.tail, 300)
    assert found.alpha == pytest.approx(expected.alpha, rel=1e-12)
    assert found.distance == pytest.approx(expected.distance, rel=1e-9)
    assert found.xmin == pytest.approx(expected.xmin * scale**2, rel=1e-12)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("values", "status", "eigenvalues"),
    [
        (torch.linspace(1, 9, 49), "refused", 49),
        (torch.cat((torch.linspace(1, 9, 49), torch.zeros(100))), "refused", 49),
        (torch.full((100,), 0.3), "refused", 100),
        (0.3 * (1 + 1e-7 * torch.rand(100, generator=torch.Generator().manual_seed(0))), "refused", 100),
        (torch.zeros(100), "zero", 0),
        (torch.empty(0), "empty", 0),
        (torch.cat((torch.linspace(1, 9, 99), torch.tensor([math.nan]))), "non_finite", 0),
        (torch.cat((torch.linspace(1, 9, 99), torch.tensor([math.inf]))), "non_finite", 0),
    ],
)
def test_no_exponent_where_none_is_defined(fit, values, status, eigenvalues):
    found = fit(values)
    assert found.status == status
    assert (found.tail, found.eigenvalues) == (0, eigenvalues)
    assert all(math.isnan(x) for x in (found.alpha, found.standard_error, found.xmin, found.distance))


def test_fifty_eigenvalues_are_enough():
    assert power_law_fit(torch.linspace(1, 9, 50)).status == "estimated"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_low_rank_matrix_is_refused_though_rounding_fills_its_spectrum(dtype):
    generator = torch.Generator().manual_seed(0)
    factors = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((200, 16), (16, 120)))
    values = torch.linalg.svdvals(next(factors) @ next(factors))
    assert (values > 0).sum() > 50
    found = power_law_fit(values)
    assert (found.status, found.eigenvalues) == ("refused", 16)


def test_a_clustered_top_does_not_spoil_the_fit():
    values = torch.cat((singular_values(pareto_eigenvalues(2.5, 200, seed=2)), torch.full((5,), 100.0)))
    assert_is_brute_force(power_law_fit(values), values.square().numpy())


def test_the_functional_keeps_batch_dtype_and_the_neighbours_of_a_refusal():
    values = singular_values(pareto_eigenvalues(2.5, 6 * 80, seed=3)).reshape(2, 3, 80)
    values[1, 0] = 0.0
    alphas = tail_exponent(values)
    expected = [[power_law_fit(row).alpha for row in rows] for rows in values]
    assert alphas.shape == (2, 3)
    np.testing.assert_array_equal(alphas.numpy(), expected)
    assert alphas.isnan().sum() == 1
    assert tail_exponent(values.float()).dtype == tail_exponent(values.half()).dtype == torch.float32
    assert tail_exponent(values[0, 0]).shape == ()
    assert tail_exponent(torch.empty(2, 0)).isnan().tolist() == [True, True]
    assert tail_exponent(torch.empty(0, 80)).shape == (0,)


def test_half_precision_values_are_read_as_their_fp32_copies():
    values = singular_values(pareto_eigenvalues(2.5, 300, seed=4), torch.bfloat16)
    assert isinstance(power_law_fit(values), TailFit)
    assert power_law_fit(values) == power_law_fit(values.float())
