"""The page: one HTML file that needs no network and runs no script.

Model text is untrusted. It only ever reaches the page through Jinja's autoescape, after every character that could
hide or reorder text was made visible; a Content-Security-Policy that allows no script and no request
is the second lock. The same run gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from stablerank.errors import RunFolderError
from stablerank.reports import (
    block_figures,
    diagnosis_figures,
    effect_figures,
    figures,
    findings,
    geometry,
    geometry_figures,
    held_out_figures,
    loss_figures,
    losses,
    words,
)
from stablerank.reports.diagnosis import Health, read_health
from stablerank.reports.pairs import CHANGES, Change, Pair, by_change, pair_up
from stablerank.reports.read import Run, read_run, series
from stablerank.reports.svg import Picture
from stablerank.runs.atomic import write_text

EXAMPLES = 3
"""Pairs of answers shown of each kind."""

LONGEST_TEXT = 4000
"""Characters of a model's text that are shown; a runaway answer must not make the page unreadable."""

CHANGE_NAMES: dict[Change, str] = {
    "fixed": "wrong, then right",
    "kept": "right, and still right",
    "broken": "right, then wrong",
    "unsolved": "wrong, and still wrong",
}

MANIFEST_PARTS = ("packages", "device", "seeds", "hashes", "arguments", "overrides", "trainer_config")


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder, finished or not, and return its path.

    Raises:
        RunFolderError: the folder has no readable manifest.
    """
    path = run_folder / "report.html"
    write_text(path, page(read_run(run_folder)))
    return path


def page(run: Run) -> str:
    """The whole page as text."""
    template, health = environment().get_template("template.html.j2"), _health(run)
    return template.render(
        run=run,
        health=health,
        health_curves=diagnosis_figures.marked_curves(health) if health and health.diagnoses.marks else [],
        name=run.folder.resolve().name,
        findings=findings,
        losses=losses,
        words=words,
        pictures=_pictures(run),
        examples=_examples(run),
        cost=_cost(run),
        manifest=_manifest(run),
    )


def safe(value: Any) -> Any:
    """Escape foreign text and mark, in a style of their own, the characters that would hide or reorder it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return Markup("").join(_safe_character(character) for character in value)


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text, or its beginning and how much is left out."""
    return text if len(text) <= longest else f"{text[:longest]}\n… {len(text) - longest:,} more characters"


def _safe_character(character: str) -> Markup:
    shown = words.visible(character)
    return escape(character) if shown is None else Markup('<span class="unseen">{}</span>').format(shown)


def environment() -> jinja2.Environment:
    """The templates of this room: everything escaped, missing values an error, unseen characters shown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=safe,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shortened"] = shortened
    return environment


def _health(run: Run) -> Health | None:
    """None where a table is damaged: the rest of the page stands without it."""
    try:
        return read_health(run.folder)
    except RunFolderError:
        return None


def _pictures(run: Run) -> dict[str, Any]:
    drawn, missing = figures.small_multiples(run)
    window = figures.smoothing_window(len(run.metrics))
    curve = loss_figures.loss_curve(run.losses, run.loss_unit) if run.loss_unit else figures.learning_curve(run)
    beside = held_out_figures.held_out_panels(run.losses)
    pictures = {"curve": curve, "beside": beside, "metrics": drawn, "missing": missing, "window": window}
    pictures |= {"effects": _effects(run), "blocks": block_figures.block_panels(run.blocks)}
    if run.ranks is None or not findings.has_geometry(run):
        return pictures | {"ranks": None}
    grids, readings = geometry.grids(run.ranks), geometry.readings(run.ranks)
    overall = geometry.overall(run.ranks)
    return pictures | {
        "ranks": geometry_figures.mean_against_null(geometry.mean_curve(run.ranks), run.best_step),
        "heat_maps": geometry_figures.heat_maps(grids, readings),
        "has_null": overall.has_null,
        "colour_bar": geometry_figures.colour_bar(grids, overall),
        "readings": [*readings, overall] if len(readings) > 1 else readings,
        "finding": findings.geometry_finding(run.ranks),
    }


def _effects(run: Run) -> Picture | None:
    if run.effects is None or not run.effects.measured().step_R.size:
        return None
    (grid,) = geometry.grids(run.effects)
    return effect_figures.effect_curves(grid, geometry.overall(run.effects), run.best_step)


def _examples(run: Run) -> dict[str, Any]:
    sorted_pairs = by_change(pairs := pair_up(run.before, run.after))
    return {"total": len(pairs), "kinds": [_kind(change, sorted_pairs[change], len(pairs)) for change in CHANGES]}


def _kind(change: Change, pairs: Sequence[Pair], total: int) -> dict[str, Any]:
    return {
        "change": change,
        "name": CHANGE_NAMES[change],
        "count": len(pairs),
        "share": len(pairs) / total if total else 0.0,
        "shown": pairs[:EXAMPLES],
    }


def _cost(run: Run) -> list[tuple[str, str, str]]:
    """``(name, value, remark)`` of each figure of cost; a run that is still going has only its step time."""
    _, seconds_S = series(run.timings, "step_seconds")
    rows = []
    if summary := run.summary:
        share = summary.telemetry_seconds / summary.train_seconds if summary.train_seconds > 0 else float("nan")
        rows = [
            ("Training", words.duration(summary.train_seconds), f"{summary.steps} steps"),
            ("Telemetry", words.percent(share), f"of training time: {words.duration(summary.telemetry_seconds)}"),
            ("Peak memory", words.memory(summary.peak_memory_bytes), "largest at any moment"),
        ]
    if seconds_S.size:
        rows.append(("One step", words.duration(median(seconds_S.tolist())), f"median of {seconds_S.size}"))
    return rows


def _manifest(run: Run) -> list[tuple[str, str]]:
    """``(title, text)`` of every part of the manifest, as YAML."""
    commit = run.manifest.get("commit")
    commit = dict(commit) if isinstance(commit, dict) else {}
    diff = str(commit.pop("diff", None) or "")
    parts = [("recipe", _yaml(run.recipe)), ("commit", _yaml(commit))]
    parts += [(name.replace("_", " "), _yaml(run.manifest.get(name))) for name in MANIFEST_PARTS]
    return [(name, text) for name, text in [*parts, ("uncommitted changes", diff)] if text]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100) if value else ""
