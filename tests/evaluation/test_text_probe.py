"""The loss of other texts, against transformers' own of one text at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import DataError
from stablerank.evaluation.text_probe import TextProbe
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
ROWS = [{"prompt": "12+7=?\n", "completion": "19"}, {"prompt": "3*4+5=?\n", "completion": "3*4=12\n12+5=17"}]
TEXTS = [{"text": "12+7=?\n19"}, {"text": "3*4+5=?\n3*4=12"}]


@pytest.fixture(scope="module")
def student():
    return AutoModelForCausalLM.from_pretrained(resolve(STUDENT))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve(STUDENT))


def plain_loss(model, examples):
    """Nats a token of ids whose first ``read`` are not counted."""
    nats, tokens = 0.0, 0
    for ids, read in examples:
        ids_1L = torch.tensor([ids])
        labels_1L = ids_1L.clone()
        labels_1L[:, :read] = -100
        counted = int((labels_1L[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += float(model(input_ids=ids_1L, labels=labels_1L).loss) * counted
        tokens += counted
    return nats / tokens


def test_of_prompts_the_completion_counts(student, tokenizer):
    found = TextProbe(tokenizer, ROWS, 128, 2).loss(student)
    asked = [tokenizer(row["prompt"]).input_ids for row in ROWS]
    answers = [tokenizer(row["completion"] + tokenizer.eos_token, add_special_tokens=False).input_ids for row in ROWS]
    examples = [(prompt + answer, len(prompt)) for prompt, answer in zip(asked, answers, strict=True)]
    assert found.value == pytest.approx(plain_loss(student, examples), rel=1e-5)
    assert found.problems == 2


def test_of_texts_all_but_the_first_token_counts(student, tokenizer):
    found = TextProbe(tokenizer, TEXTS, 128, 1).loss(student)
    assert found.value == pytest.approx(
        plain_loss(student, [(tokenizer(r["text"]).input_ids, 0) for r in TEXTS]), rel=1e-5
    )


def test_messages_go_through_the_chat_template(student, tokenizer):
    chat = AutoTokenizer.from_pretrained(resolve(STUDENT))
    chat.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    rows = [{"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "=2"}]}]
    ids = chat("1+1=2", add_special_tokens=False).input_ids
    found = TextProbe(chat, rows, 128, 1).loss(student)
    assert found.value == pytest.approx(plain_loss(student, [(ids, len(ids) - 1)]), rel=1e-5)


def test_texts_that_leave_nothing_to_predict_are_refused(tokenizer):
    with pytest.raises(DataError, match="none of 2 texts of evaluation"):
        TextProbe(tokenizer, ROWS, 3, 2)
