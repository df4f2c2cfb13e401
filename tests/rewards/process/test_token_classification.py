import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForTokenClassification

from stablerank.errors import RewardError
from stablerank.rewards.process.scoring import Limits
from stablerank.rewards.process.token_classification import TokenClassification

BOUND = 1e-5
QUESTIONS = ["3+4=?", "(3+4)*2=?", "é?"]
STEPS = [["3+4=7", "so 7"], ["3+4=7", "7*2=14", "14"], ["é"]]


@pytest.fixture(scope="module")
def classifier(byte_bpe):
    def build(labels=2):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_labels": labels}
        config = Qwen3Config(vocab_size=len(byte_bpe), max_position_embeddings=128, **sizes, **heads)
        return Qwen3ForTokenClassification(config).eval()

    return build


def trl_row(tokenizer, question, steps, separator):
    """Ids and labels as TRL's ``PRMTrainer`` made them of a row whose steps are all right."""
    separator_ids = tokenizer.encode(separator, add_special_tokens=False)
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    labels = [-100] * len(ids)
    for step in steps:
        completion = tokenizer(step, add_special_tokens=False)["input_ids"] + separator_ids
        ids, labels = ids + completion, labels + [-100] * (len(completion) - 1) + [1]
    if tokenizer.bos_token_id is not None:
        ids, labels = [tokenizer.bos_token_id, *ids], [-100, *labels]
    return ids, labels


@given(
    question=st.text(max_size=10),
    steps=st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=5),
    separator=st.sampled_from(["\n", "\n\n", "é"]),
    begins=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_input_is_that_of_trl(classifier_of, byte_bpe, question, steps, separator, begins):
    byte_bpe.bos_token = "<eos>" if begins else None
    marked = classifier_of(separator).layout(question, steps)
    ids, labels = trl_row(byte_bpe, question, steps, separator)
    assert (marked.ids, marked.marks) == (ids, [at for at, label in enumerate(labels) if label == 1])
    byte_bpe.bos_token = None


@pytest.fixture(scope="module")
def classifier_of(classifier, byte_bpe):
    model = classifier()
    return lambda separator="\n", batch_size=8: TokenClassification(model, byte_bpe, Limits(batch_size, 128), separator)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_those_of_a_plain_forward_a_solution(classifier_of, classifier, byte_bpe, batch_size):
    scores = classifier_of("\n", batch_size).score(QUESTIONS, STEPS)
    for question, steps, found in zip(QUESTIONS, STEPS, scores, strict=True):
        ids, labels = trl_row(byte_bpe, question, steps, "\n")
        with torch.no_grad():
            right = classifier()(input_ids=torch.tensor([ids])).logits[0].softmax(-1)[:, 1]
        assert found == pytest.approx(right[torch.tensor(labels) == 1].tolist(), abs=BOUND)


def test_another_number_of_labels_is_refused(classifier, byte_bpe):
    with pytest.raises(RewardError, match=r"has 3 labels, where 2 is right \(0 wrong, 1 right\)"):
        TokenClassification(classifier(3), byte_bpe, Limits(8, 128))


def test_a_separator_that_the_tokenizer_cannot_spell_is_refused(classifier, characters):
    with pytest.raises(RewardError, match=r"no token for reward\.prm_separator 'é'"):
        TokenClassification(classifier(), characters, Limits(8, 128), "é")
