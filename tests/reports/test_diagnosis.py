"""The health of a run on the terminal, on its page and in its report: the same findings, and nothing that can run."""

import json
from pathlib import Path

import pytest

from stablerank.reports.diagnosis import health_of, read_health, to_json
from stablerank.reports.diagnosis_figures import marked_curves
from stablerank.reports.diagnosis_html import page
from stablerank.reports.diagnosis_text import MOST_ZEROS, text
from stablerank.reports.html import write_report
from stablerank.runs.folder import RunFolder
from stablerank.runs.record import RunRecord

DULL = {"reward_std": 0.0, "frac_reward_zero_std": 1.0, "advantage_scale": 0.0}
HOSTILE = '\x1b[31m<script>document.title="owned"</script>\u202e'


def collapsed(path: Path) -> Path:
    """Let the reward of a run fold with a KL far out, from step 30 on."""
    folder = RunFolder(path)
    rows = folder.metrics.rows()
    for row in rows:
        if row["step"] >= 30:
            row |= {"reward": 0.0, "kl": 5.0, **DULL}
    folder.metrics.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_healthy_run_has_a_clean_bill_in_its_report(finished_run: Path) -> None:
    health = read_health(finished_run)
    assert health.diagnoses.found == ()
    shown = write_report(finished_run).read_text()
    assert 'id="health"' in shown and "No problem found" in shown
    assert "health-reward" not in shown  # its curves stand in the report already
    assert shown.index('id="training"') < shown.index('id="health"') < shown.index('id="geometry"')


def test_what_was_found_stands_in_the_report_with_its_marks(finished_run: Path) -> None:
    health = read_health(collapsed(finished_run))
    assert [found.cause for found in health.diagnoses.found] == ["learning_rate_too_high"]
    shown = write_report(finished_run).read_text()
    for part in ("The learning rate is too high", "What to change.", "Dashed lines: step 30, learning rate too high"):
        assert part in shown
    pictures = marked_curves(health)
    assert [picture.title for picture in pictures] == [
        "Held-out pass@1",
        "Reward",
        "Completion length",
        "KL to the reference",
    ]
    assert all("Marked: step 30." in picture.alt for picture in pictures)


def test_the_page_of_its_own_says_the_same_and_the_same_bytes_again(finished_run: Path) -> None:
    health = read_health(collapsed(finished_run))
    shown = page(health)
    assert shown == page(read_health(finished_run))
    assert "default-src &#39;none&#39;" in shown or "default-src 'none'" in shown
    assert "<script" not in shown
    assert health.diagnoses.verdict in shown


def test_alarms_zeros_and_chain_are_told(finished_run: Path) -> None:
    folder = RunFolder(collapsed(finished_run))
    folder.alarms.append({"step": 31, "alarm": "kl", "sentence": f"Far out {HOSTILE}.", "remedy": "Go back."})
    health = read_health(finished_run)
    assert health.alarms[0]["step"] == 31
    shown, told = page(health), text(health)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert "step 31: Far out <U+001B>[31m<script>" in told
    assert not {"\x1b", "\u202e"} & ({*shown} | {*told})
    assert any("steps 30 to 60" in zero for zero in health.zeros)
    assert "Steps that taught nothing" in shown and "Steps that taught nothing:" in told


def test_a_run_with_hundreds_of_stretches_without_signal_stays_readable(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    rows = [{**row, **DULL} if row["step"] % 2 else row for row in folder.metrics.rows()]
    folder.metrics.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    health = read_health(finished_run)
    assert len(health.zeros) > MOST_ZEROS
    assert f"and {len(health.zeros) - MOST_ZEROS} more" in text(health)


def test_no_line_of_the_terminal_is_wider_than_the_screen(finished_run: Path) -> None:
    lines = text(read_health(collapsed(finished_run))).splitlines()
    assert max(len(line) for line in lines if str(finished_run) not in line) <= 100


def test_names_from_the_run_are_shown_as_text(tmp_path: Path) -> None:
    rows = tuple(
        {
            "step": step,
            "reward": 0.1 * step,
            f"rewards/{HOSTILE}/mean": max(0.0, 0.5 - 0.1 * step),
            "rewards/b/mean": 0.1,
        }
        for step in range(1, 13)
    )
    health = health_of(RunRecord(tmp_path, "trl", {}, rows, (), ()))
    assert f"the reward {HOSTILE} fell" in health.diagnoses.verdict
    assert "<script" not in page(health)
    assert "\x1b" not in text(health)


def test_a_damaged_table_costs_the_report_this_section_alone(finished_run: Path) -> None:
    (finished_run / "evaluations.jsonl").write_text('{"step": 1}\n')
    shown = write_report(finished_run).read_text()
    assert "nothing is said about its health" in shown
    assert 'id="geometry"' in shown


@pytest.mark.parametrize("rows", [(), ({"step": 1, "loss": 0.1},)])
def test_a_log_without_rows_is_a_page_too(tmp_path: Path, rows) -> None:
    health = health_of(RunRecord(tmp_path, "trl", {}, rows, (), ()))
    assert "Was it healthy?" in page(health)
    told = to_json(health)
    assert told["logged_steps"] == len(rows)
    json.dumps(told, allow_nan=False)
