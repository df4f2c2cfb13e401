"""Intruder dimensions on matrices whose vectors are known, and the control of random frames."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, ortho_group

from stablerank.spectral.intruders import intruder_cosines, intruder_counts, intruder_null, intruder_update_null
from stablerank.spectral.subspaces import singular_subspaces


def weight_of(sigma, rows, columns, seed):
    rng = np.random.default_rng(seed)
    u, v = ortho_group.rvs(rows, random_state=rng), ortho_group.rvs(columns, random_state=rng)
    return torch.from_numpy(u[:, : len(sigma)] * sigma @ v[:, : len(sigma)].T), torch.from_numpy(u)


def left(weight, k):
    return singular_subspaces(weight, k).u_OK


def test_a_spike_along_no_old_direction_is_one_intruder():
    weight, _ = weight_of(np.linspace(10, 1, 40), 40, 60, seed=0)
    mixture = left(weight, 40).sum(1) / math.sqrt(40)  # the same cosine with all of them
    spike = 30 * torch.outer(mixture, torch.ones(60, dtype=torch.float64) / math.sqrt(60))
    cosines = intruder_cosines(left(weight + spike, 10), left(weight, 40))
    counts = intruder_counts(cosines, ks=(1, 10), epsilons=(0.01, 0.5))
    assert cosines[0] < 0.3
    assert counts.tolist() == [[0, 1], [0, 1]]
    assert intruder_counts(cosines).tolist() == [[1]]


def test_cosines_are_those_of_numpy_and_a_scaled_weight_has_no_intruder():
    weight, _ = weight_of(np.linspace(5, 1, 12), 20, 12, seed=1)
    other, _ = weight_of(np.linspace(5, 1, 12), 20, 12, seed=2)
    u_before, u_after = (np.linalg.svd(w.numpy(), full_matrices=False)[0] for w in (weight, other))
    expected = np.abs(u_before.T @ u_after[:, :4]).max(0)
    np.testing.assert_allclose(intruder_cosines(left(other, 4), left(weight, 12)), expected, rtol=1e-8)
    assert intruder_counts(intruder_cosines(left(3 * weight, 10), left(weight, 12))).item() == 0


def test_a_tall_weight_can_gain_a_direction_outside_all_of_its_own():
    weight, u = weight_of(np.linspace(5, 1, 6), 20, 6, seed=3)
    outside = weight + 9 * torch.outer(u[:, 15], torch.ones(6, dtype=torch.float64) / math.sqrt(6))
    assert intruder_cosines(left(outside, 1), left(weight, 6)).item() < 0.5


def test_non_finite_vectors_give_nan_from_their_rank_on():
    cosines = torch.tensor([0.9, torch.nan, 0.1], dtype=torch.float64)
    counts = intruder_counts(cosines, ks=(1, 2, 3))
    assert counts[0].item() == 0 and counts[1:].isnan().all()
    assert intruder_cosines(torch.full((4, 1), torch.nan), torch.eye(4)).isnan().all()


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (12, 5)])
def test_control_counts_as_real_random_frames_do(rows, columns):
    frames = ortho_group.rvs(rows, size=2000, random_state=4)[:, : min(rows, columns), :3]
    counts = (np.abs(frames).max(1) < 0.6).sum(1)
    null = intruder_null(rows, columns, k=3, epsilon=0.6, draws=2000)
    assert (null.low, null.median, null.high) == tuple(np.quantile(counts, (0.025, 0.5, 0.975)))
    assert null.kind == "haar_frame"


def test_control_marginal_is_that_of_one_random_vector():
    null_counts = [intruder_null(5, 5, k=1, epsilon=0.7, seed=seed, draws=20).median for seed in range(100)]
    vectors = np.random.default_rng(5).standard_normal((100, 20, 5))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    assert ks_2samp(null_counts, np.median(np.abs(vectors).max(2) < 0.7, axis=1)).pvalue > 0.01


def test_in_many_dimensions_every_random_direction_is_an_intruder():
    null = intruder_null(576, 576)
    assert (null.low, null.median, null.high) == (10, 10, 10)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24)])
@pytest.mark.parametrize("rank", [1, 6])
def test_floor_counts_as_full_random_updates_do(rows, columns, rank):
    sigma = np.arange(1, 25) ** -0.5
    weight, _ = weight_of(sigma, rows, columns, seed=6)
    before, rng, counts = left(weight, 24), np.random.default_rng(7), []
    for _ in range(300):
        delta = torch.from_numpy(rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)))
        after = weight + 0.6 * weight.norm() / delta.norm() * delta
        counts.append(intruder_counts(intruder_cosines(left(after, 5), before), ks=(5,)).item())
    floors = [
        intruder_update_null(torch.from_numpy(sigma), (rows, columns), 0.6, rank, k=5, draws=20, seed=seed).median
        for seed in range(15)
    ]
    assert np.mean(floors) == pytest.approx(np.median(counts), abs=0.5)
    null = intruder_update_null(torch.from_numpy(sigma), (rows, columns), 0.6, rank, k=5, draws=300)
    assert (null.low, null.high) == pytest.approx(tuple(np.quantile(counts, (0.025, 0.975))), abs=1)
    assert null.kind == "gaussian_factors"


def test_floor_of_a_large_weight_by_arpack_is_that_of_a_dense_svd(monkeypatch):
    sigma = torch.linspace(4, 1, 300, dtype=torch.float64)
    by_arpack = intruder_update_null(sigma, (300, 500), 0.5, 4)
    monkeypatch.setattr("stablerank.spectral.intruders._SMALL", 10_000)
    assert by_arpack == intruder_update_null(sigma, (300, 500), 0.5, 4)
    assert by_arpack.median >= 4


def test_a_small_random_update_makes_no_intruder_where_values_are_apart():
    sigma = 0.8 ** torch.arange(40, dtype=torch.float64)
    assert intruder_update_null(sigma, (40, 60), 1e-4, 2).high == 0
    for values, norm in ((torch.zeros(40), 0.1), (sigma, 0.0), (sigma, math.nan)):
        assert intruder_update_null(values, (40, 60), norm, 2).kind == "none"


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(5, 3\)"):
        intruder_cosines(torch.ones(4, 2), torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"the 3 vectors given, but ks=\(10,\)"):
        intruder_counts(torch.ones(3))
    with pytest.raises(ValueError, match=r"all 5 singular values.*\(4,\), rank=1, k=2"):
        intruder_update_null(torch.ones(4), (5, 9), 0.1, 1, k=2)
    with pytest.raises(ValueError, match="k=7"):
        intruder_null(6, 9, k=7)
