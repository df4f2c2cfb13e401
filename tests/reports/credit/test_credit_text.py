"""The credit of one completion on a terminal."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable

from stablerank.reports.credit import CreditGroup, KLTerms
from stablerank.reports.credit_text import WIDTH, text

Make = Callable[..., CreditGroup]


def rows_of(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines()]


def test_every_token_has_its_numbers(make_group: Make) -> None:
    shown = text(make_group(), 0, range(6))
    lines, rows = shown.splitlines(), rows_of(shown)
    assert lines[0].startswith("Credit of 2 completions of one prompt under math_verify, process")
    assert "Recipe recipe.yaml, row 3 of its data." in lines
    assert "Prompt: 1+1=?↵" in lines and "Columns: answer '2'" in lines
    assert ["0", "6", "1", "0.75", "+0.500", "to", "+0.625"] in rows, "the group"
    assert ["1", "3", "none", "0.75", "−0.500", "to", "−0.375"] in rows
    assert ["3", "1", "↵", "yes", "+0.500", "+0.125", "+0.625"] in rows, "the sum, weights included"
    assert ["3", "1", "↵", "yes", "0.75", "+0.250", "+0.250"] in rows, "the step reward"
    assert ["5", "<eos>", "yes", "+0.500", "0", "+0.500"] in rows, "no step"
    assert "math_verify: deposit 1 on token 5, normalised +0.500; every token gets +0.500." in lines


def test_a_single_reward_stands_in_one_table(make_group: Make) -> None:
    shown = text(make_group(parts=make_group().parts[:1]), 0, range(6))
    assert ["5", "<eos>", "yes", "1", "+0.500", "+0.500", "+0.500"] in rows_of(shown)
    assert len(re.findall(r"(?m)^ at +step", shown)) == 1 and "The sum" not in shown
    assert "The sum" in text(make_group(parts=make_group().parts[1:]), 0, range(6)), "its weight is not 1"


def test_a_step_ends_with_a_gap(make_group: Make) -> None:
    lines = text(make_group(), 0, range(6)).splitlines()
    at = next(place for place, line in enumerate(lines) if line.split()[:3] == ["3", "1", "↵"])
    assert lines[at + 1] == "" and lines[at - 1] and lines[at + 2].split()[0] == "4"


def test_a_deposit_of_zero_is_no_silence(make_group: Make) -> None:
    parts = make_group().parts[:1]
    rows = rows_of(text(make_group(parts=parts), 1, range(3)))
    assert ["2", "<eos>", "yes", "0", "−0.500", "−0.500", "−0.500"] in rows
    assert ["1", "1", "↵", "yes", "−0.500", "−0.375"] in rows
    assert "math_verify: deposit 0 on token 2, normalised −0.500;" in text(make_group(), 1, range(3))
    silent = [dataclasses.replace(make_group().parts[0], deposits=[[None] * 6, [None] * 3]), make_group().parts[1]]
    assert "math_verify: no deposit; every token gets" in text(make_group(parts=silent), 1, range(3))


def test_pages_of_tokens(make_group: Make) -> None:
    group = make_group([[str(at) for at in range(300)], ["x"]])
    shown = text(group, 0, range(100, 200))
    assert "Completion 0, tokens 100 to 199 of 300 (--tokens 200:300 shows more)." in shown
    starts = [line[:4].strip() for line in shown.split("Completion 0")[1].splitlines()]
    assert [int(start) for start in starts if start.isdigit()] == 2 * list(range(100, 200))
    assert "shows more" not in text(group, 0, range(200, 300))


def test_what_the_loss_leaves_out_is_said(make_group: Make) -> None:
    shown = text(make_group(in_loss=[[True] * 6, [False] * 3]), 1, range(3))
    assert [row[3] for row in rows_of(shown) if row[1:3] == ["1", "3"]] == 2 * ["no"]


def test_kl_terms_stand_beside_trls(make_group: Make, kl_terms: KLTerms) -> None:
    shown = text(make_group(kl=kl_terms), 0, range(6))
    assert "TRL's loss adds 0.04 k3 a token" in shown
    head = next(line for line in shown.splitlines() if "log policy" in line)
    assert head.split("log reference")[1].split() == ["k1", "k2", "k3", "(TRL)", "S4", "one-sided"]
    assert ["0", "1", "1", "yes", "−0.5", "0", "−0.5", "0", "0", "0"] in [line.split() for line in shown.splitlines()]
    assert "log policy" not in text(make_group(), 0, range(6))


def test_many_rewards_keep_to_the_width(make_group: Make) -> None:
    parts = make_group().parts
    shown = text(make_group(parts=[*parts, *parts, parts[0]]), 0, range(6))
    assert len(re.findall(r"(?m)^ at +step", shown)) == 1 + 2
    assert max(map(len, shown.splitlines())) <= WIDTH


def test_hostile_text_is_harmless(hostile_group: CreditGroup) -> None:
    for index in range(2):
        shown = text(hostile_group, index, range(len(hostile_group.tokens[index])))
        assert {unicodedata.category(character) for character in shown.replace("\n", "")}.isdisjoint(
            {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        )
        assert "[bold·red]markup[/bold·…" in shown, "no markup of rich"
        assert max(map(len, shown.splitlines())) <= WIDTH
        assert "<U+202E>" in shown and "<U+001B>" in shown
