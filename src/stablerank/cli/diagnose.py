"""`stablerank diagnose`."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stablerank.errors import DataError

if TYPE_CHECKING:
    from stablerank.reports.diagnosis import Health


def diagnose(
    run: Annotated[Path, typer.Argument(help="Run folder; or TRL's output folder or trainer_state.json.")],
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a page with curves here, such as health.html.")] = None,
) -> None:
    """Say what happened in a run, when, and what to change.

    Exit code 1 when a problem was found, 0 when none was.
    """
    from stablerank.reports.diagnosis import read_health, to_json
    from stablerank.reports.diagnosis_text import text

    health = read_health(run.expanduser())
    if out is not None:
        _write_page(out, health)
    print(json_module.dumps(to_json(health), indent=2, allow_nan=False) if json else text(health))
    if out is not None and not json:
        print(f"\npage: {out}")
    if health.diagnoses.has_problem:
        raise typer.Exit(1)


def _write_page(out: Path, health: "Health") -> None:
    from stablerank.reports.diagnosis_html import write_health_page

    try:
        write_health_page(out, health)
    except OSError as error:
        raise DataError(f"--out {out} cannot be written ({error.strerror}); give the path of a new file.") from error
