"""The paper: it builds in both forms, every number of it is read from a result, and one that is typed is found."""

import html
import json
import re
import sys
from pathlib import Path

import pytest
import typst

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from make_paper import SOURCE, build, typed_numbers  # noqa: E402

TEXT = SOURCE.read_text()
STUDIES = sorted(set(re.findall(r'#verdicts\("([\w-]+)"', TEXT)))


def shown(outcome):
    if outcome["estimate"] is None:
        return "not defined"
    # Adding zero: what rounds to nothing has no minus.
    value, low, high = (f"{round(outcome[key], 2) + 0.0:+.2f}" for key in ("estimate", "low", "high"))
    return f"{value} ({low} to {high})".replace("-", "\N{MINUS SIGN}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def words(built):
    plain = html.unescape(re.sub(r"<[^>]+>", " ", built[1].read_text()))
    return re.sub(r"\s+", " ", plain)


def test_it_is_a_pdf_and_a_page_that_asks_for_nothing(built):
    pdf, page = built
    assert pdf.read_bytes()[:5] == b"%PDF-"
    text = page.read_text()
    assert "default-src 'none'" in text and "<script" not in text
    assert not re.search(r'src="(?!data:)', text)


def test_no_number_was_typed():
    assert typed_numbers(TEXT) == []


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("It gains 0.7 points.", "0.7"),
        ('#figure(image("/docs/a.png"), caption: [a gain of 12 %])', "12 %"),
        ("= Section of 3", "3"),
        ("*bold 4* and `raw 5`", "4"),
        ('#text("0.3")', "#text"),
        ('#number("a.json", "b", digits: 2) and 6', "6"),
        ('#claim("a", "b")[7]', "7"),
        ("[a block (8)]", "8"),
    ],
)
def test_a_typed_number_is_found(typed, found):
    assert any(each.startswith(found) for each in typed_numbers(f"{TEXT}\n{typed}\n"))


def test_every_study_of_the_paper_shows_its_estimates(words):
    assert len(STUDIES) >= 5
    for name in STUDIES:
        for finding in json.loads((ROOT / "studies" / name / "verdict.json").read_text())["hypotheses"]:
            estimate = shown((finding["rule"] or finding["kill"])["outcome"])
            claim = re.sub(r"\s+", " ", finding["claim"])
            assert f"{finding['decision']} {claim} {estimate}" in words, (name, finding["name"])


def test_a_value_in_the_text_is_that_of_its_file(words):
    found = json.loads((ROOT / "benchmarks/results/sr_grpo.json").read_text())["results"]
    for share in (found["base"]["pass_at_1"], found["arms"]["stable_rank"]["pass_at_1"]):
        value, low, high = (f"{100 * share[key]:.1f}" for key in ("value", "low", "high"))
        assert f"{value} ({low} to {high})" in words


def test_a_value_without_a_source_stops_the_build():
    missing = '#import "/paper/values.typ": *\n#number("benchmarks/results/sr_grpo.json", "results", "nothing")'
    with pytest.raises(typst.TypstError, match="nothing"):
        typst.compile(missing.encode(), root=str(ROOT), format="pdf")
