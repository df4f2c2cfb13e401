"""The field against autograd, and what it does to a real optimiser."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stablerank.errors import ModelError
from stablerank.optimisers.landing import Landing, attach_landing, drift, landing_field

ALONG, PULL = Landing(penalty=0.0), Landing(penalty=1.0)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
"""Tall, square and wide; each draw is on the manifold or off it."""


def drawn(shape: tuple[int, int], seed: int, off: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    point = nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), generator=generator)
    return point + off * noise, gradient


def skew_by_autograd(point: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The steepest rotation: d L(exp(K - K^T) P) / dK at K = 0, an n-by-n matrix, times P."""
    turn = torch.zeros(len(point), len(point), dtype=point.dtype, requires_grad=True)
    loss = (gradient * (torch.linalg.matrix_exp(turn - turn.T) @ point)).sum()
    return torch.autograd.grad(loss, turn)[0] @ point


def pull_by_autograd(point: torch.Tensor) -> torch.Tensor:
    point = point.clone().requires_grad_(True)
    excess = point.T @ point - torch.eye(point.shape[1], dtype=point.dtype)
    return torch.autograd.grad(excess.square().sum() / 4, point)[0]


@settings(deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_the_field_is_the_steepest_rotation_and_the_descent_of_the_penalty(shape, seed, off):
    point, gradient = drawn(shape, seed, off)
    tall = (point, gradient) if shape[0] >= shape[1] else (point.T, gradient.T)
    expected = skew_by_autograd(*tall) + 0.7 * pull_by_autograd(tall[0])
    found = landing_field(point, gradient, Landing(penalty=0.7))
    torch.testing.assert_close(found if shape[0] >= shape[1] else found.T, expected)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from([0.0, 0.3, 3.0]))
def test_the_two_terms_are_orthogonal_and_the_first_keeps_the_gram(shape, seed, off):
    point, gradient = drawn(shape, seed, off)
    along = landing_field(point, gradient, ALONG)
    pull = landing_field(point, gradient, PULL) - along
    size = float(point.norm() ** 2 * gradient.norm() * (1 + point.norm() ** 3))
    assert abs(float((along * pull).sum())) <= 1e-13 * size
    tall, field = (point, along) if shape[0] >= shape[1] else (point.T, along.T)
    np.testing.assert_allclose((tall.T @ field + field.T @ tall).numpy(), 0, atol=1e-13 * size)


def test_half_skew_halves_the_first_term_only():
    point, gradient = drawn((7, 3), 0, 0.2)
    whole, half = (landing_field(point, gradient, Landing(penalty=2.0, half_skew=half)) for half in (False, True))
    torch.testing.assert_close(whole - half, landing_field(point, gradient, ALONG) / 2)


def test_euclidean_is_the_raw_gradient_and_the_pull():
    point, gradient = drawn((3, 7), 0, 0.2)
    found = landing_field(point, gradient, Landing(penalty=2.0, gradient="euclidean"))
    torch.testing.assert_close(found, gradient + 2 * pull_by_autograd(point.T).T)


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.entries = max(self.entries, made.numel())
        return made


def test_no_square_matrix_of_the_long_side_is_made():
    point, gradient = drawn((400, 3), 0, 0.1)
    with Largest() as seen:
        landing_field(point, gradient, Landing())
        drift(point.T)
    assert 0 < seen.entries <= 400 * 3


def test_drift_is_the_norm_of_the_excess():
    point, _ = drawn((3, 8), 1, 0.2)
    assert float(drift(point)) == pytest.approx(np.linalg.norm(point.numpy() @ point.numpy().T - np.eye(3)))
    assert float(drift(drawn((8, 3), 1, 0.0)[0])) < 1e-14


def largest_drift(settings: Landing | None, steps: int = 200) -> float:
    """Fit ``X Y^T``, orthonormal at first, to a product of rank 3 by AdamW."""
    torch.manual_seed(0)
    x, y = (nn.Parameter(nn.init.orthogonal_(torch.empty(shape))) for shape in ((20, 3), (3, 30)))
    target = nn.init.orthogonal_(torch.empty(20, 3)) @ torch.diag(torch.tensor([3.0, 2.0, 0.5])) @ y.detach().flip(1)
    optimizer = torch.optim.AdamW([x, y], lr=1e-2, weight_decay=0.0)
    if settings:
        attach_landing(optimizer, [x, y], settings)
    for _ in range(steps):
        optimizer.zero_grad()
        (x @ y - target).square().sum().backward()
        optimizer.step()
    return max(float(drift(x)), float(drift(y)))


def test_two_hundred_adamw_steps_stay_near_the_manifold_with_the_field_and_leave_it_without():
    assert largest_drift(Landing(penalty=1.0)) < 0.1
    assert largest_drift(None) > 0.5
    assert largest_drift(Landing(penalty=0.0, gradient="euclidean")) > 0.5


def one_step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> torch.Tensor:
    """What plain gradient descent with rate 1 subtracted."""
    before = parameter.detach().clone()
    parameter.grad = gradient
    optimizer.step()
    return before - parameter.detach()


def test_the_field_acts_after_clipping_until_the_handle_is_removed():
    point, gradient = drawn((6, 2), 0, 0.1)
    parameter = nn.Parameter(point.clone())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handle = attach_landing(optimizer, [parameter], Landing(penalty=3.0))
    parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_([parameter], 1e-3)
    clipped = parameter.grad.clone()
    expected = landing_field(point, clipped, Landing(penalty=3.0))
    torch.testing.assert_close(one_step(parameter, optimizer, clipped.clone()), expected)
    handle.remove()
    torch.testing.assert_close(one_step(parameter, optimizer, clipped.clone()), clipped)


def test_accelerates_wrapper_several_groups_and_missing_gradients():
    point, gradient = drawn((6, 2), 0, 0.1)
    followed, idle, other = (nn.Parameter(point.clone()) for _ in range(3))
    groups = [{"params": [other], "weight_decay": 0.1}, {"params": [followed, idle], "weight_decay": 0.0}]
    optimizer = Accelerator(cpu=True).prepare(torch.optim.SGD(groups, lr=1.0))
    attach_landing(optimizer, [followed, idle], ALONG)
    torch.testing.assert_close(one_step(followed, optimizer, gradient.clone()), landing_field(point, gradient, ALONG))
    assert torch.equal(idle, point) and torch.equal(other, point)


def test_a_gradient_in_bf16_is_followed_in_its_own_dtype():
    point, gradient = (value.float() for value in drawn((6, 2), 0, 0.1))
    parameter = nn.Parameter(point.clone())
    parameter.grad_dtype = None  # any
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    attach_landing(optimizer, [parameter], ALONG)
    parameter.grad = gradient.bfloat16()
    optimizer.step()
    assert torch.equal(parameter.grad, landing_field(point, gradient.bfloat16(), ALONG).bfloat16())


@pytest.mark.parametrize(
    ("dtype", "decay", "held", "reason"),
    [
        (torch.float32, 0.01, True, "weight_decay=0.01"),
        (torch.bfloat16, 0.0, True, "too coarse"),
        (torch.float32, 0.0, False, "not among the parameters of AdamW"),
    ],
)
def test_what_would_leave_the_manifold_silently_is_refused(dtype, decay, held, reason):
    factor, other = (nn.Parameter(torch.eye(4, 2, dtype=dtype)) for _ in range(2))
    optimizer = torch.optim.AdamW([factor if held else other], weight_decay=decay)
    with pytest.raises(ModelError, match=reason):
        attach_landing(optimizer, [factor])
