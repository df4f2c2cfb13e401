"""Constants against scipy's quadrature, and the closed form against gradient descent step by step."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from stablerank.testbeds import random_features as world


def ratio(act, scale=1.0):
    """``E z^2 / (E z)^2`` by quadrature, the kink at zero its own limit."""

    def mean(power):
        def integrand(t):
            return act(scale * t) ** power * norm.pdf(t)

        return quad(integrand, -np.inf, 0)[0] + quad(integrand, 0, np.inf)[0]

    return mean(2) / mean(1) ** 2


def test_constants_are_the_moments_of_a_gaussian():
    assert pytest.approx(ratio(abs)) == world.ABSOLUTE
    assert pytest.approx(ratio(lambda t: max(t, 0))) == world.RELU
    assert pytest.approx(ratio(lambda t: max(t, 0) ** 2)) == world.SQUARED_RELU
    for p, q in ((0.1, 1.0), (0.5, 2.0), (0.0, 1.0)):
        assert world.leaky_relu(p, q) == pytest.approx(ratio(lambda t, p=p, q=q: max(p * t, q * t)))
    for variance in (0.1, 1.0, 4.0):
        assert ratio(lambda t: t * norm.cdf(t), variance**0.5) <= world.gelu_bound(variance)


@pytest.mark.parametrize("activation", world.ACTIVATIONS)
def test_the_closed_form_is_gradient_descent(activation):
    a = world.features(activation, 16, 0).numpy()
    draw = torch.Generator().manual_seed(1000)
    target = torch.randn(16, 16, generator=draw, dtype=torch.float64).numpy()
    energies = np.linalg.eigvalsh(a @ a.T / a.shape[1])
    weights = np.zeros_like(target)
    expected = []
    for _ in range(5):
        gradient = (weights - target) @ a @ a.T / a.shape[1]
        values = np.linalg.svd(gradient, compute_uv=False)
        expected.append(values.sum() ** 2 / (values**2).sum())
        weights = weights - gradient / energies[-1]
    path = world.descend(activation, 16, 0, range(5))
    assert path.stable_rank == pytest.approx(energies.sum() / energies[-1])
    assert path.nuclear_rank == pytest.approx(expected, rel=1e-6)


def test_nuclear_rank_grows_and_the_features_of_relu_stay_bounded():
    small, large = (world.descend("relu", width, 0, [0, 10]) for width in (32, 128))
    assert large.stable_rank < 1.3 * world.RELU
    assert large.nuclear_rank[1] > 2 * small.nuclear_rank[1]
    assert world.descend("swiglu", 128, 0, [0]).stable_rank > 3 * large.stable_rank


def test_spikes_are_over_a_bulk_of_order_one_and_leave_the_gradient_in_the_window():
    width = 256
    a = world.spiked_features(width, 1).numpy()
    energies = np.sort(np.linalg.eigvalsh(a @ a.T / a.shape[1]))[::-1]
    assert energies[:3] == pytest.approx([width**exponent for exponent in world.SPIKES], rel=0.25)
    assert energies[3] < 3  # the edge of the bulk is (1 + 1/2)^2
    start, end = world.window(width)
    path = world.descend_on(torch.from_numpy(a), 1, [0, start, end])
    assert path.stable_rank == pytest.approx(energies.sum() / energies[0])
    assert path.nuclear_rank[0] < 10
    assert min(path.nuclear_rank[1:]) > width / 4
