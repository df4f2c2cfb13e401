import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import RewardError
from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.divergence import KLReward, KLSpec
from stablerank.rewards.forwards import Forward
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.zoo.resolve import resolve

LENGTHS = [3, 1, 0, 5]


def rollout(lengths, policy_NT, frozen_NT):
    count = len(lengths)
    ids = [[1] * length for length in lengths]
    return Rollout(
        ["?"] * count, [""] * count, ids, length_mask(lengths), policy=Forward(policy_NT), frozen=Forward(frozen_NT)
    )


@pytest.fixture
def logprobs():
    """Of policy and reference; NaN where a completion has ended."""
    draw = torch.Generator().manual_seed(0)
    ended_NT = ~length_mask(LENGTHS)
    return [torch.randn(ended_NT.shape, generator=draw).masked_fill(ended_NT, math.nan) for _ in range(2)]


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_every_sampled_token_pays_its_estimate(logprobs, estimator):
    deposit = KLReward(estimator)(rollout(LENGTHS, *logprobs))
    assert deposit.density == "token"
    assert torch.equal(deposit.deposit_mask_NT, length_mask(LENGTHS))
    for row, length in enumerate(LENGTHS):
        total = 0.0
        for token in range(length):
            distance = logprobs[0][row, token].item() - logprobs[1][row, token].item()
            expected = -distance if estimator == "k1" else -distance * distance / 2
            assert deposit.token_rewards_NT[row, token].item() == pytest.approx(expected, rel=1e-6)
            total += expected
        assert deposit.trajectory_rewards_N[row].item() == pytest.approx(total, rel=1e-6)


def test_the_reference_itself_pays_nothing_and_says_so(logprobs):
    deposit = KLReward()(rollout(LENGTHS, logprobs[0], logprobs[0]))
    assert deposit.token_rewards_NT.abs().max() == 0
    assert deposit.deposit_mask_NT.sum() == sum(LENGTHS)


def test_the_weight_is_the_coefficient(logprobs):
    """Neither a group's mean nor its deviation gets in the way."""
    deposit = KLReward()(rollout(LENGTHS, *logprobs))
    component = Component(deposit, weight=0.05, credit=KLSpec.default_credit)
    credit = advantages([component], torch.zeros(len(LENGTHS), dtype=torch.long), length_mask(LENGTHS))
    torch.testing.assert_close(credit.advantages_NT, 0.05 * deposit.token_rewards_NT)


@pytest.fixture(scope="module")
def next_token_logits():
    """Of the embedded student and teacher after one prompt, in fp64."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    ids = tokenizer("(12-5)*3=?\n1", return_tensors="pt", add_special_tokens=False).input_ids
    logits = []
    for name in ("zoo:arith-student", "zoo:arith-teacher"):
        with torch.no_grad():
            logits.append(AutoModelForCausalLM.from_pretrained(resolve(name)).double()(ids).logits[0, -1])
    return logits


def expected_deposit_and_gradient(estimator, policy_logits_V, frozen_logits_V):
    """Over every token that could be sampled: E[deposit] and E[deposit grad log p], by enumeration."""
    leaf_V = policy_logits_V.clone().requires_grad_()
    logprobs_V = leaf_V.log_softmax(-1)
    vocabulary = len(leaf_V)
    all_tokens = rollout([1] * vocabulary, logprobs_V.detach()[:, None], frozen_logits_V.log_softmax(-1)[:, None])
    deposits_V = KLReward(estimator)(all_tokens).token_rewards_NT[:, 0].double()
    probabilities_V = logprobs_V.detach().exp()
    (gradient_V,) = torch.autograd.grad((probabilities_V * deposits_V * logprobs_V).sum(), leaf_V)
    return (probabilities_V * deposits_V).sum(), gradient_V


def test_k1_is_minus_the_divergence_in_value_and_in_gradient(next_token_logits):
    policy_V, frozen_V = next_token_logits
    value, gradient_V = expected_deposit_and_gradient("k1", policy_V, frozen_V)
    leaf_V = policy_V.clone().requires_grad_()
    divergence = kl_divergence(Categorical(logits=leaf_V), Categorical(logits=frozen_V))
    (true_gradient_V,) = torch.autograd.grad(-divergence, leaf_V)
    assert divergence > 1e-3
    torch.testing.assert_close(value, -divergence.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient_V, true_gradient_V, rtol=1e-5, atol=1e-9)


def test_k2_in_the_reward_does_not_pull_towards_the_reference(next_token_logits):
    """Ten times nearer, a tenth of k1's pull is left and a hundredth of k2's; and k2's points away on one side."""
    frozen_V = next_token_logits[1]
    direction_V = torch.randn(len(frozen_V), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def pull(estimator, step):
        gradient_V = expected_deposit_and_gradient(estimator, frozen_V + step * direction_V, frozen_V)[1]
        return gradient_V.norm().item(), (-step * direction_V @ gradient_V).sign().item()

    assert pull("k1", 0.1)[0] / pull("k1", 0.01)[0] == pytest.approx(10, rel=0.2)
    assert pull("k2", 0.1)[0] / pull("k2", 0.01)[0] == pytest.approx(100, rel=0.2)
    assert [pull("k1", step)[1] for step in (0.1, -0.1)] == [1, 1]
    assert sorted(pull("k2", step)[1] for step in (0.1, -0.1)) == [-1, 1]


def test_a_completion_that_the_reference_rules_out_is_named(logprobs):
    logprobs[1][3, 2] = -math.inf
    with pytest.raises(RewardError, match="-inf for completion 3"):
        KLReward()(rollout(LENGTHS, *logprobs))


def test_both_passes_are_asked_for():
    reward = KLSpec().build(None)
    assert reward.needs.frozen
    assert reward.needs.policy
    alone = Rollout(["?"], [""], [[1]], length_mask([1]), policy=Forward(torch.zeros(1, 1)))
    with pytest.raises(RewardError, match="the reward kl reads the frozen forward pass"):
        reward(alone)
