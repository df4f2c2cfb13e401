"""Reward models: a real body with a head of known weights, against the model's own forward on one row."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stablerank.errors import DataError, ModelError
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.base_spec import Setting
from stablerank.rewards.scorers.learned import BOUND, LearnedReward, RewardModelSpec, load_reward_model
from stablerank.zoo.resolve import resolve

CHAT = "{% for m in messages %}<eos>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
REFUSES = "{{ raise_exception('no turns here') }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The student's body under a head of fixed weights."""
    place = tmp_path_factory.mktemp("reward-model")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(resolve("zoo:arith-student"), num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(resolve("zoo:arith-student")).save_pretrained(place)
    return place


@pytest.fixture
def model(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def own_logit(model, tokenizer, text):
    """What the model itself says of one text, without padding or mask."""
    return model(input_ids=tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids).logits.item()


@pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
def test_scores_are_the_models_own_logits_one_by_one_in_any_batch(folder, model, tokenizer, sums, batch_tokens):
    table = load_reward_model(str(folder), "rm", batch_tokens=batch_tokens).score(sums)
    own = [own_logit(model, tokenizer, f"{answer.prompt}{answer.response}<eos>") for answer in sums]
    assert table.column("rm") == pytest.approx(own, abs=BOUND * max(1, *map(abs, own)))
    assert torch.tensor(own).std() > 0.1, "the texts differ in score"
    assert table.tokens_N.tolist() == [len(tokenizer.tokenize(answer.response)) for answer in sums]


def test_order_and_company_move_nothing_and_equal_texts_tie(folder, sums):
    scorer = load_reward_model(str(folder), "rm", batch_tokens=300)
    table, back = scorer.score([*sums, *sums]), scorer.score(sums[::-1])
    assert (table.values_NS[: len(sums)] == table.values_NS[len(sums) :]).all()
    assert (table.values_NS[: len(sums)] == back.values_NS[::-1]).all()


def test_a_chat_template_is_applied_whole(model, tokenizer):
    tokenizer.chat_template = CHAT
    prompt = [{"role": "user", "content": "1+1=?"}]
    answers = [Answer(prompt, "2"), Answer("1+1=?", "2"), Answer(prompt, "\\boxed{2}")]
    found = LearnedReward(model, tokenizer, "rm").score(answers).values_NS[:, 0]
    texts = [f"<eos>user\n1+1=?\n<eos>assistant\n{response}\n" for response in ("2", "2", "\\boxed{2}")]
    assert found == pytest.approx([own_logit(model, tokenizer, text) for text in texts], abs=1e-4)
    assert found[0] == found[1]


@pytest.mark.parametrize("pad", [None, -1, 10**6])
def test_a_model_without_a_pad_token_of_its_own_is_run_one_row_at_a_time(model, tokenizer, sums, pad):
    model.config.pad_token_id = pad
    with pytest.raises((ValueError, IndexError)):
        ids_BL = tokenizer([answer.response for answer in sums], padding=True, return_tensors="pt").input_ids
        model(input_ids=ids_BL if pad is None else torch.tensor([[5, pad]]))
    found = LearnedReward(model, tokenizer, "rm").score(sums).values_NS[:, 0]
    own = [own_logit(model, tokenizer, f"{answer.prompt}{answer.response}<eos>") for answer in sums]
    assert found == pytest.approx(own, abs=BOUND * max(1, *map(abs, own)))


def test_padding_is_the_models_and_not_the_tokenizers(model, tokenizer, sums):
    """The tokenizer pads with another token, where the model would then read its score."""
    tokenizer.pad_token = "<unk>"
    own = [own_logit(model, tokenizer, f"{answer.prompt}{answer.response}<eos>") for answer in sums]
    found = LearnedReward(model, tokenizer, "rm").score(sums).values_NS[:, 0]
    assert found == pytest.approx(own, abs=BOUND * max(1, *map(abs, own)))
    texts = [f"{answer.prompt}{answer.response}<eos>" for answer in sums]
    with torch.no_grad():
        naive = model(**tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")).logits[:, 0].tolist()
    assert naive != pytest.approx(own, abs=1e-2), "the trap is there"


def test_padding_with_the_end_token_leaves_scores_alone(model, tokenizer, sums):
    model.config.pad_token_id = tokenizer.eos_token_id
    own = [own_logit(model, tokenizer, f"{answer.prompt}{answer.response}<eos>") for answer in sums]
    found = LearnedReward(model, tokenizer, "rm").score(sums).values_NS[:, 0]
    assert found == pytest.approx(own, abs=BOUND * max(1, *map(abs, own)))


def test_the_beginning_that_a_tokenizer_puts_before_a_text_stays_there_once(model, tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    found = LearnedReward(model, tokenizer, "rm").score([Answer("1+1=?\n", "2")]).values_NS[0, 0]
    assert found == pytest.approx(own_logit(model, tokenizer, "<unk>1+1=?\n2<eos>"), abs=1e-4)


def test_what_cannot_be_scored_is_named_and_the_rest_is(folder):
    odd = [Answer("x", ""), Answer("x", None), Answer("x", b"y"), Answer("x", "1" * 300), Answer("x", "1")]
    table = load_reward_model(str(folder), "rm").score(odd)
    assert table.statuses == ("empty", "missing", "not_text", "outside_window", "scored")
    assert [math.isnan(value) for value in table.values_NS[:, 0]] == [True] * 4 + [False]


def test_turns_that_the_template_refuses_are_named(model, tokenizer):
    tokenizer.chat_template = REFUSES
    with pytest.raises(DataError, match=r"refuses the turns user, assistant .*no turns here.*; drop such rows"):
        LearnedReward(model, tokenizer, "rm").score([Answer("x", "y")])


def test_models_that_are_no_reward_models_are_refused(folder, tmp_path):
    with pytest.raises(
        ModelError, match=r"lacks 1 weights of a sequence classifier \(score.weight\), which would be random"
    ):
        load_reward_model("zoo:arith-student", "rm")
    two = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True)
    two.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has 2 outputs, where a reward model has 1"):
        load_reward_model(str(tmp_path), "rm")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"reward model .* (holds no tokenizer|cannot be loaded)"):
        load_reward_model(str(tmp_path), "rm")
    with pytest.raises(ModelError, match="does not exist"):
        load_reward_model(str(tmp_path / "gone"), "rm")


def test_a_spec_builds_it_under_the_name_that_is_asked_for(folder, sums):
    name = f"reward_model:path={folder}"
    scorer = RewardModelSpec(kind="reward_model", path=str(folder)).build(Setting(), name)
    assert scorer.score(sums[:1]).names == (name,)
