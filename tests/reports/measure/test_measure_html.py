"""The page of a measurement: complete, escaped, and closed to every script but its own."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stablerank.diagnoses import diagnose
from stablerank.errors import DataError
from stablerank.reports import measure_html
from stablerank.reports.measure import MeasuredRow, bounded, exactly
from stablerank.reports.measure_html import write_measure_report

Rows = tuple[MeasuredRow, ...]
Write = Callable[..., Path]
ACTIVE = {"iframe", "object", "embed", "form", "base", "audio", "video", "img", "button"}


class Elements(HTMLParser):
    """Every start tag with its attributes, the text, and what stands in script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts.append(data)
        else:
            self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


def read(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def updates(update_rows: Rows, write_measurement: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "out"
    return write_measurement(folder, update_rows, kind="update", against="base", adapter=True)


@pytest.fixture(scope="module")
def updates_page(updates: Path) -> Elements:
    return read(write_measure_report(updates))


def test_the_same_folder_gives_the_same_bytes_and_no_other_file(updates: Path) -> None:
    first = write_measure_report(updates).read_bytes()
    assert write_measure_report(updates).read_bytes() == first
    assert {path.name for path in updates.iterdir()} == {"measure.json", "rows.parquet", "report.html"}


def test_every_matrix_is_a_cell_and_a_line_and_every_finding_is_told(updates_page: Elements, update_rows: Rows) -> None:
    page = updates_page
    ranks = [row for row in update_rows if row.metric == "stable_rank"]
    assert page.count("g", **{"class": "cell"}) == len(update_rows), "three metrics, a cell a matrix each"
    titles = [found["title"] for tag, found in page.tags if tag == "td" and found.get("title")]
    for row in ranks:
        assert exactly(row) in page.text and exactly(row) in titles and bounded(row) in page.text
    for finding in diagnose(update_rows):
        assert all(part in page.text for part in (finding.sentence, finding.rule, finding.caveat))
    assert page.count("input", type="radio") == 3 and page.count("details") == 3


def test_the_only_script_is_the_one_that_the_policy_admits(
    hostile_rows: Rows, write_measurement: Write, tmp_path: Path
):
    page = read(write_measure_report(write_measurement(tmp_path, hostile_rows)))
    (script,) = page.scripts
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def test_names_from_files_are_text_wherever_they_stand(
    hostile_rows: Rows, write_measurement: Write, tmp_path: Path
) -> None:
    name = hostile_rows[-1].name
    meta = {
        "problems": [{"file": name, "tensor": name, "reason": name}], "skipped": {name: 3}, "missing": [name],
        "extra": [name], "path": name, "against": name,
    }  # fmt: skip
    page = read(write_measure_report(write_measurement(tmp_path, hostile_rows, **meta)))
    assert page.text.count("<script>document.title='owned'</script><U+202E><U+001B>[31m\"' onload=alert(1)") > 10
    assert not {tag for tag, _ in page.tags} & ACTIVE and len(page.scripts) == 1
    assert not set(page.text) & set("\x1b\u202e")
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert not set("".join(str(content) for content in attributes.values())) & set("\x1b\u202e")


def test_what_was_not_measured_stands_at_the_top(weight_rows: Rows, write_measurement: Write, tmp_path: Path) -> None:
    problem = {"file": "a.safetensors", "tensor": "w", "reason": "The header lies."}
    meta = {"problems": [problem] * 60, "skipped": {"not a matrix": 61}, "extra": ["head"], "notes": ["Split."]}
    text = read(write_measure_report(write_measurement(tmp_path, weight_rows, **meta))).text
    assert "60 problems; the rest was measured." in text and "a.safetensors: w: The header lies." in text
    assert text.index("60 problems") < text.index("What stands out") and "10 more in measure.json" in text
    assert "Split." in text and "Skipped: 61 (not a matrix)." in text and "Only in the measured checkpoint: 1" in text


def test_nothing_that_stands_out_and_nothing_measured_are_said(
    weight_rows: Rows, write_measurement: Write, tmp_path: Path
) -> None:
    calm = tuple(row for row in weight_rows if row.module == "self_attn.v_proj" and row.metric == "stable_rank")
    page = read(write_measure_report(write_measurement(tmp_path / "calm", calm)))
    assert "No rule found anything to say." in page.text and page.count("g", **{"class": "cell"}) == 12
    empty = read(write_measure_report(write_measurement(tmp_path / "empty", ())))
    assert "Nothing was measured" in empty.text and "svg" not in {tag for tag, _ in empty.tags}


def test_a_table_too_long_says_where_the_rest_is(updates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_html, "LONGEST_TABLE", 10)
    page = read(write_measure_report(updates))
    assert "The first 10 of 72 matrices" in " ".join(page.text.split()) and page.count("th", scope="row") == 10


def test_the_page_says_what_was_compared_and_how_surely(updates_page: Elements) -> None:
    text = updates_page.text
    for part in ("adapter checkpoints/tuned against base", "269 MB", "4.1 s", "65.1 MB a second", "0.001", "1e-06"):
        assert part in text
    assert re.search(r"Median stable rank of 71 updates: 4\.\d\d, \d\.\d+ times its null", text)


def test_no_measurement_no_report(tmp_path: Path) -> None:
    (tmp_path / "measure.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="does not hold a whole measurement"):
        write_measure_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
