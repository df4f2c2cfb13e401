import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.evaluation.correlates.sentences import sentence_spans, sentences_of, tokens_of, words_of

TEXTS = st.text(alphabet=st.sampled_from("ab Z1.!?\n\"')(-*`é "), max_size=60)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Stop!" and left. So.', ['He said "Stop!"', "and left.", "So."]),
        ("It costs $3.50 or 1,000. Done", ["It costs $3.50 or 1,000.", "Done"]),
        ("Dr. Smith, e.g. J. Doe (see Fig. 2). End", ["Dr. Smith, e.g. J. Doe (see Fig. 2).", "End"]),
        ("1. First. Then\n2. Second", ["1. First.", "Then", "2. Second"]),
        ("```\nx = 1\n```\n---\nend", ["x = 1", "end"]),
        ("", []),
        (" \n ... \n", []),
    ],
)
def test_sentences_end_where_the_rule_says(text, sentences):
    assert sentences_of(text) == sentences


@given(TEXTS)
def test_spans_are_in_order_and_leave_out_nothing_with_a_letter(text):
    spans, last = sentence_spans(text), 0
    for start, end in spans:
        assert not any(character.isalnum() for character in text[last:start])
        assert last <= start < end and text[start:end] == text[start:end].strip()
        assert any(character.isalnum() for character in text[start:end]) and "\n" not in text[start:end]
        last = end
    assert not any(character.isalnum() for character in text[last:])


@given(TEXTS)
def test_tokens_and_words_leave_out_white_space_only(text):
    assert "".join(tokens_of(text)) == "".join(text.casefold().split())
    assert all(word.replace("'", "").isalpha() for word in words_of(text))


def test_tokens_and_words():
    assert tokens_of("Don't pay $3.50, x_1!") == ["don", "'", "t", "pay", "$", "3", ".", "50", ",", "x", "_", "1", "!"]
    assert words_of("Don't pay $3.50, x_1!") == ["don't", "pay", "x"]
