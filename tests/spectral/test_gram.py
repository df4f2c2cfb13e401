"""Spectra through the Gram matrix: right to their own bound where they are given, and refused where they are not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.spectral.gram import full_spectrum, gram_matrix, gram_spectrum
from stablerank.spectral.operators import Dense, Difference, Factored

seeds = st.integers(0, 2**31)


def with_values(values, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (rows, columns))
    return torch.from_numpy((left * values) @ right.T)


def numpy_values(matrix):
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def numpy_gram(matrix):
    matrix = matrix.double().numpy()
    return matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (40, 40), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_gram_matrix_is_that_of_the_shorter_side_in_fp64(shape, dtype):
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(dtype)
    gram, error = gram_matrix(Dense(matrix))
    expected = numpy_gram(matrix)
    assert gram.dtype == torch.float64
    np.testing.assert_allclose(gram, expected, atol=1e-13 * expected.trace())
    assert np.abs(np.linalg.eigvalsh(gram.numpy()) - np.sort(numpy_values(matrix) ** 2)).max() <= error
    assert error <= 1e-11 * expected.trace()


def test_the_gram_matrix_of_a_difference_is_taken_after_subtraction():
    before = with_values(np.ones(20), 50, 20)
    after = before + 1e-6 * with_values(np.ones(20), 50, 20, seed=1)
    expected = numpy_gram(after - before)
    np.testing.assert_allclose(gram_matrix(Difference(after, before))[0], expected, atol=1e-9 * expected.trace())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 8), seeds)
def test_values_agree_with_numpy_to_the_stated_error_or_are_refused(rows, columns, decades, seed):
    values = np.logspace(0, -decades, min(rows, columns))
    matrix = with_values(values, rows, columns, seed)
    spectra = gram_spectrum(Dense(matrix))
    condition = values[0] / values[-1]
    # The smallest eigenvalue must stand a thousandfold above (L + 10 K) u F^2.
    if condition < 1e3:
        assert spectra is not None
    if condition > 1e7:
        assert spectra is None
    if spectra is not None:
        found, expected = spectra.values_NK[0].numpy(), numpy_values(matrix)
        assert np.linalg.norm(found - expected) <= spectra.error_N.item()
        assert spectra.error_N.item() <= 1e-3 * found[-1] * math.sqrt(len(found))
        assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize(
    "matrix",
    [
        with_values(np.array([1.0, 0.5]), 30, 20),
        with_values(np.array([1.0] * 19 + [1e-8]), 30, 20),
        torch.zeros(30, 20),
        torch.ones(30, 20),
        torch.full((30, 20), math.nan),
        torch.full((30, 20), math.inf),
        1e200 * torch.eye(20, dtype=torch.float64),
    ],
    ids=["rank deficient", "ill-conditioned", "zero", "rank one", "nan", "inf", "overflow"],
)
def test_an_unsafe_matrix_is_refused_and_its_spectrum_comes_from_itself(matrix):
    assert gram_spectrum(Dense(matrix)) is None
    spectra = full_spectrum(Dense(matrix))
    if not matrix.isfinite().all():
        assert spectra.values_NK.isnan().all()
    else:
        expected = numpy_values(matrix)
        np.testing.assert_allclose(spectra.values_NK[0], expected, atol=spectra.error_N.item(), rtol=0)


def test_the_gram_matrix_would_have_lost_the_small_value_that_is_kept():
    matrix = with_values(np.array([1.0] * 19 + [1e-9]), 30, 20)
    assert full_spectrum(Dense(matrix)).values_NK[0, -1].item() == pytest.approx(1e-9, rel=1e-5)
    through_gram = np.linalg.eigvalsh(numpy_gram(matrix))[0]
    assert math.sqrt(max(through_gram, 0.0)) != pytest.approx(1e-9, rel=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_matrix_has_an_empty_spectrum(shape):
    assert full_spectrum(Dense(torch.empty(shape))).values_NK.shape == (1, 0)


def test_every_kind_of_operator_has_a_full_spectrum():
    b, a = with_values(np.array([2.0, 1.0]), 30, 2), with_values(np.array([2.0, 1.0]), 2, 20)
    whole, other = with_values(np.linspace(1, 2, 20), 30, 20), with_values(np.ones(20), 30, 20, seed=1)
    for operator, matrix in (
        (Dense(whole), whole),
        (Difference(whole, other), whole - other),
        (Factored(b, a, 0.5), 0.5 * b @ a),
    ):
        values = full_spectrum(operator).values_NK[0]
        np.testing.assert_allclose(values, numpy_values(matrix)[: len(values)], atol=1e-12)
