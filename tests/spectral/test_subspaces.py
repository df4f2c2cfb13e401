"""Subspaces, head energy and angles against numpy's SVD and scipy's subspace_angles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from stablerank.spectral.operators import Dense, Difference, Factored
from stablerank.spectral.subspaces import (
    head_energy,
    head_energy_left,
    head_energy_two_sided,
    principal_angles,
    singular_subspaces,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(random(rows, columns, seed=seed)).Q


def projector(basis):
    return basis.numpy() @ basis.numpy().T


SHAPES = [(12, 7), (7, 12), (9, 9), (1, 6), (6, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_subspaces_are_those_of_numpy_for_every_k(shape):
    weight = random(*shape)
    u, sigma, vh = np.linalg.svd(weight.numpy(), full_matrices=False)
    following = np.append(sigma, 0.0)
    for k in range(1, len(sigma) + 1):
        found = singular_subspaces(weight, k)
        np.testing.assert_allclose(found.values_K, sigma[:k], rtol=1e-12)
        np.testing.assert_allclose(projector(found.u_OK), u[:, :k] @ u[:, :k].T, atol=1e-9)
        np.testing.assert_allclose(projector(found.v_IK), vh[:k].T @ vh[:k], atol=1e-9)
        np.testing.assert_allclose(weight @ found.v_IK, found.u_OK * found.values_K, atol=1e-9)
        assert found.gap == pytest.approx((following[k - 1] - following[k]) / sigma[0], abs=1e-7)


@pytest.mark.parametrize(("shape", "dtype"), [((2400, 500), torch.bfloat16), ((500, 2400), torch.float32)])
def test_several_blocks_of_stored_weights_add_up(shape, dtype):
    weight = (random(shape[0], 30) @ random(30, shape[1], seed=1) + 0.1 * random(*shape, seed=2)).to(dtype)
    u, sigma, _ = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    found = singular_subspaces(weight, 30)
    np.testing.assert_allclose(found.values_K, sigma[:30], rtol=1e-12)
    assert principal_angles(found.u_OK, torch.from_numpy(u[:, :30]))[0] < 1e-9


def test_values_far_below_the_first_keep_their_accuracy():
    sigma = np.array([1.0, 1e-3, 1e-5, 1e-6])
    weight = orthonormal(30, 4) @ torch.diag(torch.from_numpy(sigma)) @ orthonormal(8, 4, seed=1).mT
    np.testing.assert_allclose(singular_subspaces(weight, 3).values_K, sigma[:3], rtol=1e-8)
    np.testing.assert_allclose(singular_subspaces(1e-200 * weight, 2).values_K, 1e-200 * sigma[:2], rtol=1e-10)


def test_a_repeated_value_shows_as_a_gap_of_zero():
    weight = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0]))
    assert singular_subspaces(weight, 2).gap == pytest.approx(0.0, abs=1e-7)
    assert singular_subspaces(weight, 3).gap == pytest.approx(1 / 3)


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_zero_and_non_finite_weights_have_no_subspace(bad):
    weight = (
        torch.full((5, 3), bad) if bad == 0 else random(5, 3).index_put((torch.tensor(1),), torch.tensor(bad).double())
    )
    found = singular_subspaces(weight, 2)
    assert np.isnan(found.gap)
    assert found.u_OK.shape == (5, 2) and found.u_OK.isnan().all()
    assert np.isnan(head_energy(Dense(random(5, 3)), found.v_IK))
    assert principal_angles(found.u_OK, orthonormal(5, 2)).isnan().all()


def updates():
    b, a = random(9, 3), random(3, 6, seed=1)
    after, before = random(9, 6, seed=2), random(9, 6, seed=3)
    yield pytest.param(Dense(after), after, id="dense")
    yield pytest.param(Factored(b, a, -0.5), -0.5 * b @ a, id="factored")
    yield pytest.param(Difference(after, before), after - before, id="difference")


@pytest.mark.parametrize(("operator", "matrix"), updates())
def test_head_energies_are_the_energies_of_the_projected_matrix(operator, matrix):
    u, v = orthonormal(9, 4, seed=4), orthonormal(6, 2, seed=5)
    total = np.linalg.norm(matrix) ** 2
    matrix = matrix.numpy()
    assert head_energy(operator, v) == pytest.approx(np.linalg.norm(matrix @ projector(v)) ** 2 / total, rel=1e-12)
    assert head_energy_left(operator, u) == pytest.approx(np.linalg.norm(projector(u) @ matrix) ** 2 / total, rel=1e-12)
    both = np.linalg.norm(projector(u) @ matrix @ projector(v)) ** 2 / total
    assert head_energy_two_sided(operator, u, v) == pytest.approx(both, rel=1e-12)


def test_a_head_of_all_directions_holds_all_energy_and_a_pissa_update_only_head():
    weight = random(12, 8)
    head = singular_subspaces(weight, 3)
    inside = Factored(head.u_OK * head.values_K, head.v_IK.mT, 0.1)
    assert head_energy(Dense(weight), singular_subspaces(weight, 8).v_IK) == pytest.approx(1.0)
    assert head_energy_two_sided(inside, head.u_OK, head.v_IK) == pytest.approx(1.0)
    outside = Dense(weight - head.u_OK * head.values_K @ head.v_IK.mT)
    assert head_energy(outside, head.v_IK) < 1e-20


def test_a_factored_update_too_large_to_exist_has_a_head_energy():
    b, a = random(300_000, 2), random(2, 200_000, seed=1)
    v = torch.zeros(200_000, 1, dtype=torch.float64)
    v[7] = 1.0
    energy = head_energy(Factored(b, a), v)
    gram = (b.mT @ b).numpy()
    column = a[:, 7].numpy()
    assert energy == pytest.approx(column @ gram @ column / np.trace(gram @ (a @ a.mT).numpy()), rel=1e-9)


@pytest.mark.parametrize("matrix", [torch.zeros(4, 3), torch.full((4, 3), torch.nan), torch.full((4, 3), torch.inf)])
def test_zero_and_non_finite_updates_have_no_head_energy(matrix):
    u, v = orthonormal(4, 2), orthonormal(3, 2)
    assert np.isnan(head_energy(Dense(matrix), v))
    assert np.isnan(head_energy_left(Dense(matrix), u))
    assert np.isnan(head_energy_two_sided(Dense(matrix), u, v))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.data(), st.floats(-12, 1))
def test_angles_are_those_of_scipy_down_to_tiny_ones(n, data, exponent):
    k = data.draw(st.integers(1, n))
    x = random(n, k, seed=n)
    y = x + 10.0**exponent * random(n, k, seed=n + 1)
    expected = np.degrees(subspace_angles(x.numpy(), y.numpy()))
    # Where tiny angles stand beside large ones scipy itself falls back to acos, good to 1e-6 degrees.
    np.testing.assert_allclose(principal_angles(x, y), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("angle", [1e-13, 1e-9, 1e-4, 30.0, 45.0, 60.0, 89.9999, 90.0])
def test_a_known_angle_is_read_to_full_accuracy(angle):
    """An acos of the cosine reads 0 for the first two."""
    radians = np.radians(angle)
    x, y = torch.zeros(2, 6, 2, dtype=torch.float64)
    x[0, 0] = x[1, 1] = y[1, 1] = 1.0
    y[0, 0], y[3, 0] = np.cos(radians), np.sin(radians)
    assert principal_angles(x, y).tolist() == pytest.approx([angle, 0.0], rel=1e-12)


def test_angles_do_not_depend_on_the_basis_chosen():
    x, y = random(10, 3), random(10, 3, seed=1)
    mixed = x @ random(3, 3, seed=2)
    np.testing.assert_allclose(principal_angles(mixed, y), principal_angles(x, y), rtol=1e-10)


def test_shapes_that_do_not_fit_are_refused_with_the_shape():
    with pytest.raises(ValueError, match=r"\(5, 3\) and k=4"):
        singular_subspaces(random(5, 3), 4)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        singular_subspaces(random(5), 1)
    with pytest.raises(ValueError, match=r"v_IK of shape \(3, K\).*\(5, 2\)"):
        head_energy(Dense(random(5, 3)), random(5, 2))
    with pytest.raises(ValueError, match=r"u_OK of shape \(5, K\).*\(3, 2\)"):
        head_energy_left(Dense(random(5, 3)), random(3, 2))
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(5, 3\)"):
        principal_angles(random(5, 2), random(5, 3))
