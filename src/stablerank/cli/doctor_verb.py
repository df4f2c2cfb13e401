"""`stablerank doctor`."""

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False) -> None:
    """Check versions, device, kernels, data and one tiny training step; print a remedy for whatever is amiss."""
    from stablerank.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(json))
