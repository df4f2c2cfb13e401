"""Credit as data and in words."""

import json
from collections.abc import Callable

import pytest

from stablerank.reports import credit
from stablerank.reports.credit import CreditGroup

Make = Callable[..., CreditGroup]


def test_json_is_strict_and_whole(make_group: Make) -> None:
    group = make_group(advantages=[[float("nan")] * 6, [float("inf")] * 3])
    plain = json.loads(json.dumps(group.to_json(), allow_nan=False))
    assert plain["advantages"] == [[None] * 6, [None] * 3]
    assert plain["parts"][0]["deposits"] == [[None] * 5 + [1.0], [None] * 2 + [0.0]]
    assert plain["parts"][0]["rewards"] == [1.0, None]
    assert plain["tokens"][0] == ["1", "+", "1", "\n", "2", "<eos>"]
    assert plain["steps"] == [[1, 1, 1, 1, None, None], [1, 1, None]]


def test_the_most_credited_completion_is_the_largest_by_size(make_group: Make) -> None:
    assert make_group().most_credited == 0
    assert make_group(advantages=[[0.1] * 6, [0.0, -0.2, 0.0]]).most_credited == 1
    assert make_group(advantages=[[0.2] * 6, [0.2] * 3]).most_credited == 0


def test_where_steps_end(make_group: Make) -> None:
    group = make_group([["a", "\n", "b", "\n"], ["c"]])
    assert [group.ends_step(0, at) for at in range(4)] == [False, True, False, True]
    assert not group.ends_step(1, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("\n\n", "↵↵"),
        ("\t", "⇥"),
        ("\x1b[31m", "<U+001B>[31m"),
        ("\u202e", "<U+202E>"),
        ("\u200b", "<U+200B>"),
        ("é", "é"),
    ],
)
def test_tokens_are_visible_and_on_one_line(text: str, shown: str) -> None:
    assert credit.visible_token(text) == shown


def test_numbers() -> None:
    assert credit.signed(-0.0004) == credit.signed(0.0) == "0"
    assert (credit.signed(0.5), credit.signed(-1.25), credit.signed(None)) == ("+0.500", "\u22121.250", "")
    assert credit.extent([0.5, 0.5]) == "+0.500" and credit.extent([-1.0, 0.5]) == "\u22121.000 to +0.500"
    assert credit.spread([]) == "none" and credit.spread([2.0]) == "1, mean 2, deviation 0"
    assert credit.spread([1.0, 3.0]) == "2, mean 2, deviation 1.414"
    assert credit.reward_shown(None) == "none" and credit.reward_shown(0.0) == "0"


def test_a_part_in_words(make_group: Make) -> None:
    assert credit.part_facts(make_group().parts[0]) == (
        "math_verify: trajectory reward, weight 1. Every token gets its share. Counted: parse failures 1."
    )
