"""The upper bound on the largest eigenvalue: counted misses against delta, and its inequality against numpy.

``benchmarks/measure_coverage.py`` counts ten thousand trials and more shapes.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import beta, binomtest

from stablerank.spectral.certificate import least_overlap, rounding_allowance, shortfall
from stablerank.spectral.lanczos import BlockLanczos, random_start
from stablerank.spectral.operators import Dense

DELTA = 0.01
WIDTHS = (1, 2, 4, 8)
seeds = st.integers(0, 2**31)


def rotated(rng, values, rows, columns):
    """A matrix with these singular values between random orthonormal frames."""
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (rows, columns))
    return (left * values) @ right.T


def gaussian(rng, rows, columns):
    return rng.standard_normal((rows, columns))


def positive(rng, rows, columns):
    return rng.uniform(size=(rows, columns))


def power_law(rng, rows, columns):
    return rotated(rng, np.arange(1, min(rows, columns) + 1) ** -0.5, rows, columns)


def spiked(rng, rows, columns):
    return gaussian(rng, rows, columns) + 3 * math.sqrt(rows) * rotated(rng, np.array([1.0, 0.7]), rows, columns)


def low_rank(rng, rows, columns):
    return rotated(rng, np.arange(5.0, 0, -1), rows, columns)


def clustered(rng, rows, columns):
    values = np.linspace(0.1, 0.5, min(rows, columns))
    values[:4] = 1 + 1e-5 * np.arange(4)
    return rotated(rng, values, rows, columns)


def lonely_top(rng, rows, columns):
    """One value above equal ones: the next Lanczos vector holds all of x_1, and the bound is attained in one step."""
    values = np.ones(min(rows, columns))
    values[0] = 1.5
    return rotated(rng, values, rows, columns)


SPECTRA = (gaussian, positive, power_law, spiked, low_rank, clustered, lonely_top)


def started(matrix, start, steps):
    run = BlockLanczos(Dense(matrix), start, steps)
    for _ in range(steps):
        run.step()
    tridiagonal, defect = run.tridiagonal()
    theta = torch.linalg.eigvalsh(tridiagonal)[-1].item()
    return run, tridiagonal, theta, max(rounding_allowance(matrix.shape, matrix.dtype) * theta, 8 * defect)


def random_run(matrix, *, width, steps, seed):
    return started(matrix, random_start(width, min(matrix.shape), seed=seed, like=matrix), steps)


def upper_bound(run, tridiagonal, theta, eta, epsilon):
    """The least x that the certificate shows to exceed lambda_1, to 1e-9 of its distance from the Ritz value."""

    def logarithm(y):
        x = theta * (1 + math.exp(y))
        return math.log(min(max(shortfall(x, run, tridiagonal, epsilon=epsilon, eta=eta), 1e-300), 1e300))

    lowest, highest = -27.0, 30.0
    return theta * (1 + math.exp(lowest if logarithm(lowest) < 0 else brentq(logarithm, lowest, highest, rtol=1e-9)))


def top_eigenvalue(matrix):
    return np.linalg.norm(matrix.double().numpy(), 2) ** 2


def interval(misses, trials):
    """Clopper-Pearson, 95 %."""
    return binomtest(misses, trials).proportion_ci(method="exact")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("delta", [1e-6, 0.01, 0.3])
def test_the_least_overlap_is_the_quantile_of_the_beta_law(width, delta):
    law = beta(width / 2, (500 - width) / 2)
    assert least_overlap(width, 500, delta) ** 2 == pytest.approx(law.ppf(delta), rel=1e-9)


@pytest.mark.parametrize("width", WIDTHS)
def test_misses_are_consistent_with_delta_and_the_lower_bound_never_misses(width):
    rng, misses, trials = np.random.default_rng(width), 0, 500
    for trial in range(trials):
        rows, columns = rng.integers(24, 97, size=2)
        size = min(rows, columns)
        dtype = (torch.float64, torch.float32)[trial % 2]
        matrix = torch.from_numpy(SPECTRA[trial % len(SPECTRA)](rng, rows, columns)).to(dtype)
        steps = int(rng.integers(1, min(6, size // width - 1) + 1))
        run = random_run(matrix, width=width, steps=steps, seed=trial)
        truth, theta, eta = top_eigenvalue(matrix), run[2], run[3]
        assert theta - eta <= truth
        misses += upper_bound(*run, least_overlap(width, size, DELTA)) < truth
    assert interval(misses, trials).low <= DELTA


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_where_the_bound_is_attained_it_misses_as_often_as_it_may(width, delta):
    """A wrong quantile and a wrong chain would both show here.

    On this spectrum the chain is ``||c|| / sqrt(1 - ||c||^2)`` after one step: the miss rate is known, and near delta.
    """
    rng, misses, trials = np.random.default_rng(width), 0, 400
    matrix = torch.from_numpy(lonely_top(rng, 50, 40))
    truth, epsilon = top_eigenvalue(matrix), least_overlap(width, 40, delta)
    for trial in range(trials):
        run, tridiagonal, _, eta = random_run(matrix, width=width, steps=1, seed=trial)
        misses += shortfall(truth, run, tridiagonal, epsilon=epsilon, eta=eta) < 1
    allowed = (0.999 * epsilon) ** 2
    expected = beta(width / 2, (40 - width) / 2).cdf(allowed / (1 + allowed))
    low, high = interval(misses, trials)
    assert 0.4 * delta < expected <= delta
    assert low <= expected <= high


@pytest.mark.parametrize("width", WIDTHS)
def test_an_epsilon_that_is_too_large_is_noticed(width):
    """The counts above would have caught an error of epsilon."""
    rng, misses, trials = np.random.default_rng(width), 0, 200
    matrix = torch.from_numpy(lonely_top(rng, 50, 40))
    truth, epsilon = top_eigenvalue(matrix), least_overlap(width, 40, 0.2)
    for trial in range(trials):
        misses += upper_bound(*random_run(matrix, width=width, steps=1, seed=trial), epsilon) < truth
    assert interval(misses, trials).low > DELTA


@pytest.mark.parametrize("width", WIDTHS)
def test_a_start_that_depends_on_the_matrix_breaks_the_bound(width):
    """Blocks orthogonal to the top singular vector: the certificate must fail, for its only assumption does."""
    rng = np.random.default_rng(width)
    for _ in range(10):
        matrix = spiked(rng, 90, 60)
        top = np.linalg.svd(matrix)[2][0]
        block = rng.standard_normal((width, 60))
        start = np.linalg.qr((block - np.outer(block @ top, top)).T)[0].T
        run = started(torch.from_numpy(matrix), torch.from_numpy(start.copy()), 6)
        assert upper_bound(*run, least_overlap(width, 60, DELTA)) < 0.9 * np.linalg.norm(matrix, 2) ** 2


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(SPECTRA),
    st.integers(24, 60),
    st.integers(24, 60),
    st.sampled_from(WIDTHS),
    st.integers(1, 6),
    seeds,
)
def test_the_right_side_is_at_least_the_overlap_at_the_true_eigenvalue(spectrum, rows, columns, width, steps, seed):
    """The inequality behind the bound, which holds with certainty: ``||c|| <= chain + eta response``."""
    matrix = torch.from_numpy(spectrum(np.random.default_rng(seed), rows, columns)).float()
    size = min(rows, columns)
    start = random_start(width, size, seed=seed, like=matrix)
    run, tridiagonal, _, eta = started(matrix, start, min(steps, size // width - 1))
    left, sigma, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    overlap = np.linalg.norm(start.double().numpy() @ (right[0] if rows >= columns else left[:, 0]))
    assert 0.999 * shortfall(sigma[0] ** 2, run, tridiagonal, epsilon=1.0, eta=eta) >= 0.999 * overlap


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(SPECTRA), st.sampled_from(WIDTHS), st.integers(1, 6), seeds, st.floats(1e-9, 1), st.floats(1e-6, 10)
)
def test_the_right_side_falls_as_x_rises(spectrum, width, steps, seed, above, further):
    matrix = torch.from_numpy(spectrum(np.random.default_rng(seed), 70, 60))
    run, tridiagonal, theta, eta = random_run(matrix, width=width, steps=steps, seed=seed)
    x = theta * (1 + above)
    nearer, farther = (
        shortfall(place, run, tridiagonal, epsilon=0.01, eta=eta) for place in (x, x + further * (x - theta))
    )
    assert farther <= nearer * (1 + 1e-9)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_nothing_is_shown_at_the_ritz_value_and_below(spectrum):
    matrix = torch.from_numpy(spectrum(np.random.default_rng(0), 70, 60))
    run, tridiagonal, theta, eta = random_run(matrix, width=4, steps=4, seed=0)
    for x in (0.0, 0.5 * theta, theta * (1 - 1e-9)):
        assert shortfall(x, run, tridiagonal, epsilon=1.0, eta=eta) == math.inf


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(900, 300), (300, 900)])
@pytest.mark.parametrize("width", [1, 8])
def test_rounding_in_fp32_stays_within_its_allowance(spectrum, shape, width):
    """``x_1^T (M V - V T - V_next L^T E_S^T)`` in fp64, for the basis that the fp32 run really has."""
    matrix = torch.from_numpy(spectrum(np.random.default_rng(1), *shape)).float()
    run, tridiagonal, _, eta = random_run(matrix, width=width, steps=8, seed=0)
    known = run._basis_NK.double().numpy()
    basis_NK, next_BK = known[: 8 * width], known[8 * width : 9 * width]
    double = matrix.double().numpy()
    left, sigma, right = np.linalg.svd(double, full_matrices=False)
    top_K = right[0] if shape[0] >= shape[1] else left[:, 0]
    error_N = sigma[0] ** 2 * (basis_NK @ top_K) - tridiagonal.numpy() @ (basis_NK @ top_K)
    error_N[-width:] -= run.coupling[-1].numpy() @ (next_BK @ top_K)
    assert 0 < np.linalg.norm(error_N) <= eta / 2
