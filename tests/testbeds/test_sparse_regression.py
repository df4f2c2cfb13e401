"""Gradients against finite differences, both steps against numpy, and rules that choose what they say."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import polar
from torch import nn

from stablerank.testbeds import sparse_regression as world

SMALL = {"inputs": 6, "samples": 40, "record": {0}}


@pytest.mark.parametrize("gated", [False, True])
def test_the_network_is_that_of_torch_layers(gated):
    weights = world.network(6, gated, 3)
    x, y = world.sample(6, 20, torch.Generator().manual_seed(0))
    assert torch.equal(y[0], x[0] * x[1] * x[2])
    outputs, read = world.forward(weights, x)
    hidden = x.T
    for layer in (1, 2, 3):
        up = nn.functional.linear(hidden, weights[f"W{layer}"])
        gate = nn.functional.silu(nn.functional.linear(hidden, weights[f"V{layer}"])) if gated else torch.relu(up)
        assert torch.allclose(read[f"W{layer}"], hidden.T)
        hidden = gate * up
    assert torch.allclose(outputs[0], nn.functional.linear(hidden, weights["W4"])[:, 0])
    assert set(read) == set(weights)


@pytest.mark.parametrize("rule", ["euclidean", "spectral"])
def test_one_step_is_numpys(rule):
    course = world.train(rule, gated=False, multipliers=(0.05, 0.05), seed=1, steps=1, **SMALL)
    x, y = world.sample(6, 40, torch.Generator().manual_seed(1))
    weights = world.network(6, False, 1)
    outputs, read = world.forward(weights, x)
    ((outputs - y).square().sum() / 80).backward()
    for (step, block, nr, st), (name, weight) in zip(course.table, weights.items(), strict=True):
        gradient, a = weight.grad.numpy(), read[name].detach().numpy()
        nuclear, frobenius = np.linalg.norm(gradient, "nuc"), np.linalg.norm(gradient)
        assert (step, block) == (0, name)
        assert (nr, st) == pytest.approx(
            (nuclear**2 / frobenius**2, np.linalg.norm(a) ** 2 / np.linalg.norm(a, 2) ** 2)
        )
        if rule == "euclidean":
            moved = gradient / np.linalg.norm(a, 2) ** 2
        else:
            moved = nuclear * polar(gradient)[0] / np.linalg.norm(a) ** 2
        weight.data -= torch.from_numpy(0.05 * 40 * moved)
    after = (world.forward(weights, x)[0] - y).square().mean().item() / 2
    assert course.train[1] == pytest.approx(after)
    assert course.spectral_share == float(rule == "spectral")


def test_rules_choose_blocks():
    shares = {
        rule: world.train(rule, gated=False, multipliers=(0.02, 0.02), seed=1, steps=3, **SMALL).spectral_share
        for rule in ("middle", "ends")
    }
    assert shares["middle"] == shares["ends"] == 0.5


@pytest.mark.parametrize("rule", ["condition", "against"])
def test_the_condition_is_asked_at_every_step(rule):
    size = {"inputs": 24, "samples": 512, "record": set(range(8))}
    course = world.train(rule, gated=False, multipliers=(0.02, 0.05), seed=2, steps=8, **size)
    favoured = np.mean([nr >= st for _, _, nr, st in course.table])
    assert 0 < favoured < 1
    assert course.spectral_share == pytest.approx(favoured if rule == "condition" else 1 - favoured)


def test_a_course_that_explodes_ends_with_infinite_losses():
    course = world.train("euclidean", gated=False, multipliers=(1e6, 1e6), seed=0, steps=30, **SMALL)
    assert course.test == math.inf
    assert len(course.train) < 30
