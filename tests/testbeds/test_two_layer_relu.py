"""The network's world against autograd on dense weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import leaky_relu, logsigmoid

from stablerank.testbeds.two_layer_relu import World, data, orthogonality, train, whole_limit, with_normalised_steps

SMALL = World(neurons=12, points=5, features=300, steps=40, records=5, init=0.01)


def dense(world, seed):
    """First-layer weights and margins after the last record, by autograd."""
    points_ND, labels_N, start_MD = data(world, seed)
    weights = start_MD.clone().requires_grad_()
    a_M = torch.ones(world.neurons, dtype=torch.float64)
    a_M[world.neurons // 2 :] = -1
    a_M /= world.neurons**0.5

    def margins():
        return labels_N * (leaky_relu(points_ND @ weights.T, world.slope) @ a_M)

    for _ in range(world.steps):
        loss = -logsigmoid(margins()).mean()
        (gradient,) = torch.autograd.grad(loss, weights)
        scale = world.step / loss.item() if world.normalised else world.step
        weights.data -= scale * gradient
    return weights.detach().numpy(), margins().detach().numpy()


def stable_rank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return (values**2).sum() / values[0] ** 2


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("normalised", [False, True])
def test_training_is_gradient_descent_on_the_dense_weights(slope, normalised):
    world = replace(SMALL, slope=slope, normalised=normalised)
    history = train(world, 3)
    weights, margins = dense(world, 3)
    assert history.step[-1] == world.steps
    assert history.st_whole[-1] == pytest.approx(stable_rank(weights), rel=1e-9)
    assert history.st_plus[-1] == pytest.approx(stable_rank(weights[:6]), rel=1e-9)
    assert history.st_minus[-1] == pytest.approx(stable_rank(weights[6:]), rel=1e-9)
    assert history.margin_ratio[-1] == pytest.approx(margins.min() / margins.max(), rel=1e-9)


def test_halves_of_a_leaky_network_tend_to_rank_one_and_the_whole_does_not():
    history = train(World(slope=0.5, steps=2000, records=5), 1)
    assert max(history.st_plus[-1], history.st_minus[-1]) < 1.01
    assert history.st_whole[-1] == pytest.approx(whole_limit(0.5), rel=0.03)
    assert history.st_whole[-1] > 1.05


def test_a_large_start_keeps_the_rank_up():
    history = train(World(slope=0.5, steps=2000, records=5, init=1.0), 1)
    assert history.st_plus[-1] > 10


def test_normalised_steps_go_on_where_the_loss_underflows():
    history = train(with_normalised_steps(World(neurons=20, features=300, steps=20_000, records=5)), 0)
    assert history.loss[-1] < 1e-300
    assert history.margin_ratio[-1] > 0.99


def test_nearly_orthogonal_means_what_it_says():
    assert orthogonality(data(World(), 0)[0]) > 1 > orthogonality(data(World(common=0.9), 0)[0])


def test_both_labels_are_there_and_a_seed_is_a_world():
    first, again, other = data(SMALL, 0), data(SMALL, 0), data(SMALL, 1)
    assert set(first[1].tolist()) == {-1.0, 1.0}
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
