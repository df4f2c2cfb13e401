"""`stablerank study`."""

import json as json_module
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stablerank.studies.runner import Progress
    from stablerank.studies.status import CellState

app = typer.Typer(help="Lock a question, run its cells, get a computed verdict.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="The study folder.", metavar="FOLDER")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command("new")
def new(folder: Folder) -> None:
    """Write a small study that locks and runs as it stands: a commented plan.yaml and its recipe."""
    from stablerank.cli.demo import recipe_path
    from stablerank.studies.template import write_template

    write_template(folder, recipe_path("demo.yaml").read_text())
    print(f"{folder / 'plan.yaml'} is written; edit it, then `stablerank study lock {folder}`.")


@app.command("lock")
def lock(folder: Folder) -> None:
    """Fix the plan and all that decides its results; from then on a change to any of it is found and named.

    What the plan's seeds and units can detect is printed first.
    """
    from stablerank.studies.lock import lock as lock_study
    from stablerank.studies.plan import load_plan
    from stablerank.studies.power import power_sentences

    for sentence in power_sentences(load_plan(folder / "plan.yaml")):
        print(sentence)
    locked = lock_study(folder)
    print(f"{'locked' if locked.is_new else 'already locked, nothing has changed'}: {locked.sha256}")
    print(f"next: `stablerank study run {folder}`")


@app.command("run")
def run(
    folder: Folder,
    jobs: Annotated[int, typer.Option(help="Cells at a time; they share the cores.")] = 1,
) -> None:
    """Run every cell that has no result yet, the most difficult first; also after a crash.

    Exit code 1 when a cell failed or died; it is named, its log lies in FOLDER/logs, and the same command tries again.
    """
    from stablerank.studies.plan import load_plan
    from stablerank.studies.runner import run as run_study

    cells = len(load_plan(folder / "plan.yaml").cells())
    try:
        with _bar(cells) as progress:
            found = run_study(folder, jobs=jobs, progress=progress)
    except KeyboardInterrupt:
        print(f"stablerank: interrupted; go on with `stablerank study run {folder}`.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(_summary(found))
    broken = [cell for cell in found if cell.state in ("failed", "missing")]
    for cell in broken:
        reason = cell.error or "its process died without a result"
        print(f"stablerank: {cell.cell}: {reason} (log: {folder / 'logs' / cell.cell}.log)", file=sys.stderr)
    if broken:
        raise typer.Exit(1)
    print(f"next: `stablerank study verdict {folder}`")


@app.command("status")
def status(folder: Folder, json: AsJson = False) -> None:
    """Say how many cells of each arm are done, running, missing, failed or not needed."""
    from stablerank.studies.status import status as status_of

    found = status_of(folder)
    if json:
        print(json_module.dumps([asdict(cell) for cell in found], indent=2))
        return
    _print_table(found)
    for cell in found:
        if cell.state == "failed":
            print(f"{cell.cell}: {cell.error}")


@app.command("verdict")
def verdict(folder: Folder, json: AsJson = False) -> None:
    """Judge every hypothesis by its rule, write FOLDER/verdict.json and print it with intervals and sources.

    Exit code 1 when there is no verdict: the study is invalid or not finished.
    """
    from stablerank.studies.verdict import as_json
    from stablerank.studies.verdict import verdict as judge
    from stablerank.studies.verdict_text import text

    found = judge(folder)
    print(json_module.dumps(as_json(found), indent=2) if json else text(found))
    if found.state != "decided":
        raise typer.Exit(1)


def _print_table(found: Sequence["CellState"]) -> None:
    """A row an arm, a column a state."""
    from rich.console import Console
    from rich.table import Table

    from stablerank.studies.status import STATES

    counts = Counter((cell.arm, cell.state) for cell in found)
    table = Table("arm", "kind")
    for state in (*STATES, "cells"):
        table.add_column(state, justify="right")
    kinds = {cell.arm: cell.kind for cell in found}
    for arm, kind in kinds.items():
        row = [counts[arm, state] for state in STATES]
        table.add_row(arm, kind, *(str(count or "") for count in row), str(sum(row)))
    Console().print(table)


def _summary(found: Sequence["CellState"]) -> str:
    counts = Counter(cell.state for cell in found)
    total = f"{len(found)} cell{'' if len(found) == 1 else 's'}"
    return f"{total}: " + ", ".join(f"{count} {state}" for state, count in counts.most_common())


@contextmanager
def _bar(cells: int) -> Iterator["Progress"]:
    """A bar over cells on stderr, with those under way."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[under_way]}", markup=False),
    )
    # Into a file or a pipe a bar would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task, under_way = bars.add_task("cells", total=cells, under_way=""), dict[str, None]()

        def progress(cell: str, state: str) -> None:
            if state == "running":
                under_way[cell] = None
            else:
                under_way.pop(cell, None)
                bars.advance(task)
            bars.update(task, under_way=" ".join(under_way))

        yield progress
