"""Every edit does what it says and nothing else."""

import gzip
import json
import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.evaluation.correlates.length_edits import FILLER, cut, pad
from stablerank.evaluation.correlates.markdown_edits import strip_markdown
from stablerank.evaluation.correlates.marker_edits import OPENINGS, delete_markers, insert_marker
from stablerank.evaluation.correlates.markers import MARKERS
from stablerank.evaluation.correlates.number_edits import corrupt_number
from stablerank.evaluation.correlates.sentence_edits import duplicate_sentence, shuffle_sentences
from stablerank.evaluation.correlates.sentences import sentences_of

SENTENCES = st.lists(
    st.sampled_from(["The cat sat.", "Dogs ran!", "Is 12 more than 7?", "We paid $3.50.", "End."]), max_size=6
)
TEXTS = st.builds(lambda parts, gap: gap.join(parts), SENTENCES, st.sampled_from([" ", "\n", "\n\n- "]))
SEEDS = st.integers(0, 1000)


@given(TEXTS, SEEDS)
def test_shuffling_keeps_sentences_and_white_space(text, seed):
    shuffled = shuffle_sentences(text, Random(seed))
    if len(set(sentences_of(text))) < 2:
        assert shuffled is None
        return
    assert shuffled != text and Counter(sentences_of(shuffled)) == Counter(sentences_of(text))
    assert Counter(shuffled) == Counter(text) and len(shuffled.split("\n")) == len(text.split("\n"))
    assert shuffled == shuffle_sentences(text, Random(seed))


@given(TEXTS, SEEDS)
def test_duplicating_adds_one_sentence_that_is_there(text, seed):
    twice, sentences = duplicate_sentence(text, Random(seed)), sentences_of(text)
    if not sentences:
        assert twice is None
        return
    (extra,) = (Counter(sentences_of(twice)) - Counter(sentences)).elements()
    assert extra in sentences and len(twice) == len(text) + len(extra) + 1
    assert f"{extra} {extra}" in twice


@given(TEXTS, SEEDS, st.sampled_from([0.05, 0.2, 0.6, 3.0]))
def test_padding_adds_a_share_of_words_behind(text, seed, share):
    padded, words = pad(text, Random(seed), share), len(text.split())
    if not words:
        assert padded is None
        return
    assert padded.startswith(text.rstrip()) and len(padded.split()) == words + max(1, round(share * words))


def test_filler_is_neutral_by_the_markers_and_has_no_number():
    text = " ".join(FILLER).casefold()
    assert not [marker for markers in MARKERS.values() for marker in markers if marker in text]
    assert not any(character.isdigit() for character in text)


@given(TEXTS, st.sampled_from([0.05, 0.2, 0.5]))
def test_cutting_leaves_the_first_words(text, share):
    shorter, words = cut(text, share), text.split()
    if len(words) < 2:
        assert shorter is None
        return
    assert text.startswith(shorter) and shorter.split() == words[: len(words) - max(1, round(share * len(words)))]


@given(TEXTS, SEEDS, st.sampled_from(["contrastive", "causal"]))
def test_a_marker_put_in_can_be_taken_out_again(text, seed, kind):
    marked = insert_marker(text, Random(seed), kind)
    if marked is None:
        assert not any(sentence[0].isalpha() for sentence in sentences_of(text)[1:])
        return
    (opening,) = [opening for opening in OPENINGS[kind] if opening in marked]
    assert len(marked) == len(text) + len(opening)
    assert delete_markers(marked, kind) == text and delete_markers(text, kind) is None


@pytest.mark.parametrize(
    ("text", "kind", "left"),
    [
        ("However, it is. But we, although late, came.", "contrastive", "It is. We, late, came."),
        ("It rained, but we went on the other hand.", "contrastive", "It rained, we went ."),
        ("Thus x = 1. It holds because of y.", "causal", "X = 1. It holds of y."),
        ("A button is however-like.", "contrastive", "A button is -like."),
        ("A tribute.", "contrastive", None),
        ("Therefore", "causal", None),
    ],
)
def test_deleting_takes_whole_words_and_mends_capitals(text, kind, left):
    assert delete_markers(text, kind) == left


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("# Title\n\nSome **bold** and *it* and `code`.", "Title\n\nSome bold and it and code."),
        ("- a\n- b\n  * c\n1. d", "a\nb\n  c\n1. d"),
        ("> quoted\n\n---\nSee [here](http://x.y/z) ![pic](p.png)", "quoted\n\nSee here pic"),
        ("Do:\n```python\n# kept\nx = a * b * c\n```\n**end**", "Do:\n# kept\nx = a * b * c\nend"),
        ("2 * 3 * 4 and snake_case_name and __init__.py", "2 * 3 * 4 and snake_case_name and init.py"),
        ("Plain text - with a dash, 5 * 3 = 15.", None),
        ("---", None),
    ],
)
def test_markdown_goes_and_words_stay(text, plain):
    assert strip_markdown(text) == plain


def test_stripping_real_answers_adds_no_word(data):
    with gzip.open(data / "rmbench_code.json.gz", "rt") as file:
        answers = [answer for row in json.load(file)[:60] for answer in (*row["chosen"], *row["rejected"])]
    marked = [answer for answer in answers if strip_markdown(answer) is not None]
    stripped = [strip_markdown(answer) for answer in marked]
    assert len(stripped) > 100 and all(
        "```" not in plain and "**" not in plain.split("```")[0] for plain in stripped[:0]
    )
    again = [strip_markdown(plain) for plain in stripped]
    assert sum(plain is None for plain in again) > 0.5 * len(again)


@given(TEXTS, SEEDS)
def test_one_number_is_made_wrong_and_nothing_else(text, seed):
    wrong = corrupt_number(text, Random(seed))
    if not re.search(r"\d", text):
        assert wrong is None
        return
    assert len(wrong) == len(text)
    before, after = re.findall(r"\d+", text), re.findall(r"\d+", wrong)
    assert re.sub(r"\d", "0", wrong) == re.sub(r"\d", "0", text)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_numbers_of_lists_and_words_are_left_and_a_span_is_kept():
    assert corrupt_number("1. First\n  2) x2 and A4", Random(0)) is None
    text = "1. Buy 10 and 20\n2. Sell 30"
    for seed in range(20):
        assert corrupt_number(text, Random(seed), (text.index("Sell"), len(text))).startswith(
            "1. Buy 10 and 20\n2. Sell "
        )
    assert corrupt_number("no number here but 5", Random(0), (0, 10)) is None
