"""The numbers of a study, laid out by its axes: a table a column, an arm's mean over seeds with its interval a field.

Contract: `summary` reads sealed results only, so the same records give the same bytes. A mean and its interval are
those of the rule ``difference`` against zero (`stablerank.studies.inference`): seeds and units are two crossed
samples, few seeds count as few, and with one seed the interval is unbounded. Cells that failed or are missing are
counted; a stale result counts as missing. Of a confirmatory study no number is shown while a needed cell has no
result: who sees numbers before the last cell may stop when they please.

In Markdown the labels of the last axis are the columns and all other axes the rows; arms without labels stand below.

Left out on purpose: what the numbers mean (`stablerank study verdict` judges the plan's rules), and corrections over
the fields of a table, which is a description.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stablerank.errors import RecipeError
from stablerank.runs.strict_json import strict
from stablerank.studies.inference import Outcome, evaluate
from stablerank.studies.killing import KillWatch
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import LockError, study_terms, verify_results
from stablerank.studies.plan import Plan
from stablerank.studies.results import Result, Table, read_results, tabulate
from stablerank.studies.rules import Difference
from stablerank.studies.staleness import stale
from stablerank.studies.tampering import in_one_line

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Mean:
    """One arm in one column; numbers are None where they are not defined, bounds also where there are none."""

    arm: str
    labels: Labels
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    units: int


@dataclass(frozen=True)
class Summary:
    """A study's numbers; ``cells`` counts each arm's by state, ``columns`` is empty where none may be shown."""

    question: str
    mode: str
    lock: str | None
    confidence: float
    seeds: tuple[int, ...]
    axes: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]
    cells: Mapping[str, Mapping[str, int]]
    columns: Mapping[str, tuple[Mean, ...]]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def summary(folder: str | Path, columns: Sequence[str] = ()) -> Summary:
    """Means and intervals of every column that the results have, or of ``columns`` alone.

    Raises:
        LockError: a confirmatory study without a lock, or results that do not count.
        RecipeError: a column that no result has.
    """
    study = StudyFolder(Path(folder))
    terms = study_terms(study.path)
    if faults := verify_results(study.path):
        raise LockError(f"{study.path} holds results that do not count: {in_one_line(faults)}; move them away.")
    every, plan = read_results(study.results_path), terms.plan
    old = stale(study, plan, every)
    results = {name: result for name, result in every.items() if name not in old}
    missing = _missing(plan, results)
    table = tabulate(results.values())
    shown = {} if missing and plan.mode == "confirmatory" else _columns(plan, table, columns)
    return Summary(
        plan.question,
        plan.mode,
        terms.sha256,
        plan.confidence,
        tuple(sorted(plan.seeds)),
        plan.axes(),
        tuple(_problems(plan, results, missing)),
        _counts(plan, results),
        shown,
    )


def _missing(plan: Plan, results: Mapping[str, Result]) -> list[str]:
    watch = KillWatch(plan)
    watch.look(results)
    unneeded = watch.unneeded_arms()
    return [cell.id for cell in plan.cells() if cell.arm not in unneeded and cell.id not in results]


def _problems(plan: Plan, results: Mapping[str, Result], missing: Sequence[str]) -> Iterator[str]:
    if missing:
        hidden = "; numbers of a confirmatory study are shown with its last cell" if plan.mode == "confirmatory" else ""
        yield f"{len(missing)} of {len(plan.cells())} cells have no result, the first is {missing[0]}{hidden}."
    for name, result in results.items():
        if result["status"] != "done":
            yield f"Cell {name} failed ({str(result['error']).rstrip('.')})."


def _counts(plan: Plan, results: Mapping[str, Result]) -> dict[str, dict[str, int]]:
    counts = {arm: {"done": 0, "failed": 0, "missing": 0} for arm in plan.arms}
    for cell in plan.cells():
        counts[cell.arm][results[cell.id]["status"] if cell.id in results else "missing"] += 1
    return counts


def _columns(plan: Plan, table: Table, wanted: Sequence[str]) -> dict[str, tuple[Mean, ...]]:
    found = sorted(dict.fromkeys(table.column_R.tolist()))
    for column in wanted:
        if column not in found:
            raise RecipeError(f"no result has column {column!r}; the results have {', '.join(found) or 'none'}.")
    return {column: tuple(_means(plan, table, column)) for column in wanted or found}


def _means(plan: Plan, table: Table, column: str) -> Iterator[Mean]:
    """Of every arm that has the column, in the plan's order."""
    given = set(table.arms(column))
    for name, arm in plan.arms.items():
        if name in given:
            found = evaluate(Difference(column=column, arm=name), table, plan.confidence)
            bounds = (strict(found.estimate), strict(found.low), strict(found.high))
            yield Mean(name, arm.labels, *bounds, _seeds(found, table, name, column), found.n_units)


def _seeds(found: Outcome, table: Table, arm: str, column: str) -> int:
    return found.n_seeds if found.is_defined else len(set(table.seed_R[table.rows(arm, column)].tolist()))


# --- Markdown ---------------------------------------------------------------------------------------------------


def markdown(found: Summary) -> str:
    """The whole summary."""
    lock = "not locked" if found.lock is None else f"lock {found.lock[:12]}"
    setting = f"{found.mode}, {lock}, {len(found.seeds)} seeds, {100 * found.confidence:g} % intervals"
    lines = [f"# {found.question}", "", setting]
    for problem in found.problems:
        lines += ["", problem]
    for column, means in found.columns.items():
        lines += ["", f"## {column}", ""]
        lines += list(_blocks(found, means))
    return "\n".join(lines)


def _blocks(found: Summary, means: Sequence[Mean]) -> Iterator[str]:
    of_arm = {mean.arm: mean for mean in means}
    placed = [mean for mean in means if mean.labels.keys() == found.axes.keys() and found.axes]
    plain = [mean for mean in of_arm.values() if mean not in placed]
    if placed:
        yield from _grid(found, placed)
    if placed and plain:
        yield ""
    if plain:
        yield from _rows(["arm", "mean (interval)"], [[mean.arm, _field(found, mean)] for mean in plain])


def _grid(found: Summary, means: Sequence[Mean]) -> Iterator[str]:
    """The last axis across, the others down."""
    *down, across = found.axes
    field_of = {tuple(mean.labels.values()): _field(found, mean) for mean in means}
    given = {mean.labels[across] for mean in means}
    labels = [label for label in found.axes[across] if label in given]
    rows = dict.fromkeys(tuple(mean.labels[axis] for axis in down) for mean in means)
    header = [*down, *(f"{across} {label}" for label in labels)]
    yield from _rows(header, [[*row, *(field_of.get((*row, label), "") for label in labels)] for row in rows])


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _field(found: Summary, mean: Mean) -> str:
    """The mean with its interval; the number of seeds where some are missing."""
    if mean.mean is None:
        return "not defined"
    interval = "" if mean.low is None or mean.high is None else f" ({mean.low:.4g} to {mean.high:.4g})"
    few = "" if mean.seeds == len(found.seeds) else f", {mean.seeds} of {len(found.seeds)} seeds"
    return f"{mean.mean:.4g}{interval}{few}"
