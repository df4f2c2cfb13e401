"""`stablerank measure`."""

import json as json_module
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stablerank.cli.bars import passing_bar

if TYPE_CHECKING:
    from stablerank.measuring import Measurement, Progress


def measure(
    path: Annotated[str, typer.Argument(help="Checkpoint folder or file, zoo:NAME, or the folder of a PEFT adapter.")],
    against: Annotated[
        str | None, typer.Option(help="The base: measure the update from it; of an adapter, compare with it.")
    ] = None,
    adapter: Annotated[
        bool | None, typer.Option("--adapter/--no-adapter", help="PATH is an adapter (default: look).")
    ] = None,
    initial: Annotated[str | None, typer.Option(help="The adapter before training, for PiSSA and kin.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated names; a wrong one lists them all.")] = None,
    rtol: Annotated[float, typer.Option(help="Relative accuracy of the stable rank, certified.")] = 1e-3,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, Parquet and HTML; resumes there.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Tensors at a time (default: the cores, at most 4).")] = None,
    all_matrices: Annotated[bool, typer.Option("--all", help="Print one line a matrix.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Rows as JSON on stdout.")] = False,
) -> None:
    """Stable rank and relatives of every matrix, certified, without loading the model.

    Exit code 1 when something could not be measured; it is named and the rest is measured.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch"):
        from stablerank.measuring import measure as run

    try:
        with _bar() as progress:
            found = run(
                path,
                against=against,
                adapter=adapter,
                initial=initial,
                metrics=None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()],
                rtol=rtol,
                jobs=min(_cores(), 4) if jobs is None else jobs,
                out=out,
                progress=progress,
            )
    except KeyboardInterrupt:
        way_on = "nothing was written" if out is None else f"the same command goes on in {out}"
        print(f"stablerank: interrupted; {way_on}.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(_json(found) if json else _text(found, all_matrices=all_matrices))
    if found.problems:
        raise typer.Exit(1)


def _text(found: "Measurement", *, all_matrices: bool) -> str:
    from stablerank.reports.measure import measured_rows
    from stablerank.reports.measure_text import text

    rows = measured_rows(found.table().to_pylist())
    shown = text(rows, found.meta, all_matrices=all_matrices)
    return shown if found.folder is None else f"{shown}\nreport: {found.folder / 'report.html'}"


def _json(found: "Measurement") -> str:
    """Strict JSON: what is not defined is null."""
    rows = [
        {
            key: None if isinstance(value, float) and not abs(value) < float("inf") else value
            for key, value in row.items()
        }
        for row in found.table().to_pylist()
    ]
    findings = [finding.sentence for finding in found.findings()]
    return json_module.dumps({**found.meta, "findings": findings, "rows": rows}, indent=2, allow_nan=False)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bar() -> "AbstractContextManager[Progress]":
    """A bar with bytes."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    return passing_bar("measuring", DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
