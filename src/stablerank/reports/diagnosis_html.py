"""The health of a run as a page of its own, for runs that have no report, such as plain TRL's.

Text from the run is untrusted and reaches the page through the escaping of ``reports/html.py``. Its one section is the
template that the run's own report includes too.
"""

from pathlib import Path

from stablerank.reports import diagnosis_figures, html
from stablerank.reports.diagnosis import Health
from stablerank.runs.atomic import write_text


def write_health_page(path: Path, health: Health) -> None:
    """Write the page as one HTML file that needs no network and runs no script."""
    write_text(path, page(health))


def page(health: Health) -> str:
    """The whole page as text."""
    template = html.environment().get_template("diagnosis.html.j2")
    return template.render(
        name=health.record.source.resolve().name,
        health=health,
        health_curves=diagnosis_figures.marked_curves(health),
    )
