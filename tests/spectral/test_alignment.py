"""The alignment profile against numpy's SVD, and against the head energies of subspaces.py."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from stablerank.spectral.alignment import alignment
from stablerank.spectral.operators import Dense, Difference, Factored
from stablerank.spectral.subspaces import head_energy, head_energy_two_sided, singular_subspaces

OUT, IN, RANK, HEAD = 40, 30, 4, 6


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


BASE = drawn(OUT, IN) @ torch.diag(torch.arange(1, IN + 1, dtype=torch.float64) ** -1.0)
FACTORS = Factored(drawn(OUT, RANK, seed=1), drawn(RANK, IN, seed=2), 0.3)
MATRIX = FACTORS.scale * FACTORS.b_OR @ FACTORS.a_RI
OPERATORS = {"factored": FACTORS, "dense": Dense(MATRIX), "difference": Difference(BASE + MATRIX, BASE)}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_direction_and_both_shares_match_numpy(name):
    u, _, vh = np.linalg.svd(BASE.numpy())
    rotated = u.T @ MATRIX.numpy() @ vh.T
    total = np.linalg.norm(MATRIX) ** 2
    head = singular_subspaces(BASE, HEAD)
    found = alignment(OPERATORS[name], head.u_OK, head.v_IK)
    assert found.squares_K.numpy() == pytest.approx(np.square(rotated).sum(0)[:HEAD] / total, rel=1e-9)
    assert found.two_sided == pytest.approx(np.square(rotated[:HEAD, :HEAD]).sum() / total, rel=1e-9)
    assert found.one_sided == pytest.approx(head_energy(OPERATORS[name], head.v_IK), rel=1e-12)
    two_sided = head_energy_two_sided(OPERATORS[name], head.u_OK, head.v_IK)
    assert found.two_sided == pytest.approx(two_sided, rel=1e-12)


def test_over_all_directions_the_squares_sum_to_one():
    rotation = torch.from_numpy(ortho_group.rvs(IN, random_state=0))
    found = alignment(FACTORS, drawn(OUT, IN), rotation)
    assert found.one_sided == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_zero_and_not_finite_updates_have_no_alignment(value):
    head = singular_subspaces(BASE, HEAD)
    found = alignment(Dense(torch.full((OUT, IN), value)), head.u_OK, head.v_IK)
    assert found.squares_K.isnan().all()
    assert np.isnan(found.two_sided)
    assert found.squares_K.shape == (HEAD,)


@pytest.mark.parametrize(("u", "v"), [((OUT, 2), (IN, 3)), ((IN, 2), (OUT, 2)), ((OUT, 2), (IN - 1, 2))])
def test_vectors_of_another_weight_are_refused(u, v):
    with pytest.raises(ValueError, match="same matrix"):
        alignment(FACTORS, drawn(*u), drawn(*v))
