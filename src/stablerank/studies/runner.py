"""Run what a study still lacks: one process a cell, the most difficult first, several at a time if asked.

Contract: everything this file knows lies in the study folder, so a run that was killed at any moment is taken up by the
next: cells with a sealed result are behind us, all others start again (a training cell from its newest checkpoint).
A cell that failed is tried again. After each round of seeds the kill rules are read, and cells that only killed
hypotheses need are left out. Results do not depend on ``jobs`` but through the number of threads that torch sees, which
each result records.

Left out on purpose: retries (a cell that dies is named, and the same command starts it again) and other machines.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from stablerank.errors import RecipeError, RunFolderError
from stablerank.runs.atomic import write_json
from stablerank.studies.killing import KillWatch
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import Lock, locked_study
from stablerank.studies.plan import Cell, Plan, load_plan
from stablerank.studies.processes import Child, claimed, sigterm_interrupts, stop, threads_for
from stablerank.studies.results import read_results
from stablerank.studies.status import CellState, State, status

POLL = 0.05

Progress = Callable[[str, State], None]
"""``progress(cell, state)``: where a cell stands now; ``missing`` for one that died without a result."""


def run(path: str | Path, *, jobs: int = 1, progress: Progress = lambda cell, state: None) -> list[CellState]:
    """Run every cell that has no good result, and say where each cell stands.

    Raises:
        StablerankError: the study is not locked, was changed after its lock, holds a result that was tampered with, or
            is being run by somebody else.
        KeyboardInterrupt: SIGINT or SIGTERM, after the cells under way were ended.
    """
    if jobs < 1:
        raise RecipeError(f"jobs is {jobs}, but at least one cell must run at a time; give 1 or more.")
    study = StudyFolder(Path(path))
    plan = load_plan(study.plan_path)
    with claimed(study) as claim, sigterm_interrupts():
        write_json(study.running_path, {})  # what a killed runner noted is true no more
        lock = locked_study(study.path)
        _Runner(study, plan, lock, claim, jobs, progress).go()
    return status(study.path)


class _Runner:
    """Cells that wait, cells under way, and what is known so far."""

    def __init__(self, study: StudyFolder, plan: Plan, lock: Lock, claim: int, jobs: int, progress: Progress) -> None:
        self.study, self.plan, self.lock, self.progress = study, plan, lock, progress
        self.claim, self.jobs, self.threads = claim, jobs, threads_for(jobs)
        self.results, self.watch = read_results(study.results_path), KillWatch(plan)
        self.children: list[Child] = []
        self.waiting: list[Cell] = []
        for cell in plan.cells():
            if self._is_done(cell.id):
                progress(cell.id, "done")
            else:
                self.waiting.append(cell)

    def go(self) -> None:
        """Until nothing waits and nothing runs; whatever ends it, no cell outlives it."""
        try:
            self._leave_out_killed()
            while self.waiting or self.children:
                while self.waiting and len(self.children) < self.jobs:
                    self._begin(self.waiting.pop(0))
                if self._gather_finished():
                    self._leave_out_killed()
                else:
                    time.sleep(POLL)
        finally:
            stop(self.children)
            write_json(self.study.running_path, {})

    def _begin(self, cell: Cell) -> None:
        self._tell(cell)
        self.study.result_path(cell.id).unlink(missing_ok=True)  # a failure, which this start replaces
        self.results.pop(cell.id, None)
        self.children.append(Child(self.study, cell.id, self.claim, self.threads))
        self._note_running()
        self.progress(cell.id, "running")

    def _tell(self, cell: Cell) -> None:
        """Write ``cells/ID.json``; a run folder that was begun under another plan is not this cell's to go on with."""
        told = {
            "cell": cell.id,
            "arm": cell.arm,
            "seed": cell.seed,
            "kind": cell.kind,
            "spec": cell.spec,
            "overrides": list(cell.overrides),
            "study_sha256": self.lock.sha256,
            "exploratory": self.lock.exploratory,
        }
        place, run = self.study.cell_path(cell.id), self.study.run_path(cell.id)
        if run.exists() and (not place.exists() or json.loads(place.read_text()) != told):
            raise RunFolderError(f"{run} was begun under another plan or lock; move it away and run the study again.")
        write_json(place, told)

    def _gather_finished(self) -> bool:
        """Take in the results of the processes that ended; whether there were any."""
        ended = [child for child in self.children if not child.is_running()]
        self.children = [child for child in self.children if child not in ended]
        for child in ended:
            self.results |= read_results(self.study.results_path, [child.cell])
            self.progress(child.cell, self.results[child.cell]["status"] if child.cell in self.results else "missing")
        if ended:
            self._note_running()
        return bool(ended)

    def _leave_out_killed(self) -> None:
        self.watch.look(self.results)
        killed = self.watch.unneeded_arms()
        for cell in self.waiting:
            if cell.arm in killed:
                self.progress(cell.id, "not needed")
        self.waiting = [cell for cell in self.waiting if cell.arm not in killed]

    def _note_running(self) -> None:
        write_json(self.study.running_path, {child.cell: child.process.pid for child in self.children})

    def _is_done(self, cell: str) -> bool:
        return cell in self.results and self.results[cell]["status"] == "done"
