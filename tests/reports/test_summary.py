"""The terminal summary fits one screen, tells the truth and cannot be taken over by what a run holds."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stablerank.reports.summary import summary_text


def test_a_finished_run_fits_one_screen_and_says_what_matters(finished_run: Path) -> None:
    (finished_run / "report.html").touch()
    text = summary_text(finished_run)
    lines = text.split("\n")
    assert len(lines) <= 24
    assert max(len(line) for line in lines if finished_run.name not in line) <= 100
    assert lines[0] == "Training raised pass@1 from 38.3 % to 67.2 %"
    for part in ("LoRA", "34.5 to 42.3", "+24.6 to +33.1", "random updates", "1 min 11 s", "1.23 GB", "report.html"):
        assert part in text
    assert "stablerank export" in text and "--resume" not in text


@pytest.mark.parametrize(
    ("low", "high", "opening"),
    [
        (0.01, 0.05, "Training raised pass@1"),
        (-0.05, -0.01, "Training lowered pass@1"),
        (-0.01, 0.02, "No clear change of pass@1"),
    ],
)
def test_the_interval_of_the_gain_decides_the_headline(
    finished_run: Path, low: float, high: float, opening: str
) -> None:
    path = finished_run / "summary.json"
    gain = {"value": (low + high) / 2, "low": low, "high": high, "problems": 600}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pass_at_1_gain": gain}))
    assert summary_text(finished_run).startswith(opening)


def test_an_unfinished_run_says_how_to_go_on(make_run: Callable[..., Path]) -> None:
    text = summary_text(make_run("live", steps=12, finished=False, null=False))
    assert text.startswith("This run has not finished: step 12 of 60")
    assert re.search(r"stablerank train --resume \S*live", text)
    assert "no floor to be" in text


def test_a_command_is_never_cut(make_run: Callable[..., Path]) -> None:
    run = make_run("a-name-that-leaves-no-room-for-the-rest-of-a-line-" * 3, steps=12, finished=False)
    assert re.search(rf"stablerank train --resume \S*{run.name}\n", summary_text(run))


def test_full_fine_tuning_is_not_offered_a_merge(finished_run: Path) -> None:
    path = finished_run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["adapter"] = {"kind": "full"}
    path.write_text(json.dumps(manifest))
    text = summary_text(finished_run)
    assert "GRPO trained every weight (98,304 of 812,160 parameters) of zoo:arith-student" in text
    assert "--merge" not in text and "Next    stablerank report" in text


def test_no_escape_sequence_reaches_the_terminal(finished_run: Path) -> None:
    path = finished_run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["model"]["path"] = "\x1b]0;owned\x07\x1b[2J\u202emodel\r\n" + "long" * 400
    path.write_text(json.dumps(manifest))
    text = summary_text(finished_run)
    assert "<U+001B>" in text and "<U+202E>" in text
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert len(text.split("\n")) <= 24 and max(map(len, text.split("\n"))) <= 100
