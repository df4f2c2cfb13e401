"""Factorisation against autograd, scipy's polar factor and the manifold."""

from itertools import islice, pairwise

import numpy as np
import pytest
import scipy.linalg
import torch

from stablerank.testbeds.low_rank_factorisation import Problem, iterations, lora, polar, retract


def test_the_target_has_its_rank_and_condition_number():
    values = np.linalg.svd(Problem(8.0, 6).target(0).numpy(), compute_uv=False)
    assert values[:4] == pytest.approx([1, 8 ** (-1 / 3), 8 ** (-2 / 3), 1 / 8])
    assert values[4:].max() < 1e-14


def test_retraction_is_the_polar_factor():
    draw = torch.Generator().manual_seed(0)
    point = torch.linalg.qr(torch.randn(9, 3, generator=draw, dtype=torch.float64)).Q
    move = torch.randn(9, 3, generator=draw, dtype=torch.float64)
    tangent = move - point @ (point.T @ move)
    assert np.allclose(retract(point, tangent), scipy.linalg.polar((point + tangent).numpy())[0], atol=1e-12)


@pytest.mark.parametrize("descent", [lora, polar])
def test_losses_fall_at_a_safe_step(descent):
    losses = list(islice(descent(Problem(4.0, 6), 0, 0.1), 200))
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_lora_follows_the_gradient_of_its_loss():
    problem, step = Problem(4.0, 5), 0.2
    target, draw = problem.target(1), torch.Generator().manual_seed(1001)
    a = torch.randn(5, problem.columns, generator=draw, dtype=torch.float64) / problem.columns**0.5
    b = torch.zeros(problem.rows, 5, dtype=torch.float64)
    expected = []
    for _ in range(5):
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        loss = (b @ a - target).square().sum() / 2
        expected.append((2 * loss / target.square().sum()).item())
        loss.backward()
        a, b = a - step * a.grad, b - step * b.grad
    assert list(islice(lora(problem, 1, step), 5)) == pytest.approx(expected, rel=1e-12)


def test_iterations_say_where_each_tolerance_was_reached_or_that_it_was_not():
    losses = list(islice(polar(Problem(2.0, 6), 0, 1.0), 400))
    found = iterations(polar, Problem(2.0, 6), 0, 1.0, (1e-2, 1e-6, 0.0), 399)
    assert found == [next(i for i, loss in enumerate(losses) if loss <= t) for t in (1e-2, 1e-6)] + [None]
    assert iterations(lora, Problem(2.0, 6), 0, 50.0, (1e-6,), 1000) == [None], "it diverged"
