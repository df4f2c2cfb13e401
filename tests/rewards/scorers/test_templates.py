import copy
from typing import get_args

import numpy as np
import pytest
from tokenizers.processors import ByteLevel, TemplateProcessing

from stablerank.errors import DataError, ModelError
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.templates import TEXTS, Encoder, Layout, Template, readable

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello, hello."},
    {"role": "user", "content": "The capital of France?"},
]


def said(encoder, tokens):
    """The text of the response's tokens, and that of the others."""
    ids, mask = np.array(tokens.ids), tokens.response_L
    return encoder.tokenizer.decode(ids[mask]), encoder.tokenizer.decode(ids[~mask])


@pytest.mark.parametrize("prompt", ["The capital of France?", TALK])
def test_chat_is_the_tokenizers_own_template_up_to_the_end_token(smollm2, prompt):
    tokens = Encoder(smollm2.tokenizer, Layout())(Answer(prompt, "Paris, of course."))
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked = smollm2.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = smollm2.tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": "Paris, of course."}], return_dict=True
    )["input_ids"]
    last = len(whole) - whole[::-1].index(smollm2.tokenizer.eos_token_id)
    assert list(tokens.ids) == whole[:last]
    assert list(tokens.response) == [False] * len(asked) + [True] * (last - len(asked))


def test_without_eos_the_text_stops_with_the_response(smollm2):
    closed, open_ = (Encoder(smollm2.tokenizer, Layout(eos=eos))(Answer("Hi?", "Hello.")) for eos in (True, False))
    assert closed.ids == (*open_.ids, smollm2.tokenizer.eos_token_id)
    assert closed.response == (*open_.response, True)


@pytest.mark.parametrize(
    ("eos", "expected"), [(True, "Hello, hello.<|im_end|>Paris<|im_end|>"), (False, "Hello, hello.Paris")]
)
def test_all_turns_count_what_the_assistant_said_before(smollm2, eos, expected):
    encoder = Encoder(smollm2.tokenizer, Layout(turns="all", eos=eos))
    assert said(encoder, encoder(Answer(TALK, "Paris")))[0] == expected
    last = Encoder(smollm2.tokenizer, Layout(eos=eos))
    assert said(last, last(Answer(TALK, "Paris")))[0] == expected.removeprefix("Hello, hello.").removeprefix(
        "<|im_end|>"
    )


def test_the_response_is_found_where_the_prompt_says_the_same(smollm2):
    """Not by searching: the words of the response also stand in the template, the prompt and an earlier turn."""
    encoder = Encoder(smollm2.tokenizer, Layout())
    talk = [{"role": "user", "content": "assistant"}, {"role": "assistant", "content": "assistant"}]
    tokens = encoder(Answer([*talk, {"role": "user", "content": "assistant"}], "assistant"))
    assert said(encoder, tokens)[0] == "assistant<|im_end|>"
    assert sum(np.diff([False, *tokens.response]) != 0) == 1


def test_messages_of_typed_parts_are_their_text(smollm2):
    encoder = Encoder(smollm2.tokenizer, Layout())
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]}]
    assert encoder(Answer(parts, "Yo")) == encoder(Answer("Hi?", "Yo"))


@pytest.mark.parametrize("template", TEXTS)
@pytest.mark.parametrize("response", ["Paris it is.", " Paris", "\n\nParis \n", "Café 😀 naïve", "x"])
def test_text_templates_are_the_text_that_they_say(smollm2, stories, template, response):
    before, between = TEXTS[template]
    for tokenizer in (smollm2.tokenizer, stories.tokenizer):
        encoder = Encoder(tokenizer, Layout(template, eos=False, bos=False))
        tokens = encoder(Answer("Hi?", response))
        text = f"{before}Hi?{between}{response}"
        assert list(tokens.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
        # A token that straddles prompt and response is the response's; nothing else of the prompt is.
        read, rest = said(encoder, tokens)
        assert response.strip() in read
        assert f"{before}Hi?".startswith(rest.strip()[:3])
        assert len(read.strip()) <= len(response.strip()) + len(between)
        first = tokens.response.index(True)
        assert all(tokens.response[first:])


def test_a_token_across_the_border_is_the_responses(smollm2):
    """Two line breaks of the template and one of the response are one token here."""
    encoder = Encoder(smollm2.tokenizer, Layout("plain", eos=False))
    tokens = encoder(Answer("a", "\n\nb"))
    assert [smollm2.tokenizer.decode([token]) for token in tokens.ids] == ["a", "\n\n\n", "\n", "b"]
    assert tokens.response == (False, True, True, True)


@pytest.mark.parametrize("trim", [False, True])
def test_a_token_of_spaces_alone_counts_where_it_stands(smollm2, trim):
    """Also where the tokenizer leaves spaces out of its offsets, as GPT-2's does."""
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=trim)
    tokens = Encoder(tokenizer, Layout("bare", eos=False))(Answer("a\n", "b  \n    \n  c  "))
    assert tokens.response[:2] == (False, False)
    assert all(tokens.response[2:])


def test_beginning_and_end_are_the_tokenizers(stories):
    tokenizer = copy.deepcopy(stories.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokenizer("Once")["input_ids"][0] == 1, "this tokenizer begins its texts"
    tokens = Encoder(tokenizer, Layout("plain"))(Answer("Once", "upon"))
    assert tokens.ids[0] == 1 and tokens.ids[-1] == tokenizer.eos_token_id
    assert (tokens.response[0], tokens.response[-1]) == (False, True)
    assert Encoder(tokenizer, Layout("plain", bos=False))(Answer("Once", "upon")).ids == tokens.ids[1:]
    assert Encoder(tokenizer, Layout("plain", eos=False))(Answer("Once", "upon")).ids == tokens.ids[:-1]


@pytest.mark.parametrize("window", [1, 5, 12, 512])
def test_the_window_is_the_first_or_the_last_tokens_of_everything(smollm2, window):
    answer = Answer("Hi?", "Hello to you too, my friend.")
    whole = Encoder(smollm2.tokenizer, Layout())(answer)
    first = Encoder(smollm2.tokenizer, Layout(window=window))(answer)
    last = Encoder(smollm2.tokenizer, Layout(window=window, truncate="left"))(answer)
    assert (first.ids, first.response) == (whole.ids[:window], whole.response[:window])
    assert (last.ids, last.response) == (whole.ids[-window:], whole.response[-window:])


def test_a_window_ends_with_the_models_context(student):
    tokens = Encoder(student.tokenizer, Layout("bare"), context=student.context)(Answer("1" * 300, "2"))
    assert len(tokens.ids) == student.context == 256
    assert not any(tokens.response)


def test_a_model_without_a_chat_template_names_the_others(student):
    with pytest.raises(
        ModelError, match=r"^zoo:arith-student has no chat template; choose another template: plain, re"
    ):
        Encoder(student.tokenizer, Layout(), student.name)
    assert {"chat", *TEXTS} == set(get_args(Template))


def with_template(tokenizer, template):
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


def test_a_template_without_end_tokens_is_closed_by_the_tokenizers(smollm2):
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    encoder = Encoder(with_template(smollm2.tokenizer, plain), Layout())
    assert said(encoder, encoder(Answer("Hi?", "Yo"))) == (" Yo<|im_end|>", "user: Hi?\nassistant:")


def test_turns_that_a_template_refuses_or_hides_are_named(smollm2):
    refusing = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    strict = "{% for m in messages %}" + refusing + "{{ m.content }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"refuses the turns system, user, assistant, user, assistant \(no system\); drop"
    ):
        Encoder(with_template(smollm2.tokenizer, strict), Layout())(Answer(TALK, "Paris"))
    hiding = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ModelError, match="does not show each of 5 turns once, in order; choose another template"):
        Encoder(with_template(smollm2.tokenizer, hiding), Layout())(Answer(TALK, "Paris"))


def test_a_tokenizer_without_offsets_is_refused(smollm2):
    slow = type("Slow", (), {"is_fast": False, "chat_template": None})()
    with pytest.raises(ModelError, match="the tokenizer of x gives no offsets; save it as a fast one"):
        Encoder(slow, Layout("plain"), "x")


def test_what_is_readable():
    assert [readable(Answer(prompt, "a")) for prompt in ("", TALK, [], None, 3, ["a"], [{"content": "a"}])] == [
        *["scored"] * 3,
        *["not_text"] * 4,
    ]
    assert [readable(Answer("a", response)) for response in (None, 3, " \n", "b")] == [
        *("missing", "not_text", "empty", "scored")
    ]
    half, user = "\ud83d", {"role": "user"}
    prompts = ([{**user, "content": 5}], [{**user, "content": [5]}], [{**user, "content": half}], half)
    assert [readable(Answer(prompt, "a")) for prompt in prompts] == ["not_text"] * 4
    parts = [{**user, "content": [{"type": "text", "text": "a"}]}]
    assert [readable(Answer("a", half)), readable(Answer(parts, "a"))] == ["not_text", "scored"]
