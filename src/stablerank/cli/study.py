"""`stablerank study`."""

import json as json_module
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from stablerank.studies.executors.seam import Executor
    from stablerank.studies.runner import Progress
    from stablerank.studies.status import CellState

app = typer.Typer(help="Lock a question, run its cells, get a computed verdict.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="The study folder.", metavar="FOLDER")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Where = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE,...", help="Axis, arm, seed or kind of the cells.")]


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
    jobs: Annotated[int, typer.Option(help="Cells at a time; here they share the cores.")] = 1,
    cell: Annotated[list[str] | None, typer.Option(metavar="ID", help="This cell only; again for more.")] = None,
    where: Where = None,
    retries: Annotated[int, typer.Option(help="Starts again of a cell whose process died.")] = 1,
    memory: Annotated[float | None, typer.Option(help="GiB for all cells together, where arms say their need.")] = None,
    executor: Annotated[Literal["local", "ray", "slurm"], typer.Option(help="Where the cells run.")] = "local",
    resource: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of a cell under ray or slurm, such as num_gpus=1.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background; `study status` tells.")] = False,
) -> None:
    """Run every cell that has no result yet, the most difficult first; also after a crash.

    Exit code 1 when a cell failed; it is named, its log lies in FOLDER/logs, and the same command tries again.
    """
    from stablerank.studies.plan import load_plan
    from stablerank.studies.runner import run as run_study
    from stablerank.studies.selection import parse_where, selected

    ids, labels = cell or [], parse_where(where or [])
    cells = len(selected(load_plan(folder / "plan.yaml"), ids, labels))
    if detach:
        _detach(folder)
        return
    try:
        with _bar(cells) as progress:
            found = run_study(
                folder,
                jobs=jobs,
                cells=ids,
                where=labels,
                retries=retries,
                executor=_executor(executor, resource or [], memory),
                progress=progress,
            )
    except KeyboardInterrupt:
        print(f"stablerank: interrupted; go on with `stablerank study run {folder}`.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(_summary(found))
    broken = [state for state in found if state.state == "failed"]
    for state in broken:
        print(f"stablerank: {state.cell}: {state.error} (log: {folder / 'logs' / state.cell}.log)", file=sys.stderr)
    if broken:
        raise typer.Exit(1)
    print(f"next: `stablerank study verdict {folder}`")


def _executor(name: str, resources: Sequence[str], memory: float | None) -> "Executor":
    from stablerank.errors import RecipeError
    from stablerank.studies.executors.local import Local
    from stablerank.studies.executors.ray_core import Ray
    from stablerank.studies.executors.seam import parse_resources
    from stablerank.studies.executors.slurm import Slurm

    if name == "local":
        if resources:
            raise RecipeError(f"--resource {resources[0]} asks a scheduler; add `--executor ray` or `slurm`.")
        return Local(memory)
    if memory is not None:
        raise RecipeError("--memory limits the cells of this machine; under a scheduler give arms their `memory`.")
    asked = parse_resources(resources)
    return Ray(asked) if name == "ray" else Slurm(asked)


def _detach(folder: Path) -> None:
    """The same command line without --detach, in a session of its own, its output in a log."""
    import subprocess

    from stablerank.studies.lock import locked_study

    locked_study(folder)  # what is wrong is told here and now
    log = folder / "logs" / "run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("ab") as sink:
        subprocess.Popen(
            [sys.executable, "-m", "stablerank", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"running in the background; `stablerank study status {folder}` tells, {log} holds what it prints.")


@app.command("status")
def status(folder: Folder, where: Where = None, json: AsJson = False) -> None:
    """Say how many cells of each arm are done, running, missing, failed, stale or not needed."""
    from stablerank.studies.layout import StudyFolder
    from stablerank.studies.plan import load_plan
    from stablerank.studies.processes import is_claimed
    from stablerank.studies.selection import parse_where, selected
    from stablerank.studies.status import status as status_of

    ids = {cell.id for cell in selected(load_plan(folder / "plan.yaml"), where=parse_where(where or []))}
    found = [cell for cell in status_of(folder) if cell.cell in ids]
    if json:
        print(json_module.dumps([asdict(cell) for cell in found], indent=2))
        return
    _print_table(found)
    for cell in found:
        if cell.state == "failed":
            print(f"{cell.cell}: {cell.error}")
    if is_claimed(StudyFolder(folder)):
        print("a runner is at work")


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


@app.command("report")
def report(
    folder: Folder,
    column: Annotated[list[str] | None, typer.Option(help="This column only; again for more.")] = None,
    json: AsJson = False,
) -> None:
    """Print a table a column in Markdown: each arm's mean over seeds with its interval, laid out by the plan's axes.

    Of a confirmatory study no number is shown before its last cell.
    """
    from stablerank.studies.tables import markdown, summary

    found = summary(folder, column or [])
    print(json_module.dumps(found.as_json(), indent=2, allow_nan=False) if json else markdown(found))


@app.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(help="A study folder.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="SECOND")],
    tolerance: Annotated[float, typer.Option(help="By how much numbers may differ, relative or in their units.")] = 0.0,
    json: AsJson = False,
) -> None:
    """Say what differs between the results of two studies: cells, columns, values; exit code 1 if anything does.

    Columns that measure the machine, such as train_seconds, are not compared.
    """
    from stablerank.studies.comparison import differences

    found = differences(first, second, tolerance)
    if json:
        print(json_module.dumps([unlike.as_json() for unlike in found], indent=2, allow_nan=False))
    else:
        print("\n".join(map(str, found)) or "no difference")
    if found:
        raise typer.Exit(1)


def _print_table(found: Sequence["CellState"]) -> None:
    """A row an arm, a column a state."""
    from rich.console import Console
    from rich.table import Table

    from stablerank.studies.status import STATES

    counts = Counter((cell.arm, cell.state) for cell in found)
    table = Table()
    table.add_column("arm", overflow="fold")  # an ellipsis would make arms of a matrix alike
    table.add_column("kind")
    # Of the rest, a column that no cell is in would cost the arms' names their width.
    states = [s for s in STATES if s in ("done", "missing") or any(cell.state == s for cell in found)]
    for heading in (*states, "cells"):
        table.add_column(heading, justify="right")
    kinds = {cell.arm: cell.kind for cell in found}
    for arm, kind in kinds.items():
        row = [counts[arm, state] for state in states]
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
                if state != "missing":  # it died, and starts again
                    bars.advance(task)
            bars.update(task, under_way=" ".join(under_way))

        yield progress
