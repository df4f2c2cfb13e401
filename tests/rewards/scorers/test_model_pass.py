"""Numbers against plain transformers and numpy, and what padding, batch and dtype move."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from scipy.stats import entropy
from transformers import GPT2Config, GPT2LMHeadModel

from stablerank.errors import RecipeError
from stablerank.rewards.scorers.answers import Answer, score_one
from stablerank.rewards.scorers.frozen_model import FrozenModel
from stablerank.rewards.scorers.model_pass import BOUNDS, ModelPass
from stablerank.rewards.scorers.readings import SpectralReading, TokenReading, View, grouped
from stablerank.rewards.scorers.templates import Layout

BARE = Layout("bare")
TOKEN_MEASURES = {name: name for name in ("mean_logprob", "self_certainty", "token_entropy")}


def rank_of(**view):
    return [SpectralReading(View(**view), {"stable_rank": "stable_rank"})]


def states_of(frozen, answer, layer, **layout):
    """The states ``(L, D)`` of one unpadded text, and where its response begins, by transformers alone."""
    tokenizer = frozen.tokenizer
    prompt = tokenizer(answer.prompt, add_special_tokens=False)["input_ids"]
    response = tokenizer(answer.response, add_special_tokens=False)["input_ids"]
    ids = [*prompt, *response, tokenizer.eos_token_id][: layout.get("window", 512)]
    with torch.no_grad():
        output = frozen.model(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[layer][0].double().numpy(), output.logits[0].double().numpy(), ids, len(prompt)


@pytest.mark.parametrize("scope", ["all", "response"])
@pytest.mark.parametrize("layer", [-1, 4, 3, 0, -3])
@pytest.mark.parametrize("center", [False, True])
def test_stable_rank_is_numpys_svd_of_plain_states(student, sums, scope, layer, center):
    scores = ModelPass(student, rank_of(scope=scope, layer=layer, center=center), BARE).score(sums)
    for answer, value in zip(sums, scores.values_NS[:, 0], strict=True):
        states, _, _, start = states_of(student, answer, layer)
        states = states if scope == "all" else states[start:]
        values = np.linalg.svd(states - states.mean(0) if center else states, compute_uv=False)
        assert value == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)
    assert scores.statuses == ("scored",) * len(sums)


def test_stable_rank_of_a_real_model_in_its_chat_template(smollm2):
    tokenizer = smollm2.tokenizer
    answer = Answer("Name a sea.", "The Baltic Sea is a sea.")
    turns = [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
    with torch.no_grad():
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        states = smollm2.model(ids, output_hidden_states=True).hidden_states[-1][0].double().numpy()
    values = np.linalg.svd(states, compute_uv=False)
    score = score_one(ModelPass(smollm2, rank_of()), answer.prompt, answer.response)
    assert score == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)


def test_before_norm_is_what_the_final_norm_turns_into_the_last_layer(student, sums):
    passing = ModelPass(student, [*rank_of(layer="before_norm"), *rank_of(layer=-1)], BARE)
    chunk = passing.chunk([passing.encode(answer) for answer in sums])
    normed = student.model.model.norm(chunk.states["before_norm"])
    torch.testing.assert_close(normed[chunk.text_BL], chunk.states[-1][chunk.text_BL])
    assert not torch.allclose(chunk.states["before_norm"], chunk.states[-1], rtol=0.1)


def test_token_scores_are_those_of_the_models_own_logits(student, sums):
    scores = ModelPass(student, [TokenReading(TOKEN_MEASURES)], BARE).score(sums)
    for answer, (logprob, certainty, uncertainty) in zip(sums, scores.values_NS, strict=True):
        _, logits, ids, start = states_of(student, answer, -1)
        log_p = log_softmax(logits, axis=1)[start - 1 : -1]
        chosen = log_p[np.arange(len(log_p)), ids[start:]]
        width = log_p.shape[1]
        uniform = rel_entr(1 / width, np.exp(log_p)).sum(1)
        assert logprob == pytest.approx(chosen.mean(), rel=1e-5)
        assert certainty == pytest.approx(uniform.mean(), rel=1e-5)
        assert uncertainty == pytest.approx(entropy(np.exp(log_p), axis=1).mean(), rel=1e-4)


def everything():
    """Every score but the condition number, whose smallest value is noise in half precision."""
    measures = ("stable_rank", "effective_rank", "participation_ratio", "rankme")
    spectral = {
        f"{m}_{s}_{c}": (m, View(s, -1, c)) for m in measures for s in ("all", "response") for c in (False, True)
    }
    alone = {f"alone_{scope}": ("stable_rank", View(scope, 2)) for scope in ("all", "response")}
    return [*grouped(spectral | alone), TokenReading(TOKEN_MEASURES)]


def worst(scores, others):
    assert scores.statuses == others.statuses
    return np.nanmax(np.abs(others.values_NS / scores.values_NS - 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_side_batch_size_and_company_move_less_than_the_bound(student, sums, dtype):
    frozen = FrozenModel(student.name, student.place, dtype)
    one = ModelPass(frozen, everything(), BARE, batch_tokens=1).score(sums)
    for batch_tokens in (100, 4096):
        for padding in ("right", "left"):
            batched = ModelPass(frozen, everything(), BARE, batch_tokens, padding).score(sums)
            assert worst(one, batched) < BOUNDS[dtype]
    half = ModelPass(frozen, everything(), BARE).score(sums[::2])
    assert np.abs(half.values_NS / one.values_NS[::2] - 1).max() < BOUNDS[dtype]


def test_absolute_positions_and_other_blocks_are_read_alike(student, sums, tmp_path):
    """GPT-2 counts positions from the padding unless told otherwise, and keeps its blocks under another name."""
    config = GPT2Config(vocab_size=101, n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    student.tokenizer.save_pretrained(tmp_path)
    frozen = FrozenModel("gpt2", str(tmp_path), "float32")
    right, left = (ModelPass(frozen, everything()[-1:], BARE, padding=side).score(sums) for side in ("right", "left"))
    assert worst(right, left) < BOUNDS["float32"]
    scores = ModelPass(frozen, rank_of(layer=1), BARE).score(sums)
    for answer, value in zip(sums, scores.values_NS[:, 0], strict=True):
        values = np.linalg.svd(states_of(frozen, answer, 1)[0], compute_uv=False)
        assert value == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)


def test_left_padding_is_on_the_left(student, sums):
    passing = ModelPass(student, rank_of(), BARE, padding="left")
    chunk = passing.chunk([passing.encode(answer) for answer in sums])
    assert chunk.text_BL[:, -1].all() and not chunk.text_BL[:, 0].all()


def test_half_precision_moves_less_than_its_bound(student, sums):
    exact = ModelPass(student, everything(), BARE).score(sums)
    half = ModelPass(FrozenModel(student.name, student.place, "bfloat16"), everything(), BARE).score(sums)
    assert 1e-5 < worst(exact, half) < BOUNDS["bfloat16"]


def test_chunks_of_logits_move_rounding_alone(student, sums, monkeypatch):
    passing = ModelPass(student, [TokenReading(TOKEN_MEASURES)], BARE)
    whole = passing.score(sums)
    monkeypatch.setattr("stablerank.rewards.scorers.model_pass.TOKENS", 3)
    assert worst(whole, passing.score(sums)) < 1e-5


def test_order_and_repetition_move_not_a_bit(student, sums):
    passing = ModelPass(student, everything(), BARE, batch_tokens=100)
    once = passing.score(sums)
    again = passing.score([*sums[::-1], *sums])
    assert np.array_equal(again.values_NS[: len(sums)], once.values_NS[::-1])
    assert np.array_equal(again.values_NS[len(sums) :], once.values_NS)


def test_texts_that_are_alike_within_the_window_tie(student):
    pair = [Answer("1+2=?\n", f"1+2=3\n\\boxed{{3}}{rest}" + "9" * 20) for rest in ("\n1", "\n2")]
    scores = ModelPass(student, everything(), Layout("bare", window=16), batch_tokens=1).score(pair)
    assert np.array_equal(scores.values_NS[0], scores.values_NS[1])
    wider = ModelPass(student, everything(), Layout("bare", window=17), batch_tokens=1).score(pair)
    assert (wider.values_NS[0] != wider.values_NS[1]).any()


def test_alone_the_stable_rank_agrees_with_that_of_the_whole_spectrum(student, sums):
    alone = ModelPass(student, rank_of(), BARE).score(sums)
    together = ModelPass(student, everything(), BARE).score(sums)
    assert alone.values_NS[:, 0] == pytest.approx(together.column("stable_rank_all_False"), rel=1e-12)


def test_one_token_is_one_whatever_the_spectrum_is_asked(student):
    spectral = {m: (m, View("response")) for m in ("stable_rank", "effective_rank", "pca95", "condition_number")}
    one = ModelPass(student, grouped(spectral), Layout("bare", eos=False)).score([Answer("1+2=?\n", "3")])
    assert one.values_NS.tolist() == [[1.0] * 4]
    assert one.tokens_N.tolist() == [1]


def test_what_cannot_be_scored_is_named_and_the_rest_scored(student):
    answers = [
        Answer("1+2=?\n", "3"),
        Answer("1+2=?\n", ""),
        Answer("1+2=?\n", None),
        Answer("1+2=?\n", 3),
        Answer(None, "3"),
        Answer("1+" * 20, "3"),
    ]
    scores = ModelPass(student, everything(), Layout("bare", window=16)).score(answers)
    assert scores.statuses == ("scored", "empty", "missing", "not_text", "not_text", "outside_window")
    assert np.isfinite(scores.values_NS[0]).all() and np.isnan(scores.values_NS[1:]).all()
    assert scores.tokens_N.tolist() == [2, 0, 0, 0, 0, 0]


def test_no_answers_are_an_empty_table(student):
    scores = ModelPass(student, everything(), BARE).score([])
    assert scores.values_NS.shape == (0, len(scores.names))


def test_a_number_that_does_not_exist_leaves_the_others_alone(student):
    """One token, centred, has no spectrum; and nothing stands before the first token to predict it."""
    readings = [*rank_of(scope="response"), *rank_of(scope="response", center=True)]
    readings[1] = SpectralReading(readings[1].view, {"centred": "stable_rank"})
    scores = ModelPass(student, readings, Layout("bare", eos=False)).score([Answer("1+2=?\n", "3")])
    assert scores.statuses == ("undefined",)
    assert scores.values_NS[0, 0] == 1 and np.isnan(scores.values_NS[0, 1])
    first = ModelPass(student, [TokenReading(TOKEN_MEASURES)], Layout("bare", eos=False)).score([Answer("", "3")])
    assert first.statuses == ("undefined",) and np.isnan(first.values_NS).all()


def test_states_that_are_not_finite_are_undefined(student, sums):
    broken = FrozenModel(student.name, student.place, "float32")
    with torch.no_grad():
        broken.model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    readings = [*rank_of(), *everything()[:1]]
    readings[0] = SpectralReading(View("all", 2), {"below": "stable_rank"})
    scores = ModelPass(broken, readings, BARE).score(sums)
    assert set(scores.statuses) == {"undefined"}
    assert np.isfinite(scores.column("below")).all()
    assert np.isnan(scores.column("stable_rank_all_False")).all()


@pytest.mark.parametrize("layer", [5, -6, 99])
def test_a_layer_that_is_not_there_is_refused_before_anything_is_loaded(student, layer):
    frozen = FrozenModel(student.name, student.place, "float32")
    with pytest.raises(
        RecipeError, match=rf"layer={layer} is not among the 5 layers of zoo:arith-student; choose -5 to 4"
    ):
        ModelPass(frozen, rank_of(layer=layer), BARE)
    assert "model" not in vars(frozen)


def test_what_nobody_reads_is_not_kept(student, sums):
    def hooks():  # transformers has some of its own
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in student.model.modules())

    before = hooks()
    passing = ModelPass(student, [*rank_of(layer=2), *rank_of(layer=0)], BARE)
    chunk = passing.chunk([passing.encode(sums[0])])
    assert set(chunk.states) == {2, 0} and chunk.predicted is None
    assert hooks() == before


def test_a_text_goes_through_the_model_once_for_all_readings(student, sums):
    rows = []
    handle = student.model.model.register_forward_hook(lambda _, a, output: rows.append(len(output.last_hidden_state)))
    passing = ModelPass(student, everything(), BARE)
    passing.score(sums[:1])  # the head is compared with the model's own once
    rows.clear()
    passing.score([*sums, *sums])
    handle.remove()
    assert sum(rows) == len(sums)


def test_scores_do_not_touch_the_model(student, sums):
    before = copy.deepcopy(student.model.state_dict())
    ModelPass(student, everything(), BARE).score(sums)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in student.model.parameters())
