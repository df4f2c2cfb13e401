"""Expected updates of the rules against gradients by enumeration, over every group of a bandit that may stop."""

from dataclasses import replace

import pytest
import torch

from stablerank.rewards.credit.specs import CreditSpec

SIZES = (2, 3)
SEEDS = (0, 1)


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def expected(bandit, world, size, rule, **settings):
    options = {key: settings.pop(key) for key in ("per_token_mean", "rescale") if key in settings}
    spec = CreditSpec(rule=rule, **{"scale": "none", **settings})
    return bandit.update(world, spec, size, **options).expected_P


def cosine(one_P, other_P):
    return torch.nn.functional.cosine_similarity(one_P, other_P, dim=0).item()


@pytest.fixture(params=SEEDS)
def world(bandit, request):
    return bandit.random_world(request.param)


@pytest.fixture
def gradient(bandit, world):
    return lambda name: world.gradient(bandit.OBJECTIVES[name])


def test_the_world_is_what_it_says(bandit, world):
    p_K = world.probabilities(world.logits)
    assert p_K.sum().item() == pytest.approx(1, abs=1e-12)
    assert len(p_K) == 14 and world.steps_K.tolist() == [1] * 2 + [2] * 4 + [3] * 8
    # Log-derivatives average to nothing, and weighed by a reward they are its gradient.
    score_KP = world.scores().sum(1)
    assert_equal(p_K @ score_KP, torch.zeros(score_KP.shape[1], dtype=torch.float64))
    assert_equal((p_K * world.steps_K) @ score_KP, world.gradient(bandit.expected_steps))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("rule", "centre", "objective", "factor"),
    [
        ("return_to_go", "none", "E[sum r]", lambda size: 1),
        ("position", "none", "E[sum r]", lambda size: 1),
        ("position", "group", "E[sum r]", lambda size: 1),
        ("progress", "none", "E[last r]", lambda size: 1),
        ("progress", "group", "E[last r]", lambda size: 1),
        ("mean_to_go", "none", "E[mean r]", lambda size: 1),
        ("mean_to_go", "group", "E[mean r]", lambda size: 1),
        ("trajectory_mean", "none", "E[mean r]", lambda size: 1),
        ("trajectory_mean", "group", "E[mean r]", lambda size: (size - 1) / size),
    ],
)
def test_unbiased_without_the_deviation(bandit, world, gradient, size, rule, centre, objective, factor):
    assert_equal(expected(bandit, world, size, rule, centre=centre), factor(size) * gradient(objective))


@pytest.mark.parametrize("rule", ["mean_to_go", "trajectory_mean", "progress", "return_to_go", "per_deposit"])
def test_steps_of_equal_worth_give_no_update_whatever_their_number(bandit, rule):
    world = bandit.random_world(0, equal_rewards=True)
    for scale in ("none", "group"):
        assert expected(bandit, world, 3, rule, scale=scale).abs().max() == 0


@pytest.mark.parametrize(("rule", "centre"), [("return_to_go", "none"), ("position", "group")])
def test_sums_pay_for_length(bandit, rule, centre):
    world = bandit.random_world(0, equal_rewards=True)
    assert_equal(expected(bandit, world, 3, rule, centre=centre), world.gradient(bandit.expected_steps))


def test_a_constant_in_place_of_the_pooled_mean_follows_the_ratio(bandit, world, gradient):
    p_K = world.probabilities(world.logits)
    steps = (p_K @ world.steps_K).item()
    rate = (p_K @ world.rewards_KT.sum(1)).item() / steps
    shifted = replace(world, rewards_KT=(world.rewards_KT - rate).where(world.lines_KT, 0.0))
    ours = expected(bandit, shifted, 2, "return_to_go", centre="none")
    assert_equal(ours, steps * gradient("E[sum r] / E[S]"))


def test_the_pooled_mean_comes_near_the_ratio_as_groups_grow(bandit, world, gradient):
    ratio = gradient("E[sum r] / E[S]")
    biases = [bandit.compared(expected(bandit, world, size, "return_to_go"), ratio)["bias"] for size in (2, 3, 4)]
    assert biases[0] > 1.2 * biases[1] > 1.2 * 1.1 * biases[2] > 0.005


@pytest.mark.parametrize(
    ("rule", "settings", "objective"),
    [
        ("return_to_go", {"centre": "none", "rescale": True}, "E[mean r]"),
        ("trajectory_mean", {"per_token_mean": True}, "E[mean r]"),
        ("mean_to_go", {"scale": "group"}, "E[mean r]"),
        ("trajectory_mean", {"scale": "group"}, "E[mean r]"),
        ("progress", {"scale": "group"}, "E[last r]"),
        ("position", {"scale": "group"}, "E[sum r]"),
        ("return_to_go", {"scale": "group"}, "E[sum r] / E[S]"),
        ("return_to_go", {"scale": "group", "epsilon": 1e-8}, "E[sum r] / E[S]"),
        ("per_deposit", {}, "E[sum r]"),
    ],
)
def test_biased(bandit, world, gradient, rule, settings, objective):
    assert cosine(expected(bandit, world, 3, rule, **settings), gradient(objective)) < 0.9995


def test_credit_by_step_is_less_noisy_than_one_return_for_all(bandit, world):
    """The same objective, and in the units of its gradient at most three quarters of the variance."""
    by_step, for_all = (
        bandit.update(world, CreditSpec(rule=rule, scale="none"), 3) for rule in ("mean_to_go", "trajectory_mean")
    )
    ratios = [found.variance / found.expected_P.square().sum().item() for found in (by_step, for_all)]
    assert ratios[0] < 0.75 * ratios[1]
