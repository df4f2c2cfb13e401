"""Numbers and foreign text as people read them."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.reports import words
from stablerank.reports.read import Score


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.62, "0.6 s"), (48.2, "48 s"), (59.7, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"),
        (math.nan, words.MISSING),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_gain_always_shows_its_sign() -> None:
    score = Score(0.289, -0.01, 0.3, 500)
    assert words.points(score) == "+28.9 points"
    assert words.points_interval(score) == "\u22121.0 to +30.0"


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\r", "\x7f", "\x9b", "\u200b", "\u202e", "\u2028", "\ud800"])
def test_characters_that_hide_or_reorder_are_shown_by_code_point(character: str) -> None:
    assert words.visible(character) == f"<U+{ord(character):04X}>"


@given(st.text())
def test_plain_text_is_one_line_of_printable_characters(text: str) -> None:
    plain = words.plain(text)
    assert "\n" not in plain
    assert not {unicodedata.category(c) for c in plain} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert words.plain(text) == text
