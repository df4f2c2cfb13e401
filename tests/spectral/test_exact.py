"""Exact spectra against numpy's SVD in fp64, and the rounding interval against 50 digits of mpmath."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from stablerank.spectral.exact import (
    factored_singular_values,
    factored_spectra,
    frobenius_estimates,
    singular_values,
    spectrum,
    stable_rank_estimates,
    stable_rank_exact,
)
from stablerank.spectral.operators import Dense, Difference, Factored

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)


def random(*shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def numpy_stable_rank(matrix):
    return float(np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2)


@settings(deadline=None)
@given(sizes, sizes, seeds)
def test_dense_and_difference_agree_with_numpy(rows, columns, seed):
    after, before = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    for operator, matrix in ((Dense(after), after.numpy()), (Difference(after, before), (after - before).numpy())):
        np.testing.assert_allclose(singular_values(operator), np.linalg.svd(matrix, compute_uv=False), atol=1e-12)
        assert stable_rank_exact(operator).value == pytest.approx(numpy_stable_rank(matrix), rel=1e-10)


@settings(deadline=None)
@given(sizes, sizes, st.integers(1, 30), seeds, st.sampled_from([-3.0, 1.0, 1e-6]))
def test_factored_agrees_with_the_dense_product(rows, columns, rank, seed, scale):
    b, a = random(rows, rank, seed=seed), random(rank, columns, seed=seed + 1)
    product = scale * b.numpy() @ a.numpy()
    values = singular_values(Factored(b, a, scale))
    expected = np.linalg.svd(product, compute_uv=False)[: len(values)]
    assert len(values) == min(rows, columns, rank)
    np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-10 * expected[0])
    assert stable_rank_exact(Factored(b, a, scale)).value == pytest.approx(numpy_stable_rank(product), rel=1e-10)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), seeds, st.floats(1e-140, 1e140))
def test_scale_rotation_and_transposition_leave_the_stable_rank(rows, columns, seed, scale):
    matrix = random(rows, columns, seed=seed)
    left, right = (torch.from_numpy(ortho_group.rvs(size, random_state=seed)) for size in (rows, columns))
    value = stable_rank_exact(Dense(matrix)).value
    for changed in (scale * matrix, left @ matrix @ right, matrix.T):
        assert stable_rank_exact(Dense(changed)).value == pytest.approx(value, rel=1e-10)


@settings(deadline=None)
@given(st.integers(4, 12), st.integers(4, 12), seeds)
def test_rotating_the_inner_basis_of_factors_leaves_the_spectrum(rows, columns, seed):
    b, a = random(rows, 3, seed=seed), random(3, columns, seed=seed + 1)
    inner = torch.from_numpy(ortho_group.rvs(3, random_state=seed))
    np.testing.assert_allclose(
        singular_values(Factored(b @ inner, inner.T @ a)), singular_values(Factored(b, a)), atol=1e-12
    )


def true_stable_rank(matrix):
    """The stable rank to 50 digits."""
    values = mpmath.svd_r(matrix, compute_uv=False)
    return mpmath.fsum(value**2 for value in values) / max(values) ** 2


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_holds_the_true_value_and_is_narrow(seed):
    b, a = random(6, 3, seed=seed).float(), random(3, 5, seed=seed + 9).float()
    with mpmath.workdps(50):
        for operator, matrix in (
            (Dense(b), mpmath.matrix(b.tolist())),
            (Factored(b, a, 0.5), mpmath.matrix(b.tolist()) * mpmath.matrix(a.tolist()) * mpmath.mpf(0.5)),
        ):
            estimate = stable_rank_exact(operator)
            assert estimate.lower <= true_stable_rank(matrix) <= estimate.upper
            assert estimate.lower <= estimate.value <= estimate.upper
            assert estimate.upper - estimate.lower < 1e-9
            assert (estimate.status, estimate.passes) == ("exact", 1)


def test_factors_that_nearly_cancel_widen_the_interval_and_it_still_holds():
    left, right = random(6, 1, seed=0), random(1, 5, seed=1)
    b = torch.cat((left, left + 1e-9 * random(6, 1, seed=2)), dim=1)
    a = torch.cat((right, -right + 1e-9 * random(1, 5, seed=3)))
    estimate = stable_rank_exact(Factored(b, a))
    with mpmath.workdps(50):
        truth = true_stable_rank(mpmath.matrix(b.tolist()) * mpmath.matrix(a.tolist()))
    assert estimate.lower <= truth <= estimate.upper
    assert 1e-6 < estimate.upper - estimate.lower < 1e-2


def test_factors_that_cancel_have_status_zero_although_neither_is():
    left, right = random(6, 1, seed=0), random(1, 5, seed=1)
    estimate = stable_rank_exact(Factored(torch.cat((left, left), dim=1), torch.cat((right, -right))))
    assert estimate.status == "zero"
    assert math.isnan(estimate.value)


@pytest.mark.parametrize(
    ("operator", "status"),
    [
        (Dense(torch.zeros(3, 4)), "zero"),
        (Factored(torch.zeros(3, 2), torch.ones(2, 4)), "zero"),
        (Factored(torch.ones(3, 2), torch.ones(2, 4), scale=0.0), "zero"),
        (Difference(torch.ones(3, 4), torch.ones(3, 4)), "zero"),
        (Dense(torch.tensor([[1.0, math.nan], [0.0, 1.0]])), "non_finite"),
        (Factored(torch.full((3, 2), math.inf), torch.ones(2, 4)), "non_finite"),
        (Factored(torch.full((3, 2), math.nan), torch.zeros(2, 4)), "non_finite"),
        (Factored(torch.ones(3, 2), torch.ones(2, 4), scale=math.nan), "non_finite"),
        (Dense(torch.empty(0, 4)), "empty"),
        (Factored(torch.empty(3, 0), torch.empty(0, 4)), "empty"),
    ],
)
def test_a_matrix_without_a_stable_rank_says_why(operator, status):
    estimate = stable_rank_exact(operator)
    assert estimate.status == status
    assert all(map(math.isnan, (estimate.value, estimate.lower, estimate.upper)))


@pytest.mark.parametrize(
    ("operator", "value"),
    [
        (Dense(torch.outer(torch.arange(1.0, 5.0), torch.arange(1.0, 8.0))), 1.0),
        (Dense(torch.arange(1.0, 8.0)[None]), 1.0),
        (Dense(torch.tensor([[-2.5]])), 1.0),
        (Dense(3 * torch.eye(5, 9)), 5.0),
        (Dense(torch.diag(torch.tensor([2.0, 2.0, 1.0]))), 2.25),
        (Factored(torch.eye(6, 4), torch.eye(4, 7), 1e-30), 4.0),
        (Factored(torch.eye(2, 4), torch.eye(4, 7)), 2.0),
    ],
    ids=["rank one", "one row", "one entry", "flat", "repeated sigma_1", "tiny scale", "rank above rows"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_matrices_whose_stable_rank_is_known(operator, value, dtype):
    if isinstance(operator, Dense):
        operator = Dense(operator.matrix_OI.to(dtype))
    else:
        operator = Factored(operator.b_OR.to(dtype), operator.a_RI.to(dtype), operator.scale)
    estimate = stable_rank_exact(operator)
    assert estimate.value == pytest.approx(value, rel=1e-12)
    assert 1 <= estimate.lower <= estimate.value <= estimate.upper <= min(operator.shape)


def test_a_batch_equals_its_members_and_one_bad_member_spoils_no_other():
    b, a, scale = random(5, 20, 4, seed=0), random(5, 4, 30, seed=1), torch.tensor([1.0, -2.0, 0.5, 3.0, 1e-4])
    b[2, 0, 0] = math.nan
    b[3] = 0
    values = factored_singular_values(b, a, scale)
    ranks = stable_rank_estimates(factored_spectra(b, a, scale))
    norms = frobenius_estimates(factored_spectra(b, a, scale))
    assert [rank.status for rank in ranks] == ["exact", "exact", "non_finite", "zero", "exact"]
    assert [norm.status for norm in norms] == ["exact", "exact", "non_finite", "exact", "exact"]
    for index in (0, 1, 4):
        single = Factored(b[index], a[index], scale[index].item())
        np.testing.assert_allclose(values[index], singular_values(single), rtol=1e-12)
        assert ranks[index].value == pytest.approx(stable_rank_exact(single).value, rel=1e-12)
        expected = np.linalg.norm(single.scale * single.b_OR.numpy() @ single.a_RI.numpy())
        assert norms[index].lower <= norms[index].value <= norms[index].upper
        assert norms[index].value == pytest.approx(expected, rel=1e-12)
    assert (norms[3].value, norms[3].lower, norms[3].upper) == (0.0, 0.0, 0.0)


def test_the_frobenius_norm_survives_squares_out_of_range():
    assert frobenius_estimates(spectrum(Dense(torch.eye(4).double() * 1e-200)))[0].value == pytest.approx(2e-200)
    assert frobenius_estimates(spectrum(Dense(torch.eye(4).double() * 1e200)))[0].value == pytest.approx(2e200)


def test_no_graph_is_kept():
    matrix = torch.nn.Parameter(torch.eye(3))
    assert not singular_values(Dense(matrix)).requires_grad
    assert matrix.grad is None
