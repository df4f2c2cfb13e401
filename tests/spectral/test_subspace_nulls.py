"""Nulls of head energy and angles against real random matrices, by Kolmogorov-Smirnov tests."""

import random

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import beta, ks_2samp, kstest

from stablerank.spectral.subspace_nulls import (
    energy_draws,
    head_energy_null,
    head_energy_two_sided_null,
    principal_angle_draws,
    principal_angle_null,
)

DRAWS = 3000


def block_share(matrices, head):
    return np.square(matrices[:, : head[0], : head[1]]).sum((1, 2)) / np.square(matrices).sum((1, 2))


@pytest.mark.parametrize(
    ("shape", "head", "rank"),
    [((20, 12), (20, 3), 2), ((20, 12), (3, 3), 2), ((4, 30), (4, 5), 6), ((9, 9), (9, 9), 3), ((6, 8), (1, 1), 1)],
)
def test_factored_energy_follows_real_gaussian_factors(shape, head, rank):
    rng = np.random.default_rng(1)
    products = rng.standard_normal((DRAWS, shape[0], rank)) @ rng.standard_normal((DRAWS, rank, shape[1]))
    drawn = energy_draws(shape, head, rank, draws=DRAWS, seed=2)
    if head == shape:
        np.testing.assert_allclose(drawn, 1.0)
    else:
        assert ks_2samp(drawn, block_share(products, head)).pvalue > 0.01


def test_rank_one_energy_is_the_beta_law_of_a_haar_subspace():
    drawn = energy_draws((50, 40), (50, 8), 1, draws=DRAWS, seed=3)
    assert kstest(drawn, beta(4, 16).cdf).pvalue > 0.01
    assert kstest(drawn, beta(4.5, 15.5).cdf).pvalue < 0.01, "the test can tell a neighbouring law"


@pytest.mark.parametrize(("null", "head"), [(head_energy_null, (14, 3)), (head_energy_two_sided_null, (3, 3))])
def test_dense_quantiles_hold_real_gaussian_matrices(null, head):
    shares = block_share(np.random.default_rng(4).standard_normal((20_000, 14, 10)), head)
    found = null(14, 10, 3)
    assert found.kind == "gaussian_matrix"
    expected = np.quantile(shares, (0.025, 0.5, 0.975))
    np.testing.assert_allclose((found.low, found.median, found.high), expected, rtol=0.05)


def test_medians_sit_at_the_exact_means_for_large_shapes():
    out_features, in_features, k = 4096, 14336, 64
    for rank in (None, 16):
        one = head_energy_null(out_features, in_features, k, rank=rank)
        both = head_energy_two_sided_null(out_features, in_features, k, rank=rank)
        assert one.median == pytest.approx(k / in_features, rel=0.02)
        assert both.median == pytest.approx(k * k / (out_features * in_features), rel=0.03)
        assert one.low < one.median < one.high and both.low < both.median < both.high
    assert head_energy_null(4096, 14336, 64, rank=1).high > head_energy_null(4096, 14336, 64).high


def test_a_head_of_all_directions_holds_everything():
    assert head_energy_null(5, 4, 4) == head_energy_null(5, 4, 4)
    assert head_energy_null(5, 4, 4).low == 1.0
    assert head_energy_null(5, 4, 4, rank=2).low == pytest.approx(1.0)


@pytest.mark.parametrize(("features", "k"), [(20, 4), (8, 4), (30, 1), (9, 6), (5, 4), (16, 3)])
def test_angles_follow_real_random_subspaces(features, k):
    rng = np.random.default_rng(5)
    real = np.degrees(
        [subspace_angles(rng.standard_normal((features, k)), np.eye(features)[:, :k]) for _ in range(1500)]
    )
    drawn = principal_angle_draws(features, k, draws=1500, seed=6)
    shared = max(0, 2 * k - features)
    for i in range(k - shared):
        assert ks_2samp(real[:, i], drawn[:, i]).pvalue > 0.005
    assert (drawn[:, k - shared :] == 0).all()


def test_the_angle_test_can_tell_a_neighbouring_dimension():
    here, there = (principal_angle_draws(n, 4, draws=1500, seed=n) for n in (20, 22))
    assert ks_2samp(here[:, -1], there[:, -1]).pvalue < 0.01


def test_angle_null_is_nearly_orthogonal_in_many_dimensions_and_zero_in_none():
    largest, mean = principal_angle_null(4096, 16), principal_angle_null(4096, 16, statistic="mean")
    assert 89 < largest.low < largest.median < largest.high <= 90
    assert 85 < mean.low < mean.median < largest.low
    assert largest.kind == "haar_subspace"
    assert principal_angle_null(6, 6).high == 0.0


def test_same_seed_same_null_and_no_global_random_state_moves():
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    first = principal_angle_draws(31, 5, draws=20, seed=0)
    assert first.tolist() == principal_angle_draws(31, 5, draws=20, seed=0).tolist()
    assert first.tolist() != principal_angle_draws(31, 5, draws=20, seed=1).tolist()
    head_energy_null(31, 17, 5, rank=3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert random.getstate() == python_state


@pytest.mark.parametrize(
    "call",
    [
        lambda: head_energy_null(5, 4, 5),
        lambda: head_energy_two_sided_null(3, 9, 4),
        lambda: head_energy_null(5, 4, 0),
        lambda: head_energy_null(5, 4, 2, rank=0),
        lambda: principal_angle_null(5, 6),
    ],
)
def test_impossible_dimensions_are_refused(call):
    with pytest.raises(ValueError, match="lower k"):
        call()


def test_fewer_than_twenty_draws_are_refused():
    with pytest.raises(ValueError, match="draws=19"):
        principal_angle_null(9, 2, draws=19)
    with pytest.raises(ValueError, match="draws=19"):
        head_energy_null(9, 8, 2, rank=2, draws=19)
