import copy
import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import RewardError
from stablerank.rewards import intrinsic
from stablerank.rewards.forwards import Forward, States
from stablerank.rewards.intrinsic import DistributionReading, IntrinsicReward, IntrinsicSpec, entropy, self_certainty
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.training.passes import padded_batch
from stablerank.zoo.resolve import resolve

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def student():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student")).eval()


@pytest.fixture(scope="module")
def tokens():
    """Prompts and completions of the embedded task, ragged; one completion of one token, one of none."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    prompts = ["3+4=?\n", "(12-5)*3=?\n", "8=?\n", "14-5+2*3=?\n"]
    completions = ["3+4=7\n\\boxed{7}", "12-5=7\n7*3=21\n\\boxed{21}", "\\", ""]
    return [tokenizer(texts, add_special_tokens=False).input_ids for texts in (prompts, completions)]


def states_of(model, prompts, completions, extra=0):
    """The chunk that a pass shows to a reading; ``extra`` positions of padding on either side."""
    ids, mask, width = padded_batch(prompts, completions, model.config.pad_token_id, torch.device("cpu"))
    ids = torch.nn.functional.pad(ids, (extra, extra), value=model.config.pad_token_id)
    mask = torch.nn.functional.pad(mask, (extra, extra))
    with torch.no_grad():
        output = model(ids, attention_mask=mask, output_hidden_states=True)
    completion_mask = mask.bool().clone()
    completion_mask[:, : -width - extra] = False
    return States(
        output.hidden_states[-1],
        mask.bool(),
        completion_mask,
        width + extra,
        lambda hidden: model.lm_head(hidden).float() / TEMPERATURE,
        ids,
    )


def distributions(model, prompt, completion):
    """Next-token distributions where the completion was sampled, in fp64 and without padding, (T, V)."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = exact(torch.tensor([[*prompt, *completion]])).logits[0]
    return (logits / TEMPERATURE).softmax(-1)[len(prompt) - 1 : -1].numpy()


def by_hand(measure, probabilities_TV, completion):
    uniform = np.full(probabilities_TV.shape[1], 1 / probabilities_TV.shape[1])
    token = {
        "self_certainty": lambda p, _: scipy.stats.entropy(uniform, p),
        "entropy": lambda p, _: scipy.stats.entropy(p),
        "likelihood": lambda p, sampled: np.log(p[sampled]),
    }[measure]
    return np.mean([token(p, sampled) for p, sampled in zip(probabilities_TV, completion, strict=True)])


def rollout(completions, **forwards):
    return Rollout(["?"] * len(completions), [""] * len(completions), completions, mask_of(completions), **forwards)


def mask_of(completions):
    return length_mask([len(completion) for completion in completions])


@pytest.mark.parametrize("measure", ["self_certainty", "entropy"])
def test_a_reading_is_scipys_over_unpadded_distributions(student, tokens, measure):
    read = DistributionReading(measure)(states_of(student, *tokens))
    for value, prompt, completion in zip(read, *tokens, strict=True):
        if completion:
            expected = by_hand(measure, distributions(student, prompt, completion), completion)
            assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert read.isnan().tolist() == [False, False, False, True]
    assert read.dtype == torch.float64


@pytest.mark.parametrize("measure", ["self_certainty", "entropy"])
def test_padding_batch_and_chunks_leave_no_trace(student, tokens, measure, monkeypatch):
    reading = DistributionReading(measure)
    whole = reading(states_of(student, *tokens))
    alone = [
        reading(states_of(student, [prompt], [completion]))
        for prompt, completion in zip(*tokens, strict=True)
        if completion
    ]
    padded = reading(states_of(student, *tokens, extra=5))
    monkeypatch.setattr(intrinsic, "TOKENS", 3)
    chunked = reading(states_of(student, *tokens))
    for other in (torch.cat([*alone, whole[3:]]), padded, chunked):
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("measure", ["self_certainty", "entropy"])
def test_few_logits_exist_at_a_time(student, tokens, measure):
    prompts, completions = [16 * rows for rows in tokens]
    states = states_of(student, prompts, completions)
    shapes = []

    def logits(hidden):
        shapes.append(tuple(hidden.shape))
        return states.logits(hidden)

    DistributionReading(measure)(dataclasses.replace(states, logits=logits))
    assert max(rows for rows, _ in shapes) == intrinsic.TOKENS
    assert sum(rows for rows, _ in shapes) == sum(map(len, completions)) > intrinsic.TOKENS


def test_half_precision_states_are_measured_in_single(student, tokens):
    half = copy.deepcopy(student).bfloat16()
    for measure in ("self_certainty", "entropy"):
        exact, rounded = (DistributionReading(measure)(states_of(model, *tokens)) for model in (student, half))
        assert rounded.dtype == torch.float64
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02, equal_nan=True)


def test_the_extremes_of_a_distribution():
    flat, sharp = torch.zeros(1, 50), torch.zeros(1, 50).index_fill(1, torch.tensor([7]), 1e4)
    assert self_certainty(flat).item() == pytest.approx(0, abs=1e-6)
    assert entropy(flat).item() == pytest.approx(np.log(50))
    assert entropy(sharp).item() == 0
    assert self_certainty(sharp).item() == pytest.approx(1e4 * 49 / 50 - np.log(50))


@pytest.mark.parametrize("of", ["policy", "frozen"])
def test_likelihood_is_the_mean_log_probability_of_what_was_sampled(student, tokens, of):
    prompts, completions = tokens
    logprobs_NT = torch.full(mask_of(completions).shape, float("nan"))
    expected = []
    for row, (prompt, completion) in enumerate(zip(prompts[:3], completions[:3], strict=True)):
        probabilities = distributions(student, prompt, completion)
        logprobs_NT[row, : len(completion)] = torch.tensor(np.log(probabilities))[range(len(completion)), completion]
        expected.append(by_hand("likelihood", probabilities, completion))
    deposit = IntrinsicReward("likelihood", of)(rollout(completions, **{of: Forward(logprobs_NT)}))
    assert deposit.trajectory_rewards_N[:3].tolist() == pytest.approx(expected, rel=1e-6)
    assert deposit.trajectory_rewards_N[3].isnan()


@pytest.mark.parametrize(("measure", "sign"), [("self_certainty", 1), ("entropy", -1)])
def test_a_reward_is_one_deposit_on_the_last_token(tokens, measure, sign):
    read = torch.tensor([2.0, 3.0, 4.0, float("nan")], dtype=torch.float64)
    forward = Forward(torch.zeros(0), {measure: read})
    deposit = IntrinsicReward(measure)(rollout(tokens[1], policy=forward))
    assert deposit.density == "trajectory"
    assert deposit.trajectory_rewards_N[:3].tolist() == [sign * 2, sign * 3, sign * 4]
    lengths = [len(completion) for completion in tokens[1]]
    assert deposit.deposit_mask_NT.nonzero().tolist() == [[row, lengths[row] - 1] for row in range(3)]
    assert deposit.notes == {"empty_completions": 1}


@pytest.mark.parametrize(
    ("measure", "of", "name"),
    [
        ("self_certainty", "policy", "self_certainty"),
        ("entropy", "policy", "negative_entropy"),
        ("entropy", "frozen", "frozen_negative_entropy"),
        ("likelihood", "frozen", "frozen_likelihood"),
    ],
)
def test_a_reward_asks_for_the_pass_it_reads_and_no_other(measure, of, name):
    reward = IntrinsicSpec(measure=measure, of=of).build(None)
    assert reward.name == name
    assert (reward.needs.any_policy, reward.needs.any_frozen) == (of == "policy", of == "frozen")
    with pytest.raises(RewardError, match=rf"the reward {name} reads the {of} forward pass"):
        reward(rollout([[1]]))
