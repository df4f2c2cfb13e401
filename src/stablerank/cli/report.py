"""`stablerank report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Run folder, finished or still going.")]) -> None:
    """Write RUN/report.html again from the run's tables and print the summary."""
    from stablerank.reports.html import write_report
    from stablerank.reports.summary import summary_text

    write_report(run)
    print(summary_text(run))
