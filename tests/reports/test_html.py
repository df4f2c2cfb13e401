"""The page: sections for whatever is there, words for whatever is not, and nothing that runs."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stablerank.errors import RunFolderError
from stablerank.reports.html import LONGEST_TEXT, safe, shortened, write_report

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "audio", "video", "img", "input", "button"}


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def test_the_same_run_gives_the_same_bytes_and_leaves_no_debris(finished_run: Path) -> None:
    before = {path.name for path in finished_run.iterdir()}
    first = write_report(finished_run).read_bytes()
    assert write_report(finished_run).read_bytes() == first
    assert {path.name for path in finished_run.iterdir()} == before | {"report.html"}


def test_nothing_on_the_page_can_run_or_load(finished_run: Path) -> None:
    page = read(write_report(finished_run))
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in page.tags
    assert not {tag for tag, _ in page.tags} & ACTIVE
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_model_text_is_shown_as_text(finished_run: Path) -> None:
    page = read(write_report(finished_run))
    shown = ('<script>document.title="owned"</script>', "nul <U+0000> escape <U+001B>[31m", "{{7*7}} {% raw %} ${7*7}")
    assert all(text in page.text for text in shown)
    assert not set(page.text) & set("\x00\x1b\u202e\u2066")


def test_the_numbers_of_the_summary_are_in_words_with_their_intervals(finished_run: Path) -> None:
    text = read(write_report(finished_run)).text
    for part in ("from 38.3 % to 67.2 %", "+28.9 points", "34.5 to 42.3", "63.3 to 70.8", "+24.6 to +33.1", "1.23 GB"):
        assert part in text
    assert "29 more of every 100 problems solved" in text


def test_a_run_that_is_still_going_says_what_is_missing(make_run: Callable[..., Path]) -> None:
    page = read(write_report(make_run("live", steps=12, finished=False, kl=False, null=False)))
    assert "This run has not finished: step 12 of 60" in page.text
    assert "Not recorded by this run: KL to the reference." in page.text
    assert "No prompt has been answered both before and after training yet" in page.text
    assert "no null recorded" in page.text


def test_updates_that_are_all_zero_are_said_to_be(finished_run: Path) -> None:
    for shard in (finished_run / "geometry").glob("step-*[1-9]*.parquet"):
        shard.unlink()
    assert "Every update measured so far is exactly zero" in read(write_report(finished_run)).text


def test_a_manifest_alone_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"recipe": {}}')
    page = read(write_report(tmp_path))
    assert page.text.count(" yet (") == 5
    assert "svg" not in {tag for tag, _ in page.tags}


def test_a_finished_run_without_evaluation_claims_nothing(finished_run: Path) -> None:
    path = finished_run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pass_at_1_after": None}))
    text = read(write_report(finished_run)).text
    assert "pass@1 was not measured" in text and "points" not in text


def test_damage_is_reported_on_the_page(finished_run: Path) -> None:
    (finished_run / "timings.jsonl").write_text("<b>\n")
    assert "timings.jsonl cannot be read" in read(write_report(finished_run)).text


def test_hostile_metadata_is_text_too(finished_run: Path) -> None:
    path = finished_run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["model"]["path"] = '</title><script>alert("\ud800\u202e")</script>'
    path.write_text(json.dumps(manifest))
    page = read(write_report(finished_run))
    assert '<script>alert("<U+D800><U+202E>")</script>' in page.text
    assert "script" not in {tag for tag, _ in page.tags}


def test_no_run_folder_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_runaway_answer_is_cut_and_says_so() -> None:
    text = shortened("A" * (LONGEST_TEXT + 1234))
    assert text.endswith("… 1,234 more characters") and len(text) < LONGEST_TEXT + 40
    assert shortened("short") == "short"


def test_marked_characters_cannot_be_forged_by_plain_text() -> None:
    assert safe("\u202e") == '<span class="unseen">&lt;U+202E&gt;</span>'
    assert safe("<U+202E>") == "&lt;U+202E&gt;"
