"""The page of a group's credit: complete, escaped, without scripts."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stablerank.reports import credit_html
from stablerank.reports.credit import CreditGroup, KLTerms
from stablerank.reports.credit_html import page, write_credit_page

Make = Callable[..., CreditGroup]
ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "audio", "video", "img", "button", "input"}


class Elements(HTMLParser):
    """Every start tag with its attributes, the text, and the text of each token."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def classed(self, name: str) -> list[dict[str, str | None]]:
        return [found for _, found in self.tags if name in (found.get("class") or "").split()]

    def tokens(self) -> list[dict[str, str | None]]:
        return [found for found in self.classed("token") if found.get("title")]


def test_the_same_group_gives_the_same_bytes(make_group: Make, tmp_path: Path) -> None:
    path = write_credit_page(tmp_path / "new" / "page.html", make_group())
    first = path.read_bytes()
    assert write_credit_page(path, make_group()).read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_every_token_is_there_with_its_numbers(make_group: Make) -> None:
    found = Elements(page(make_group()))
    tokens = found.tokens()
    assert len(tokens) == 9
    assert tokens[3]["title"] == (
        "3: ↵ (id 3), step 1, in the loss\n"
        "math_verify: no deposit, advantage +0.500\n"
        "process: deposit 0.75, normalised +0.250, advantage +0.250\n"
        "final advantage +0.625"
    )
    assert "math_verify: deposit 0, normalised −0.500, advantage −0.500" in str(tokens[8]["title"])
    assert "step" not in str(tokens[5]["title"])
    for sentence in ("Every token gets its share.", "row 3 of its data", "rewards 1, mean 1, deviation 0"):
        assert sentence in found.text


def test_colour_is_the_final_advantage(make_group: Make) -> None:
    found = Elements(page(make_group(advantages=[[0.6, 0.3, 0.0, -0.09, -0.6, 0.05], [0.0] * 3])))
    looks = [str(token["class"]).split()[1] for token in found.tokens()]
    assert looks == ["plus6", "plus3", "nothing", "minus1", "minus6", "plus1", *["nothing"] * 3]
    styles = page(make_group())
    assert all(f".{sign}{level} {{" in styles for sign in ("plus", "minus") for level in range(1, 7))


def test_deposits_steps_and_the_loss_mask_are_visible(make_group: Make) -> None:
    found = Elements(page(make_group(in_loss=[[True] * 6, [False] * 3])))
    marked = [at for at, token in enumerate(found.tokens()) if "deposit" in str(token["class"])]
    assert marked == [3, 5, 7, 8]
    assert ["left-out" in str(token["class"]) for token in found.tokens()] == [False] * 6 + [True] * 3
    assert len(found.classed("ended")) == 2 + 1, "one in the legend"


def test_a_step_is_marked_before_its_line_breaks(make_group: Make) -> None:
    settings: dict[str, Any] = {"steps": [[1, None], [None]], "parts": [], "advantages": [[0.5, 0.5], [0.5]]}
    shown = page(make_group([["a\n\n", "b"], ["\nc"]], **settings))
    assert '>a↵↵</span><span class="ended">1</span>\n\n<span' in shown
    assert ">↵\nc</span>" in shown, "a break inside a token stays there"


def test_strips_show_each_reward_and_the_sum(make_group: Make, kl_terms: KLTerms) -> None:
    found = Elements(page(make_group()))
    labels = [str(attributes["aria-label"]) for tag, attributes in found.tags if tag == "svg"]
    assert [label.split(" of each token")[0] for label in labels] == ["math_verify", "process", "final advantage"] * 2
    assert len(found.classed("mark")) == 4, "a line a deposit"
    bars = [(bar["class"], bar["x"], bar["width"]) for bar in found.classed("up") + found.classed("down")]
    assert bars.count(("up", "0", "6")) == 1 and ("down", "0", "3") in bars, "equal neighbours are one bar"
    with_kl = Elements(page(make_group(kl=kl_terms)))
    assert len([tag for tag, _ in with_kl.tags if tag == "svg"]) == 6 + 8
    assert "S4 one-sided" in with_kl.text and "k3 (TRL) 0" in str(with_kl.tokens()[0]["title"])


def test_nothing_to_credit_is_a_page_too(make_group: Make) -> None:
    calm = make_group()
    zeros = [[0.0] * 6, [0.0] * 3]
    parts = [type(part)(**{**vars(part), "advantages": zeros}) for part in calm.parts]
    found = Elements(page(make_group(advantages=zeros, parts=parts)))
    assert {str(token["class"]).split()[1] for token in found.tokens()} == {"nothing"}
    assert not found.classed("up") and not found.classed("down")


def test_hostile_text_is_text_wherever_it_stands(hostile_group: CreditGroup) -> None:
    found = Elements(page(hostile_group))
    assert not {tag for tag, _ in found.tags} & ACTIVE
    assert [attributes.get("id") for tag, attributes in found.tags if tag == "h1"] == [None]
    assert found.text.count("<script>document.title='owned'</script>") >= 5
    assert "{{7*7}}" in found.text and "[bold red]" in found.text
    unseen = set("\x00\x1b\x07\u202e\u202c\u200b\u2066\u2069\u2028\r")
    assert not set(found.text) & unseen
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert not set("".join(map(str, attributes.values()))) & unseen
    policy = next(found["content"] for _, found in found.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_a_runaway_completion_is_cut_and_that_is_said(make_group: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credit_html, "LONGEST_COMPLETION", 4)
    found = Elements(page(make_group()))
    assert len(found.tokens()) == 4 + 3
    assert "2 more tokens" in found.text
