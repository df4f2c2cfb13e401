import gzip
import json
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from stablerank.rewards.process.segmentation import Segmenter, Step
from stablerank.tasks.files import data_folder

ASCII = st.sampled_from([*"abc 0123+=.", "So", "\n", "\n\n", "\n\n\n", ".\n\n", "\n- ", " \n"])
ANY = st.one_of(ASCII, st.sampled_from(["é", "数学", "😀", "ки"]))


def pieces_of(text, separator):
    """Start and end of every piece, and the end of its separator; the last piece has none."""
    start = 0
    for piece in text.split(separator):
        yield start, start + len(piece), start + len(piece) + len(separator)
        start += len(piece) + len(separator)


def steps_by_offsets(tokenizer, text, separator):
    """From the offsets of the encoding, which the segmentation never sees; the closing of a last piece is None."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoded.offset_mapping]
    found = []
    for start, stop, after in pieces_of(text, separator):
        if text[start:stop].strip():
            closing = next(at for at, end in enumerate(ends) if end >= after) if after <= len(text) else None
            found.append((start, stop, closing))
    groups = [list(group) for _, group in groupby(found, key=lambda piece: piece[2])]
    return encoded.input_ids, [(text[group[0][0] : group[-1][1]].strip(), group[0][2]) for group in groups]


@pytest.mark.parametrize("separator", ["\n", "\n\n", "."])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_steps_close_where_the_encoding_puts_their_separators(any_tokenizer, separator, data):
    letters = ASCII if len(any_tokenizer) < 128 else ANY
    text = "".join(data.draw(st.lists(letters, max_size=40)))
    ids, expected = steps_by_offsets(any_tokenizer, text, separator)
    split = Segmenter(any_tokenizer, separator)

    cut = split(ids)
    unfinished = bool(expected) and expected[-1][1] is None
    assert [(step.text, step.closing) for step in cut.steps] == expected[: len(expected) - unfinished]
    assert cut.is_truncated == unfinished

    ended = split([*ids, any_tokenizer.eos_token_id])
    whole = [(text, len(ids) if closing is None else closing) for text, closing in expected]
    assert [(step.text, step.closing) for step in ended.steps] == whole
    assert not ended.is_truncated


def test_merged_separators_close_on_the_token_that_holds_them(pieces):
    tokenizer = pieces("a", ".\n\n", "\nSo", " b")
    found = Segmenter(tokenizer)([1, 2, 1, 3, 4, 0])
    assert found.steps == (Step("a.", 1), Step("a", 3), Step("So b", 5))


def test_steps_that_one_token_closes_are_one_step(pieces):
    tokenizer = pieces("a", "\n-\n", "b", "\n")
    assert Segmenter(tokenizer)([1, 2, 3, 4]).steps == (Step("a\n-", 1), Step("b", 3))


def test_blank_steps_are_none(pieces):
    tokenizer = pieces("a", "\n", "\n\n\n", "  ")
    found = Segmenter(tokenizer)([3, 1, 2, 4, 2, 3, 1, 2, 4, 0])
    assert found.steps == (Step("a", 2), Step("a", 7))


def test_a_wider_separator_leaves_single_line_breaks_inside(pieces):
    tokenizer = pieces("a", "\n", "b")
    found = Segmenter(tokenizer, "\n\n")([1, 2, 3, 2, 2, 2, 3, 0])
    assert found.steps == (Step("a\nb", 4), Step("b", 7))


@pytest.mark.parametrize(
    ("ids", "closings", "is_truncated"),
    [
        ([], [], False),
        ([0], [], False),
        ([2, 2, 0], [], False),
        ([2, 2], [], False),
        ([1], [], True),
        ([1, 0], [1], False),
        ([1, 2], [1], False),
        ([1, 2, 0], [1], False),
        ([1, 2, 1], [1], True),
        ([1, 2, 1, 0], [1, 3], False),
        ([1, 2, 2], [1], False),
    ],
)
def test_the_end_token_closes_and_the_length_limit_does_not(pieces, ids, closings, is_truncated):
    found = Segmenter(pieces("a", "\n"))(ids)
    assert [step.closing for step in found.steps] == closings
    assert found.is_truncated == is_truncated


def test_special_tokens_say_nothing_named_or_not(pieces):
    tokenizer = pieces("a", "\n", "b")
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<think>", special=False)])
    turn, think = tokenizer.convert_tokens_to_ids(["<|eot|>", "<think>"])
    assert turn not in tokenizer.all_special_ids
    found = Segmenter(tokenizer)([turn, 1, turn, 3, 2, think, turn])
    assert found.steps == (Step("ab", 4), Step("<think>", 6))


@pytest.mark.data
def test_every_step_of_real_solutions_meets_its_tokens(any_tokenizer):
    file = data_folder() / "processbench_gsm8k.json.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {data_folder()}: set STABLERANK_DATA to the folder of real data")
    split, count = Segmenter(any_tokenizer, "\n\n"), 0
    for row in json.loads(gzip.decompress(file.read_bytes()))[:100]:
        # The character tokenizer says nothing outside ASCII.
        steps = [step.strip().encode("ascii", "ignore").decode() for step in row["steps"]]
        ids, expected = steps_by_offsets(any_tokenizer, "\n\n".join(steps), "\n\n")
        found = split([*ids, any_tokenizer.eos_token_id]).steps
        assert [step.text for step in found] == steps
        assert [step.closing for step in found[:-1]] == [closing for _, closing in expected[:-1]]
        count += len(found)
    assert count > 400
