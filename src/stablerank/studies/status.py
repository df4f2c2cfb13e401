"""Where a study stands, cell by cell, from its folder alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stablerank.studies.killing import KillWatch
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import Cell, load_plan
from stablerank.studies.processes import is_claimed
from stablerank.studies.results import Result, read_results
from stablerank.studies.staleness import stale

State = Literal["done", "running", "missing", "failed", "stale", "not needed"]
STATES: tuple[State, ...] = ("done", "running", "missing", "failed", "stale", "not needed")


@dataclass(frozen=True)
class CellState:
    """One cell: ``not needed`` will not run because no living rule needs it, ``missing`` is still to run.

    ``stale`` has a result that the plan has left behind (`stablerank.studies.staleness`), and will run again.
    """

    cell: str
    arm: str
    seed: int
    kind: str
    state: State
    seconds: float | None
    error: str | None


def status(path: str | Path) -> list[CellState]:
    """Every cell of the plan in the order it runs.

    Raises:
        StablerankError: no plan, or a result that was tampered with.
    """
    study = StudyFolder(Path(path))
    plan = load_plan(study.plan_path)
    results = read_results(study.results_path)
    old = stale(study, plan, results)
    fresh = {name: result for name, result in results.items() if name not in old}
    watch, running, cells = KillWatch(plan), running_cells(study), plan.cells()
    if any(cell.id not in fresh for cell in cells):  # only what has not run can have been left out
        watch.look(fresh)
    killed = watch.unneeded_arms()
    return [_state(cell, fresh.get(cell.id), cell.id in running, cell.arm in killed, cell.id in old) for cell in cells]


def running_cells(study: StudyFolder) -> frozenset[str]:
    """Cells under way now; what a killed runner noted is not believed."""
    if not is_claimed(study) or not study.running_path.exists():
        return frozenset()
    return frozenset(json.loads(study.running_path.read_text()))


def _state(cell: Cell, result: Result | None, is_running: bool, is_killed: bool, is_stale: bool) -> CellState:
    own = (cell.id, cell.arm, cell.seed, cell.kind)
    if is_running:
        return CellState(*own, "running", None, None)
    if result is None:
        return CellState(*own, "not needed" if is_killed else "stale" if is_stale else "missing", None, None)
    return CellState(*own, result["status"], result["seconds"], result["error"])
