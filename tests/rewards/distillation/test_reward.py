import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import Qwen3Config, Qwen3ForCausalLM

from stablerank.errors import RewardError
from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.distillation.model_teacher import ModelTeacher
from stablerank.rewards.distillation.reward import DistillationReward
from stablerank.rewards.distillation.spec import DistillationSpec
from stablerank.rewards.forwards import Forward
from stablerank.rewards.rollout import Rollout, length_mask

TOKENS, LENGTH, PROMPT = 5, 3, [1, 2]


class Fixed:
    """A teacher that says what it was told."""

    temperature, cost = 1.0, "nothing"

    def __init__(self, logprobs_NT):
        self.logprobs_NT = torch.tensor(logprobs_NT)

    def logprobs(self, prompt_ids, completion_ids, width):
        return self.logprobs_NT


def rollout(completion_ids, policy_NT, prompt_ids=((1,), (1,))):
    return Rollout(
        prompts=["p"] * len(completion_ids),
        completions=["c"] * len(completion_ids),
        completion_ids=completion_ids,
        completion_mask_NT=length_mask([len(ids) for ids in completion_ids]),
        prompt_ids=prompt_ids,
        policy=None if policy_NT is None else Forward(torch.tensor(policy_NT)),
    )


def tiny(seed):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=TOKENS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.5, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def exact_reverse_kl(policy, teacher):
    """KL between the two distributions over whole completions, prefix by prefix (the chain rule)."""
    total = 0.0
    for length in range(LENGTH):
        for prefix in itertools.product(range(TOKENS), repeat=length):
            ids = torch.tensor([[*PROMPT, *prefix]])
            with torch.no_grad():
                ours, theirs = (Categorical(logits=m(input_ids=ids).logits[0].double()) for m in (policy, teacher))
            before = torch.arange(length) + len(PROMPT) - 1
            reached = ours.logits[before, torch.tensor(prefix, dtype=torch.long)].sum().exp()
            total += (reached * kl_divergence(ours, theirs)[-1]).item()
    return total


@pytest.fixture(scope="module")
def enumerated():
    """Every completion of a tiny policy, its probability, its deposit, and the exact KL."""
    policy, teacher = tiny(0), tiny(1)
    every = [list(ids) for ids in itertools.product(range(TOKENS), repeat=LENGTH)]
    prompts = [PROMPT] * len(every)
    policy_NT = ModelTeacher(policy, "policy").logprobs(prompts, every, LENGTH)
    deposit = DistillationReward(ModelTeacher(teacher, "teacher"))(rollout(every, policy_NT.tolist(), prompts))
    return policy_NT.double().sum(1).exp(), deposit, exact_reverse_kl(policy, teacher)


def test_expected_reward_is_minus_the_exact_reverse_kl(enumerated):
    probability_N, deposit, kl = enumerated
    assert probability_N.sum().item() == pytest.approx(1, abs=1e-6)
    assert kl > 0.5, "the two models differ enough to tell"
    expected = (probability_N * deposit.token_rewards_NT.double().sum(1)).sum().item()
    assert -expected == pytest.approx(kl, abs=1e-6)
    a_token = (probability_N * deposit.trajectory_rewards_N.double()).sum().item()
    assert -a_token == pytest.approx(kl / LENGTH, abs=1e-6)


def test_the_mean_over_samples_converges_to_it(enumerated):
    probability_N, deposit, kl = enumerated
    generator = torch.Generator().manual_seed(0)
    errors = []
    for samples in (100, 10_000):
        drawn = torch.multinomial(probability_N, samples, replacement=True, generator=generator)
        estimates = -deposit.token_rewards_NT.double().sum(1)[drawn]
        standard_error = (estimates.std() / math.sqrt(samples)).item()
        assert abs(estimates.mean().item() - kl) < 4 * standard_error
        errors.append(standard_error)
    assert errors[1] < errors[0] / 5


def test_every_sampled_token_has_a_deposit_and_nothing_else():
    deposit = DistillationReward(Fixed([[-1.0, -2.0], [-4.0, 9.0]]))(
        rollout([[7, 8], [9]], [[-1.5, -1.0, 0.0], [-1.0, math.nan, 0.0]])
    )
    assert deposit.density == "token"
    assert deposit.deposit_mask_NT.tolist() == [[True, True], [True, False]]
    assert deposit.token_rewards_NT[deposit.deposit_mask_NT].tolist() == [0.5, -1.0, -3.0]
    assert deposit.trajectory_rewards_N.tolist() == [-0.25, -3.0]
    assert deposit.notes == {"clipped_tokens": 0, "empty_completions": 0}


def test_the_clip_is_symmetric_counted_and_makes_the_impossible_finite():
    given = rollout([[7, 8, 9], []], [[-5.0, -1.0, -0.2], [0.0, 0.0, 0.0]])
    teacher = Fixed([[-1.0, -math.inf, -0.1], [-math.inf, -math.inf, -math.inf]])
    deposit = DistillationReward(teacher, clip=2.0)(given)
    assert deposit.token_rewards_NT[0].tolist() == pytest.approx([2.0, -2.0, 0.1])
    assert deposit.notes == {"clipped_tokens": 2, "empty_completions": 1}
    assert deposit.trajectory_rewards_N.isnan().tolist() == [False, True]
    with pytest.raises(RewardError, match=r"is -inf for token 1 of completion 0 \(.* -inf by the teacher, -1 by the"):
        DistillationReward(teacher)(given)


def test_its_own_credit_pays_each_token_its_reward_and_nothing_more():
    spec = DistillationSpec(kind="distillation", teacher={"path": "zoo:arith-teacher"})
    deposit = DistillationReward(Fixed([[-1.0, -2.0], [-4.0, 9.0]]))(
        rollout([[7, 8], [9]], [[-1.5, -1.0], [-1.0, 0.0]])
    )
    credit = advantages(
        [Component(deposit, credit=spec.default_credit)], torch.zeros(2, dtype=torch.long), deposit.deposit_mask_NT
    )
    assert credit.advantages_NT.tolist() == [[0.5, -1.0], [-3.0, 0.0]]


def test_what_it_needs_is_named():
    reward = DistillationReward(Fixed([[0.0]]))
    assert reward.needs.policy and not reward.needs.any_frozen
    assert reward.temperature == 1.0 and reward.own_forward == "nothing"
    with pytest.raises(RewardError, match="reads the policy forward pass, which only our trainer runs"):
        reward(rollout([[7]], None, ((1,),)))
    for prompts in (None, ((1,), ())):
        with pytest.raises(RewardError, match=r"got no token of prompt \d, without which"):
            reward(rollout([[7], [7]], [[0.0], [0.0]], prompts))
