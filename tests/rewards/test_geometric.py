import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import RewardError
from stablerank.rewards.forwards import Forward, States
from stablerank.rewards.geometric import StableRankReading, StableRankReward, StableRankSpec
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.training.passes import padded_batch
from stablerank.zoo.resolve import resolve


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
    mask = torch.nn.functional.pad(mask, (extra, extra)).bool()
    with torch.no_grad():
        hidden = model(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[-1]
    response = mask.clone()
    response[:, : -width - extra] = False
    return States(hidden, mask, response, width + extra, model.lm_head)


def by_hand(model, prompt, completion, scope, window):
    """numpy's SVD of the states of the unpadded text, in fp64."""
    with torch.no_grad():
        output = copy.deepcopy(model).double()(torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
    states = output.hidden_states[-1][0].numpy()[:window]
    response = states[len(prompt) :]
    if not len(response):
        return float("nan")
    values = np.linalg.svd(states if scope == "all" else response, compute_uv=False)
    return (values**2).sum() / values[0] ** 2


@pytest.mark.parametrize("scope", ["all", "response"])
@pytest.mark.parametrize("window", [512, 16, 9, 1])
def test_the_reading_is_numpys_over_unpadded_texts(student, tokens, scope, window):
    """Windows: of all tokens, ending inside a completion, behind a prompt and before it, and of one token."""
    read = StableRankReading(scope, window)(states_of(student, *tokens))
    expected = [by_hand(student, *row, scope, window) for row in zip(*tokens, strict=True)]
    assert read.tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_the_windows_of_these_tests_cut_where_they_say(tokens):
    lengths = [(len(prompt), len(completion)) for prompt, completion in zip(*tokens, strict=True)]
    assert any(prompt < 16 < prompt + completion for prompt, completion in lengths)
    assert any(prompt < 9 < prompt + completion for prompt, completion in lengths)
    assert any(prompt >= 9 and completion for prompt, completion in lengths)


def test_one_token_is_one_and_none_is_not_scorable(student, tokens):
    read = StableRankReading("response")(states_of(student, *tokens))
    assert read[2] == 1
    assert read.isnan().tolist() == [False, False, False, True]
    assert StableRankReading("all")(states_of(student, *tokens)).isnan().tolist() == [False, False, False, True]


@pytest.mark.parametrize("scope", ["all", "response"])
def test_padding_and_batch_leave_no_trace(student, tokens, scope):
    reading = StableRankReading(scope, 16)
    whole = reading(states_of(student, *tokens))
    padded = reading(states_of(student, *tokens, extra=7))
    pairs = list(zip(*tokens, strict=True))[:3]
    alone = torch.cat([reading(states_of(student, [prompt], [completion])) for prompt, completion in pairs])
    torch.testing.assert_close(padded, whole, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(alone, whole[:3], rtol=1e-5, atol=0)


def test_of_the_same_states_not_a_bit_depends_on_padding_or_batch(student, tokens):
    states = states_of(student, *tokens)
    reading = StableRankReading("all")
    whole = reading(states)
    junk = states.hidden_BLD.masked_fill(~states.attention_mask_BL[..., None], float("nan"))
    row = slice(1, 2)
    alone = States(
        junk[row], states.attention_mask_BL[row], states.completion_mask_BL[row], states.completion_width, states.logits
    )
    assert reading(alone)[0] == whole[1]


def test_half_precision_states_are_widened_first(student, tokens):
    states = states_of(copy.deepcopy(student).bfloat16(), *tokens)
    assert states.hidden_BLD.dtype == torch.bfloat16
    for value, hidden, mask in zip(
        StableRankReading("response")(states), states.hidden_BLD, states.completion_mask_BL, strict=True
    ):
        if mask.any():
            values = np.linalg.svd(hidden[mask].double().numpy(), compute_uv=False)
            assert value.item() == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-12)


def test_equal_names_are_equal_readings():
    kinds = [("all", 512), ("response", 512), ("all", 64)]
    rewards = [StableRankSpec(scope=scope, window=window).build(None) for scope, window in kinds]
    assert len({name for reward in rewards for name in reward.needs.frozen_readings}) == 3
    again = StableRankReward("all", 64)
    assert (rewards[2].needs | again.needs).frozen_readings == again.needs.frozen_readings
    assert not again.needs.any_policy


def test_what_cannot_be_scored_is_counted_and_deposits_nothing():
    reward = StableRankReward()
    read = torch.tensor([2.5, float("nan"), float("nan")], dtype=torch.float64)
    forward = Forward(torch.zeros(3, 2), {reward.reading.name: read})
    deposit = reward(Rollout(["?"] * 3, [""] * 3, [[1, 2], [1], []], length_mask([2, 1, 0]), frozen=forward))
    assert deposit.density == "trajectory"
    assert deposit.deposit_mask_NT.tolist() == [[False, True], [False, False], [False, False]]
    assert deposit.trajectory_rewards_N[0] == 2.5
    assert deposit.notes == {"unscorable": 1, "empty_completions": 1}


def test_without_the_frozen_pass_it_says_where_to_get_one():
    with pytest.raises(RewardError, match="the reward stable_rank reads the frozen forward pass, which only our train"):
        StableRankReward()(Rollout(["?"], [""], [[1]], length_mask([1])))
