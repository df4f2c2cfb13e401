import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.rewards.process.offsets import LONGEST_CHARACTER, UNFINISHED, token_ends

ASCII = st.sampled_from([*map(chr, range(32, 127)), "\n", "\n\n", ".\n\n", "\nSo"])
ANY = st.one_of(ASCII, st.sampled_from(["é", "ж", "数学", "😀", "👩‍🔬", "e\u0301", "ки", "\t", "\r\n", "  "]))


def decoder(tokenizer):
    return lambda window: tokenizer.decode(list(window), clean_up_tokenization_spaces=False)


def ends_of_prefixes(ids, decode):
    """Quadratic, by the definition: what is settled once a token is there, and stays so."""
    return list(accumulate((len(decode(ids[: at + 1]).rstrip(UNFINISHED)) for at in range(len(ids))), max))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_ends_are_those_of_decoding_every_prefix(any_tokenizer, data):
    letters = ASCII if len(any_tokenizer) < 128 else ANY
    text = "".join(data.draw(st.lists(letters, max_size=60)))
    ids, decode = tuple(any_tokenizer(text, add_special_tokens=False).input_ids), decoder(any_tokenizer)
    found, ends = token_ends(ids, decode)
    assert found == decode(ids) == text
    assert ends == ends_of_prefixes(ids, decode)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_sampled_ids_break_it_and_no_newline_is_lost(byte_bpe, data):
    ids = tuple(data.draw(st.lists(st.integers(2, len(byte_bpe) - 1), max_size=40)))
    found, ends = token_ends(ids, decoder(byte_bpe))
    assert ends == sorted(ends) and (not ids or ends[-1] == len(found))
    starts = [0, *ends][:-1]
    for token, start, end in zip(ids, starts, ends, strict=True):
        # In the vocabulary of byte-level BPE, Ċ is the byte 10.
        assert found[start:end].count("\n") == byte_bpe.convert_ids_to_tokens(token).count("Ċ")


def test_a_character_belongs_to_the_token_that_completes_it(byte_bpe):
    ids = tuple(byte_bpe("1é\n").input_ids)
    assert [byte_bpe.convert_ids_to_tokens(token) for token in ids] == ["1", "Ã", "©", "Ċ"]
    assert token_ends(ids, decoder(byte_bpe)) == ("1é\n", [1, 1, 2, 3])


def test_the_space_before_a_word_is_kept(any_tokenizer):
    ids = tuple(any_tokenizer("1 + 2  = 3").input_ids)
    assert token_ends(ids, decoder(any_tokenizer))[0] == "1 + 2  = 3"


@pytest.mark.data
def test_an_id_without_a_token_does_not_take_the_space_behind_it(stories):
    # Embeddings are often padded, so a policy can sample ids that its tokenizer does not have.
    first, second = (stories(word, add_special_tokens=False).input_ids for word in ("a", "b"))
    ids = (*first, len(stories) + 7, *second)
    text, ends = token_ends(ids, decoder(stories))
    assert text == "a b" and ends[len(first)] == 1


@pytest.mark.parametrize("kind", ["text", "no text", "mixed", "no token"])
def test_the_cost_is_linear(byte_bpe, kind):
    rng, decode, decoded = random.Random(0), decoder(byte_bpe), []
    broken = byte_bpe.convert_tokens_to_ids("ÿ")
    ids = {
        "text": byte_bpe("So 7 * 2 = 14.\n" * 200).input_ids,
        "no text": [broken] * 2000,
        "no token": [len(byte_bpe) + 7] * 2000,
        "mixed": [rng.randrange(2, len(byte_bpe)) for _ in range(2000)],
    }[kind]
    token_ends(tuple(ids), lambda window: decoded.append(len(window)) or decode(window))
    assert sum(decoded) <= 3 * LONGEST_CHARACTER * len(ids)


def test_nothing():
    assert token_ends((), lambda window: pytest.fail("nothing to decode")) == ("", [])
