import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import RewardError
from stablerank.rewards.forwards import Forward, Needs, States
from stablerank.rewards.geometric import OwnershipReading, SpectrumReading, SpectrumReward, SpectrumSpec, View
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
    return States(hidden, mask, response, width + extra, model.lm_head, ids)


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
    read = SpectrumReading(view=View(scope, window))(states_of(student, *tokens))
    expected = [by_hand(student, *row, scope, window) for row in zip(*tokens, strict=True)]
    assert read.tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_the_windows_of_these_tests_cut_where_they_say(tokens):
    lengths = [(len(prompt), len(completion)) for prompt, completion in zip(*tokens, strict=True)]
    assert any(prompt < 16 < prompt + completion for prompt, completion in lengths)
    assert any(prompt < 9 < prompt + completion for prompt, completion in lengths)
    assert any(prompt >= 9 and completion for prompt, completion in lengths)


def test_one_token_is_one_and_none_is_not_scorable(student, tokens):
    read = SpectrumReading(view=View("response"))(states_of(student, *tokens))
    assert read[2] == 1
    assert read.isnan().tolist() == [False, False, False, True]
    assert SpectrumReading(view=View("all"))(states_of(student, *tokens)).isnan().tolist() == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("scope", ["all", "response"])
def test_padding_and_batch_leave_no_trace(student, tokens, scope):
    reading = SpectrumReading(view=View(scope, 16))
    whole = reading(states_of(student, *tokens))
    padded = reading(states_of(student, *tokens, extra=7))
    pairs = list(zip(*tokens, strict=True))[:3]
    alone = torch.cat([reading(states_of(student, [prompt], [completion])) for prompt, completion in pairs])
    torch.testing.assert_close(padded, whole, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(alone, whole[:3], rtol=1e-5, atol=0)


def test_of_the_same_states_not_a_bit_depends_on_padding_or_batch(student, tokens):
    states = states_of(student, *tokens)
    reading = SpectrumReading(view=View("all"))
    whole = reading(states)
    junk = states.hidden_BLD.masked_fill(~states.attention_mask_BL[..., None], float("nan"))
    row = slice(1, 2)
    alone = States(
        junk[row],
        states.attention_mask_BL[row],
        states.completion_mask_BL[row],
        states.completion_width,
        states.logits,
        states.ids_BL[row],
    )
    assert reading(alone)[0] == whole[1]


def test_half_precision_states_are_widened_first(student, tokens):
    states = states_of(copy.deepcopy(student).bfloat16(), *tokens)
    assert states.hidden_BLD.dtype == torch.bfloat16
    for value, hidden, mask in zip(
        SpectrumReading(view=View("response"))(states), states.hidden_BLD, states.completion_mask_BL, strict=True
    ):
        if mask.any():
            values = np.linalg.svd(hidden[mask].double().numpy(), compute_uv=False)
            assert value.item() == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-12)


FUNCTIONALS = {
    "stable_rank": lambda values: (values**2).sum() / values[0] ** 2,
    "effective_rank": lambda values: np.exp(entropy(values)),
    "participation_ratio": lambda values: (values**2).sum() ** 2 / (values**4).sum(),
}


@pytest.mark.parametrize("functional", FUNCTIONALS)
@pytest.mark.parametrize("center", [False, True])
def test_functionals_and_centring_are_numpys(student, tokens, functional, center):
    read = SpectrumReading(functional, View("all", 16, center))(states_of(student, *tokens))
    for value, prompt, completion in zip(read.tolist(), *tokens, strict=True):
        if not completion:
            assert np.isnan(value)
            continue
        with torch.no_grad():
            output = copy.deepcopy(student).double()(torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
        states = output.hidden_states[-1][0].numpy()[:16]
        singular = np.linalg.svd(states - center * states.mean(0), compute_uv=False)
        assert value == pytest.approx(FUNCTIONALS[functional](singular), rel=1e-4)


@pytest.mark.parametrize("scope", ["all", "response"])
def test_ownership_is_that_of_numpys_leading_vector(student, tokens, scope):
    """The first token that counts, and every digit as if it were a special token."""
    special = set(AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))("0123456789").input_ids)
    states = states_of(student, *tokens, extra=3)
    view = View(scope, 14)
    first, owned = (OwnershipReading(view, ids)(states) for ids in (None, frozenset(special)))
    counted = 0
    for row, mask in enumerate(view.counted(states)):
        hidden, ids = states.hidden_BLD[row][mask].double().numpy(), states.ids_BL[row][mask].tolist()
        if view.is_unscorable(states)[row]:
            assert first[row].isnan() and owned[row].isnan()
            continue
        leading = np.linalg.svd(hidden)[0][:, 0] ** 2
        assert first[row].item() == pytest.approx(leading[0], abs=1e-3)
        assert owned[row].item() == pytest.approx(leading[[token in special for token in ids]].sum(), abs=1e-3)
        counted += 1
    assert counted >= 2


def test_centred_states_have_no_owner_that_is_logged():
    assert set(SpectrumReward(view=View(center=True)).needs.frozen_readings) == {"stable_rank_all_512_centred"}


def test_one_token_that_towers_owns_the_leading_direction(student, tokens):
    states = states_of(student, *tokens)
    first_BL = states.attention_mask_BL & (states.attention_mask_BL.cumsum(1) == 1)
    towering = replace(states, hidden_BLD=torch.where(first_BL[..., None], 100.0, 1.0) * states.hidden_BLD)
    assert OwnershipReading(View())(towering)[0] > 0.99 > 0.5 > OwnershipReading(View())(states)[0]


def test_equal_names_are_equal_readings(tokenizer):
    kinds = [{}, {"scope": "response"}, {"window": 64}, {"center": True}, {"functional": "effective_rank"}]
    rewards = [SpectrumSpec(**kind).build(tokenizer) for kind in kinds]
    assert len({reward.reading.name for reward in rewards}) == len(kinds)
    again = SpectrumSpec(window=64).build(tokenizer)
    assert (rewards[2].needs | again.needs).frozen_readings == again.needs.frozen_readings
    assert not again.needs.any_policy


@pytest.mark.parametrize("of", ["frozen", "policy", "snapshot"])
def test_whose_states_decides_the_pass(tokenizer, of):
    reward = SpectrumSpec(of=of, refresh=5 if of == "snapshot" else None).build(tokenizer)
    needs = reward.needs
    asked = {"frozen": needs.any_frozen, "policy": needs.any_policy, "snapshot": needs.any_snapshot}
    assert [which for which, is_asked in asked.items() if is_asked] == [of]
    assert needs.refresh == (5 if of == "snapshot" else None)
    assert reward.name == ("stable_rank" if of == "frozen" else f"{of}_stable_rank")


@pytest.mark.parametrize("settings", [{"of": "snapshot"}, {"refresh": 5}, {"of": "policy", "refresh": 5}])
def test_a_snapshot_has_an_age_and_nothing_else_has(settings):
    with pytest.raises(ValidationError, match="set refresh with of=snapshot and leave it out otherwise"):
        SpectrumSpec(**settings)


def test_snapshots_of_two_ages_are_refused(tokenizer):
    young, old = (SpectrumSpec(of="snapshot", refresh=refresh).build(tokenizer).needs for refresh in (5, 10))
    assert (young | Needs() | young).refresh == 5
    with pytest.raises(RewardError, match="snapshots of 5 and of 10 steps"):
        _ = young | old


def left(reward, *values):
    """A pass over three completions that left these ranks, and a third of the leading direction to either owner."""
    read = torch.tensor(values, dtype=torch.float64)
    owned = torch.where(read.isnan(), torch.nan, 1 / 3)
    return Forward(
        torch.zeros(3, 2),
        {name: read if name == reward.reading.name else owned for name in reward.needs.frozen_readings},
    )


def test_what_cannot_be_scored_is_counted_and_deposits_nothing():
    reward = SpectrumReward()
    forward = left(reward, 2.5, float("nan"), float("nan"))
    deposit = reward(Rollout(["?"] * 3, [""] * 3, [[1, 2], [1], []], length_mask([2, 1, 0]), frozen=forward))
    assert deposit.density == "trajectory"
    assert deposit.deposit_mask_NT.tolist() == [[False, True], [False, False], [False, False]]
    assert deposit.trajectory_rewards_N[0] == 2.5
    shares = {"sigma1_first_token": pytest.approx(1 / 3), "sigma1_special_tokens": pytest.approx(1 / 3)}
    assert deposit.notes == {"unscorable": 1, "empty_completions": 1, **shares}


def test_texts_longer_than_the_window_are_counted():
    reward = SpectrumReward(view=View(window=4))
    texts = {"prompt_ids": [[1, 2], [1, 2, 3], [1]], "completion_ids": [[1, 2], [1, 2], [1]]}
    rollout = Rollout(
        ["?"] * 3, [""] * 3, completion_mask_NT=length_mask([2, 2, 1]), frozen=left(reward, 2, 2, 2), **texts
    )
    assert reward(rollout).notes["cut_by_window"] == pytest.approx(1 / 3)


def test_shares_that_do_not_exist_stay_out_of_the_log():
    reward = SpectrumReward()
    nothing = Rollout(["?"] * 3, [""] * 3, [[]] * 3, length_mask([0] * 3), frozen=left(reward, *[float("nan")] * 3))
    assert reward(nothing).notes == {"unscorable": 0, "empty_completions": 3}


def test_without_its_pass_it_says_where_to_get_one():
    bare = Rollout(["?"], [""], [[1]], length_mask([1]))
    with pytest.raises(RewardError, match="the reward stable_rank reads the frozen forward pass, which only our train"):
        SpectrumReward()(bare)
    with pytest.raises(RewardError, match="the reward snapshot_stable_rank reads the snapshot forward pass"):
        SpectrumReward(of="snapshot", refresh=5)(bare)
