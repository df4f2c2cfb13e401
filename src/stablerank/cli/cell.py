"""`stablerank cell`, which `stablerank study run` starts for each cell; not for typing."""

from pathlib import Path
from typing import Annotated

import typer


def cell(
    file: Annotated[Path, typer.Argument(help="cells/ID.json of a study.")],
    tethered: Annotated[bool, typer.Option("--tethered", help="End when stdin closes.")] = False,
) -> None:
    """Run one cell of a study and write its sealed result; exit code 1 when the cell failed."""
    if tethered:
        from stablerank.studies.processes import tether

        tether()
    from stablerank.studies.cells import run_cell
    from stablerank.studies.processes import cell_claimed
    from stablerank.studies.task import read_task

    read_task(file)
    with cell_claimed(file):
        result = run_cell(file)
    print(f"{result['cell']}: {result['error'] or 'done'} ({result['seconds']:.1f} s)")
    if result["status"] == "failed":
        raise typer.Exit(1)
