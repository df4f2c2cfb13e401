"""Both decreases against numpy's plain steps, the guarantee where it must hold, and a model's own weights."""

import numpy as np
import pytest
import torch
from scipy.linalg import polar
from torch import nn

from stablerank.probes.spectral_condition import record_condition
from stablerank.testbeds import one_step as world
from stablerank.testbeds.random_features import features


def polar_without_zeros(matrix):
    """The first step of descent solves the top direction exactly: a completed polar factor would move along it."""
    left, values, right = np.linalg.svd(matrix)
    return (left * (values > 1e-12 * values[0])) @ right


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_on_features_is_numpys_plain_descent(activation):
    width, seed = 12, 3
    a = features(activation, width, seed).numpy()
    draw = torch.Generator().manual_seed(seed + 1000)
    solution = torch.randn(width, width, generator=draw, dtype=torch.float64).numpy()
    count = a.shape[1]
    l_f, l_op = np.linalg.norm(a, 2) ** 2 / count, np.linalg.norm(a) ** 2 / count

    def loss(w):
        return np.linalg.norm(w @ a - solution @ a) ** 2 / (2 * count)

    weights = np.zeros_like(solution)
    for step, found in enumerate(world.on_features(activation, width, seed, range(4))):
        gradient = (weights - solution) @ a @ a.T / count
        nuclear = np.linalg.norm(gradient, "nuc")
        spectral = weights - nuclear / l_op * polar_without_zeros(gradient)
        assert found.place == f"step {step}"
        assert found.predicted == pytest.approx(nuclear**2 / np.linalg.norm(gradient) ** 2 / (l_op / l_f))
        assert found.euclidean == pytest.approx(loss(weights) - loss(weights - gradient / l_f))
        assert found.spectral == pytest.approx(loss(weights) - loss(spectral))
        weights = weights - gradient / l_f


@pytest.mark.parametrize("seed", range(10))
def test_twice_the_stable_rank_realises_more(seed):
    strong = [found for found in world.on_features("relu", 32, seed, [0, 2, 8, 32]) if found.predicted >= 2]
    assert strong
    assert all(found.spectral >= found.euclidean for found in strong)


def test_on_a_model_each_direction_gets_its_best_length_and_the_weights_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 5, bias=False)))
    model[0].add_module("up", model[0].pop(0))
    weight = model[0].up.weight
    x, y = torch.randn(40, 6), torch.randn(40, 5)

    def loss():
        return (model(x) - y).square().sum() / 80

    with record_condition(model) as recorder:
        recorder.mask(None)
        loss().backward()
        (block,) = recorder.blocks(run="t", seed=0, step=0)
    before, name = weight.detach().clone(), "0.up.weight"
    (found,) = world.on_model({name: weight}, {name: block}, lambda: loss().item())
    assert torch.equal(before, weight)
    gradient = weight.grad.double().numpy()
    gram = (x.T @ x).double().numpy() / 40
    for direction, decrease in ((gradient, found.euclidean), (polar(gradient)[0], found.spectral)):
        # The exact minimum of a quadratic along a line.
        slope, curvature = (gradient * direction).sum(), np.trace(direction @ gram @ direction.T)
        assert decrease == pytest.approx(slope**2 / (2 * curvature), rel=0.02)
