"""The terminal's text: what it says, that it fits, and that names cannot reach the terminal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stablerank.diagnoses import diagnose
from stablerank.reports.measure import MeasuredRow, read_measurement
from stablerank.reports.measure_text import WIDTH, text

Rows = tuple[MeasuredRow, ...]
Write = Callable[..., Path]


def shown(folder: Path, **settings: bool) -> str:
    measurement = read_measurement(folder)
    return text(measurement.rows, measurement.meta, **settings)


@pytest.mark.parametrize("all_matrices", [False, True])
def test_every_line_fits(hostile_rows: Rows, write_measurement: Write, tmp_path: Path, all_matrices: bool) -> None:
    lines = shown(write_measurement(tmp_path, hostile_rows), all_matrices=all_matrices).splitlines()
    assert max(map(len, lines)) <= WIDTH and lines == [line.rstrip() for line in lines]


def test_a_line_a_module_type_then_outliers_and_findings(
    update_rows: Rows, write_measurement: Write, tmp_path: Path
) -> None:
    folder = write_measurement(tmp_path, update_rows, kind="update", adapter=True, against="base")
    page = shown(folder)
    assert page.startswith("adapter checkpoints/tuned against base\nMedian stable rank of 71 updates: ")
    lines = page.splitlines()
    (module,) = [line.split() for line in lines if line.startswith(" self_attn.k_proj   11 of 12")]
    assert float(module[4]) <= 4.0 and "median [range]" in page
    assert any(line.startswith(" model.layers.6.self_attn.q_proj") for line in lines)
    flat = " ".join(page.split())
    for finding in diagnose(update_rows):
        assert f"* {finding.sentence}" in flat and f"Rule: {finding.rule} But: {finding.caveat}" in flat


def test_every_matrix_has_its_line(weight_rows: Rows, write_measurement: Write, tmp_path: Path) -> None:
    lines = [line.split() for line in shown(write_measurement(tmp_path, weight_rows), all_matrices=True).splitlines()]
    assert len([line for line in lines if line[-1:] == ["exact"]]) == 72
    assert ["2", "self_attn.k_proj", "32x64", "non", "finite"] in [line[:5] for line in lines]


def test_problems_and_skipped_tensors_are_counted(weight_rows: Rows, write_measurement: Write, tmp_path: Path) -> None:
    problem = {"file": "a.safetensors", "tensor": None, "reason": "The file is cut short."}
    meta = {"problems": [problem] * 13, "skipped": {"not a matrix": 61}, "missing": list("abcdef"), "notes": ["Split."]}
    page = shown(write_measurement(tmp_path, weight_rows, **meta))
    assert (
        "\nSplit.\n" in page and "13 problems; the rest was measured:\n! a.safetensors: The file is cut short." in page
    )
    assert page.count("cut short") == 10 and "and 3 more" in page
    assert page.endswith("Skipped: 61 (not a matrix)\nOnly in the base: 6 (a, b, c, d, ...)")


def test_no_name_reaches_the_terminal_as_a_command(
    hostile_rows: Rows, write_measurement: Write, tmp_path: Path
) -> None:
    page = shown(write_measurement(tmp_path, hostile_rows))
    assert not set(page) & set("\x1b\u202e") and "[red]" in page.replace("\n", "")


def test_nothing_measured_is_a_text_too(write_measurement: Write, tmp_path: Path) -> None:
    meta = json.loads((write_measurement(tmp_path, ()) / "measure.json").read_text())
    assert "No weights could be measured." in text((), meta)
