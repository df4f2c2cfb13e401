"""Both sides of the spectral condition in a run's report."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from stablerank.reports.blocks import block_sides
from stablerank.reports.html import write_report
from stablerank.runs.folder import RunFolder

Sides = dict[tuple[str, int, str], list[float]]
Q, DOWN = "self_attn.q_proj", "mlp.down_proj"
MEASURED: Sides = {
    (Q, 0, "gradient"): [8.0, 2.0, 4.0],
    (Q, 0, "activation"): [1.0, 2.0, 3.0],
    (Q, 50, "gradient"): [3.0],
    (Q, 50, "activation"): [6.0],
    (DOWN, 50, "gradient"): [5.0],
    (f"{Q}.lora_A", 50, "gradient"): [5.0],
    (f"{Q}.lora_A", 50, "activation"): [5.0],
}


@pytest.fixture
def folder(make_run: Callable[..., Path]) -> RunFolder:
    """A run whose blocks were measured twice; one kind lacks a side, and one layer a value."""
    folder = RunFolder(make_run("blocks", steps=5))
    like = next(row for row in folder.geometry.rows() if row["kind"] == "update")
    metrics = {"gradient": "nuclear_rank", "activation": "stable_rank"}
    for at in (0, 50):
        rows = [
            {
                **like,
                "step": at,
                "module": module,
                "layer": layer,
                "kind": kind,
                "metric": metrics[kind],
                "value": value,
            }
            for (module, step, kind), values in MEASURED.items()
            for layer, value in enumerate(values)
            if step == at
        ]
        lost = {**rows[0], "layer": 9, "value": float("nan"), "status": "non_finite"}
        folder.geometry.write(at, [*rows, lost], part="blocks")
    return folder


def test_sides_are_medians_over_layers_where_both_are_known(folder: RunFolder) -> None:
    (sides,) = block_sides(folder.geometry.read())
    assert (sides.module, sides.step_S) == (Q, [0, 50])
    assert (sides.nuclear_S, sides.stable_S, sides.ratio_last) == ([4.0, 3.0], [2.0, 6.0], 0.5)


def test_a_run_without_them_has_none(shared_run: Path) -> None:
    assert block_sides(None) == []
    assert block_sides(pa.Table.from_pylist(RunFolder(shared_run).geometry.rows())) == []
    assert '<section id="blocks">' not in write_report(shared_run).read_text()


def test_the_page_says_which_step_promises_more(folder: RunFolder) -> None:
    page = write_report(folder.path).read_text()
    shown = re.search(r'<section id="blocks">.*?</section>', page, re.DOTALL)
    assert shown and "a Euclidean step promises 2 times as much" in shown.group()
    assert "gradient 4.00 at step 0, 3.00 at step 50; stable rank of the input 2.00 and 6.00" in shown.group()
