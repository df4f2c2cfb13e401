"""Run what a study still lacks: one process a cell, the most difficult first, several at a time if asked.

Contract: everything this file knows lies in the study folder, so a run that was killed at any moment is taken up by the
next: cells with a sealed result are behind us, unless they are stale (`stablerank.studies.staleness`); all others start
again (a training cell from its newest checkpoint). A cell that failed is tried again by the next run. A cell that died
without a result (killed, out of memory, its machine lost) starts again at once, ``retries`` times; then a failure is
written in its place, and the matrix goes on. After each round of seeds the kill rules are read, and cells that only
killed hypotheses need are left out. Results do not depend on ``jobs`` or on the executor but through the number of
threads that torch sees, which each result records.

Left out on purpose: retrying a cell that raised: the same cell raises again.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from stablerank.errors import RecipeError, RunFolderError
from stablerank.runs.atomic import write_json
from stablerank.studies.executors.local import Local
from stablerank.studies.executors.seam import Executor, Pool, Worker
from stablerank.studies.killing import KillWatch
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import Lock, locked_study
from stablerank.studies.plan import Cell, Plan, load_plan
from stablerank.studies.processes import claimed, sigterm_interrupts
from stablerank.studies.results import read_results
from stablerank.studies.selection import Where, selected
from stablerank.studies.staleness import inputs_of, stale
from stablerank.studies.status import CellState, State, status
from stablerank.studies.task import Found, read_task, write_result

POLL = 0.05
HERE = Local()

Progress = Callable[[str, State], None]
"""``progress(cell, state)``: where a cell stands now; ``missing`` for one that died and will start again."""


def run(
    path: str | Path,
    *,
    jobs: int = 1,
    cells: Collection[str] = (),
    where: Where | None = None,
    retries: int = 1,
    executor: Executor = HERE,
    progress: Progress = lambda cell, state: None,
) -> list[CellState]:
    """Run every cell that has no good result, and say where each of them stands.

    Args:
        path: the study folder.
        jobs: cells at a time.
        cells: ids of the cells to run, by default all.
        where: labels that the cells to run have (`stablerank.studies.selection`).
        retries: how often a cell that died starts again.
        executor: where the cells run.
        progress: told of every change.

    Raises:
        StablerankError: the study is not locked, was changed after its lock, holds a result that was tampered with, or
            is being run by somebody else; a cell that is none; an executor that is not there.
        KeyboardInterrupt: SIGINT or SIGTERM, after the cells under way were ended.
    """
    if jobs < 1:
        raise RecipeError(f"jobs is {jobs}, but at least one cell must run at a time; give 1 or more.")
    if retries < 0:
        raise RecipeError(f"retries is {retries}, but a cell cannot start again less than 0 times; give 0 or more.")
    study = StudyFolder(Path(path))
    plan = load_plan(study.plan_path)
    chosen = selected(plan, cells, where)
    with claimed(study) as claim, sigterm_interrupts():
        write_json(study.running_path, {})  # what a killed runner noted is true no more
        lock = locked_study(study.path)
        needs = {cell.arm: plan.arms[cell.arm].memory for cell in chosen}
        with executor.pool(study, claim, jobs, needs) as pool:
            _Runner(study, plan, lock, pool, jobs, retries, progress).go(chosen)
    ids = {cell.id for cell in chosen}
    return [state for state in status(study.path) if state.cell in ids]


class _Runner:
    """Cells that wait, cells under way, and what is known so far."""

    def __init__(
        self, study: StudyFolder, plan: Plan, lock: Lock, pool: Pool, jobs: int, retries: int, progress: Progress
    ) -> None:
        self.study, self.plan, self.lock, self.pool, self.progress = study, plan, lock, pool, progress
        self.jobs, self.retries = jobs, retries
        self.results, self.watch = read_results(study.results_path), KillWatch(plan)
        self.inputs: dict[str, str | None] = {}
        self.deaths: Counter[str] = Counter()
        self.workers: list[Worker] = []
        self.waiting: list[Cell] = []

    def go(self, cells: Collection[Cell]) -> None:
        """Until nothing waits and nothing runs; whatever ends it, no cell outlives it."""
        self._line_up(cells)
        try:
            self._leave_out_killed()
            while self.waiting or self.workers:
                self._begin_what_fits()
                if self._gather_finished():
                    self._leave_out_killed()
                else:
                    time.sleep(POLL)
        finally:
            self.pool.stop([worker for worker in self.workers if worker.is_running()])
            write_json(self.study.running_path, {})

    def _line_up(self, cells: Collection[Cell]) -> None:
        arms = {cell.arm for cell in cells}
        if self.lock.sha256 is None:
            self.inputs = {arm: inputs_of(self.study, self.plan, arm) for arm in arms}
        for name in stale(self.study, self.plan, self.results):
            del self.results[name]  # it counts as none, also for the kill rules
        for cell in cells:
            if self._is_done(cell.id):
                self.progress(cell.id, "done")
            else:
                self.waiting.append(cell)

    def _begin_what_fits(self) -> None:
        """In order, but a cell that must wait for memory lets smaller ones pass."""
        for cell in tuple(self.waiting):
            memory = self.plan.arms[cell.arm].memory
            if len(self.workers) < self.jobs and self.pool.has_room(memory, self.workers):
                self.waiting.remove(cell)
                self._begin(cell, memory)

    def _begin(self, cell: Cell, memory: float) -> None:
        self._tell(cell)
        self.study.result_path(cell.id).unlink(missing_ok=True)  # a failure, which this start replaces
        self.results.pop(cell.id, None)
        self.workers.append(self.pool.begin(cell.id, memory))
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
            "inputs_sha256": self.inputs.get(cell.arm),
        }
        place, run = self.study.cell_path(cell.id), self.study.run_path(cell.id)
        if run.exists() and (not place.exists() or json.loads(place.read_text()) != told):
            if self.lock.sha256 is not None:
                raise RunFolderError(
                    f"{run} was begun under another plan or lock; move it away and run the study again."
                )
            self._set_aside(run)
        write_json(place, told)

    def _set_aside(self, run: Path) -> None:
        """An exploratory plan may change; what was begun under the former one is kept."""
        aside = run.parent / ".stale"
        aside.mkdir(exist_ok=True)
        run.rename(aside / f"{run.name}-{sum(1 for _ in aside.glob(f'{run.name}-*'))}")

    def _gather_finished(self) -> bool:
        """Take in the results of the cells that ended; whether there were any."""
        ended = [worker for worker in self.workers if not worker.is_running()]
        self.workers = [worker for worker in self.workers if worker not in ended]
        for worker in ended:
            self.results |= read_results(self.study.results_path, [worker.cell])
            if worker.cell not in self.results:
                self._bury(worker)
            else:
                self.progress(worker.cell, self.results[worker.cell]["status"])
        if ended:
            self._note_running()
        return bool(ended)

    def _bury(self, worker: Worker) -> None:
        """A cell died: once more, or written down as failed."""
        self.deaths[worker.cell] += 1
        starts = self.deaths[worker.cell]
        if starts <= self.retries:
            self.waiting.insert(0, next(cell for cell in self.plan.cells() if cell.id == worker.cell))
            self.progress(worker.cell, "missing")
            return
        often = "" if starts == 1 else f", the last of {starts} starts"
        task = read_task(self.study.cell_path(worker.cell))
        failure = write_result(self.study, task, Found(), f"its process {worker.ending()}{often}", 0.0)
        self.results[worker.cell] = failure
        self.progress(worker.cell, "failed")

    def _leave_out_killed(self) -> None:
        self.watch.look(self.results)
        killed = self.watch.unneeded_arms()
        for cell in self.waiting:
            if cell.arm in killed:
                self.progress(cell.id, "not needed")
        self.waiting = [cell for cell in self.waiting if cell.arm not in killed]

    def _note_running(self) -> None:
        write_json(self.study.running_path, {worker.cell: worker.handle for worker in self.workers})

    def _is_done(self, cell: str) -> bool:
        return cell in self.results and self.results[cell]["status"] == "done"
