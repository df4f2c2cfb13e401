"""Metrics of a spectrum and their intervals, against numpy, scipy and mpmath on matrices at the stated distance."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from stablerank.spectral.exact import Spectra, spectrum
from stablerank.spectral.operators import Dense
from stablerank.spectral.spectrum_metrics import SPECTRUM_METRICS, spectrum_metric
from stablerank.spectral.tail import power_law_fit

FP32_EPS = 2.0**-23


def sigma(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


ORACLES = {
    "nuclear_rank": lambda m: (np.linalg.norm(m, "nuc") / np.linalg.norm(m)) ** 2,
    "participation_ratio": lambda m: (np.linalg.norm(m) ** 2 / np.linalg.norm(m.T @ m)) ** 2,
    "effective_rank": lambda m: math.exp(entropy(sigma(m))),
    "numerical_rank": lambda m: np.linalg.matrix_rank(m, rtol=min(m.shape) * FP32_EPS),
    "spectral_entropy": lambda m: entropy(sigma(m) ** 2),
    "condition_number": np.linalg.cond,
}
"""Each from an imported function of the matrix itself."""


def random_matrix(rng, rows, columns, decades):
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (rows, columns))
    count = min(rows, columns)
    return (left[:, :count] * np.logspace(0, -decades, count)) @ right[:count]


def perturbations(rng, matrix, error):
    """Matrices at Frobenius distance ``error``: a random one, and those that move the spectrum most."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    count = len(values)
    largest, smallest, every = np.eye(count)[0], np.eye(count)[-1], np.full(count, count**-0.5)
    yield matrix + error * (noise := rng.standard_normal(matrix.shape)) / np.linalg.norm(noise)
    for direction in (largest, smallest, every):
        for sign in (1, -1):
            yield matrix + sign * error * (left * direction) @ right


def as_spectra(matrix, error):
    return Spectra(torch.from_numpy(sigma(matrix))[None], torch.tensor([error], dtype=torch.float64))


def test_every_metric_but_the_fit_has_an_oracle():
    assert set(ORACLES) == set(SPECTRUM_METRICS) - {"tail_exponent"}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 14),
    st.integers(2, 14),
    st.sampled_from([0.0, 0.3, 1.0, 4.0, 8.0]),
    st.floats(-9, -0.5),
    st.integers(0, 2**31),
)
def test_the_interval_holds_every_matrix_within_the_error(rows, columns, decades, exponent, seed):
    rng, error = np.random.default_rng(seed), 10.0**exponent
    matrix = random_matrix(rng, rows, columns, decades)
    near = [matrix, *perturbations(rng, matrix, error)]
    for name, oracle in ORACLES.items():
        estimate = spectrum_metric(name, as_spectra(matrix, error))
        assert estimate.status == "exact"
        assert estimate.value == pytest.approx(oracle(matrix), rel=1e-7), name
        for other in near:
            truth = oracle(other)
            # 1e-11 for numpy's own rounding; a condition number is only known to that of the smallest value.
            slack = 1e-11 + (1e-15 * truth if name == "condition_number" and math.isfinite(truth) else 0.0)
            assert estimate.lower * (1 - slack) - 1e-11 <= truth <= estimate.upper * (1 + slack) + 1e-11, name


@pytest.mark.parametrize("name", ORACLES)
def test_the_interval_closes_with_the_error_and_a_stated_one_that_is_too_small_would_fail(name):
    rng = np.random.default_rng(0)
    matrix = random_matrix(rng, 12, 10, 1.0)
    tight, wide = (spectrum_metric(name, as_spectra(matrix, error)) for error in (1e-12, 1e-2))
    assert tight.upper - tight.lower <= 1e-6 * max(tight.value, 1.0)
    assert wide.lower <= tight.lower <= tight.value <= tight.upper <= wide.upper
    if name != "numerical_rank":
        truths = [ORACLES[name](other) for other in perturbations(rng, matrix, 1e-2)]
        assert not all(tight.lower <= truth <= tight.upper for truth in truths)


def high_precision(values, name):
    """From singular values, to 50 digits."""
    total, energy = mpmath.fsum(values), mpmath.fsum(v**2 for v in values)
    return {
        "nuclear_rank": total**2 / energy,
        "participation_ratio": energy**2 / mpmath.fsum(v**4 for v in values),
        "effective_rank": mpmath.exp(-mpmath.fsum(v / total * mpmath.log(v / total) for v in values)),
        "numerical_rank": sum(v > len(values) * FP32_EPS * max(values) for v in values),
        "spectral_entropy": -mpmath.fsum(v**2 / energy * mpmath.log(v**2 / energy) for v in values),
        "condition_number": max(values) / min(values),
    }[name]


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("decades", [0.5, 3.0, 6.0])
def test_with_the_rounding_bound_of_the_spectrum_the_truth_to_fifty_digits_is_inside(name, decades):
    matrix = random_matrix(np.random.default_rng(1), 9, 6, decades)
    estimate = spectrum_metric(name, spectrum(Dense(torch.from_numpy(matrix))))
    with mpmath.workdps(50):
        values = list(mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False))
        assert estimate.lower <= high_precision(values, name) <= estimate.upper
    assert (estimate.status, estimate.passes) == ("exact", 1)


def test_a_rank_deficient_matrix_has_an_unbounded_condition_number():
    matrix = random_matrix(np.random.default_rng(0), 8, 6, 0.0)
    matrix[:, 0] = matrix[:, 1]
    estimate = spectrum_metric("condition_number", spectrum(Dense(torch.from_numpy(matrix))))
    assert estimate.upper == math.inf
    assert estimate.lower > 1e9


@pytest.mark.parametrize("name", ORACLES)
def test_one_value_and_equal_values_are_known(name):
    for count in (1, 7):
        estimate = spectrum_metric(name, as_spectra(np.eye(count), 1e-9))
        expected = {"spectral_entropy": math.log(count), "condition_number": 1.0}.get(name, float(count))
        assert estimate.value == pytest.approx(expected, abs=1e-12)
        assert estimate.lower - 1e-12 <= expected <= estimate.upper + 1e-12


@pytest.mark.parametrize("count", [10, 49, 50, 300])
def test_a_tail_is_fitted_from_fifty_values_and_never_bounded(count):
    values = np.sort(np.random.default_rng(0).pareto(2.0, count) + 1)[::-1].copy()
    estimate = spectrum_metric("tail_exponent", Spectra(torch.from_numpy(values)[None], torch.zeros(1)))
    assert estimate.status == ("refused" if count < 50 else "estimated")
    assert math.isnan(estimate.lower) and math.isnan(estimate.upper)
    if count < 50:
        assert math.isnan(estimate.value)
    else:
        assert estimate.value == power_law_fit(torch.from_numpy(values)).alpha


@pytest.mark.parametrize("name", SPECTRUM_METRICS)
@pytest.mark.parametrize(
    ("matrix", "status", "passes"),
    [
        (torch.zeros(60, 55), "zero", 1),
        (torch.full((60, 55), math.nan), "non_finite", 1),
        (torch.full((60, 55), math.inf), "non_finite", 1),
        (torch.empty(0, 55), "empty", 0),
    ],
)
def test_a_matrix_without_a_spectrum_says_why(name, matrix, status, passes):
    estimate = spectrum_metric(name, spectrum(Dense(matrix)))
    assert (estimate.status, estimate.passes) == (status, passes)
    assert all(map(math.isnan, (estimate.value, estimate.lower, estimate.upper)))


@pytest.mark.parametrize("name", SPECTRUM_METRICS)
def test_a_spectrum_inside_its_own_error_is_zero(name):
    assert spectrum_metric(name, as_spectra(np.eye(60), 2.0)).status == "zero"
