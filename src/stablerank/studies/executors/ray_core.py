"""Cells on a Ray cluster: a task each, which starts the cell's process on its node and waits for it.

Contract: the cluster is the one that ``RAY_ADDRESS`` names, else one that ``ray start`` began on this machine, else
one that lives as long as this runner. Every node needs the study folder, the working directory and this library at the
same paths. A task takes one core unless ``resources`` says otherwise (``num_cpus``, ``num_gpus``, or a resource of the
user's own), and the arm's ``memory``. What waits for a place in the cluster counts as running. Ray retries nothing
itself: a task whose worker or node is lost is told to the runner.

Left out on purpose: Ray's object store, through which nothing goes, and Ray Tune, whose schedulers a fixed matrix does
not need.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stablerank.errors import MissingExtraError, RecipeError
from stablerank.studies.executors.local import GIB, how_it_ended
from stablerank.studies.executors.seam import Pool, Resources, Worker
from stablerank.studies.executors.work import order, work
from stablerank.studies.layout import StudyFolder

PATIENCE = 30.0
"""Seconds in which cancelled tasks must end."""


@dataclass(frozen=True)
class Ray:
    """A cluster; ``address`` as in `ray.init`."""

    resources: Resources = field(default_factory=dict)
    address: str | None = None

    @contextmanager
    def pool(self, study: StudyFolder, claim: int, jobs: int, needs: Mapping[str, float]) -> Iterator[Pool]:
        """See `Executor.pool`; a connection that was open before stays open."""
        options = _options(self.resources)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("Ray is not installed; run `pip install 'stablerank[ray]'`.") from error
        is_ours = not ray.is_initialized()
        if is_ours:
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="error")
            except ConnectionError as error:
                place = self.address or os.environ.get("RAY_ADDRESS")
                raise RecipeError(f"no Ray cluster answers at {place}; start one, or unset RAY_ADDRESS.") from error
        try:
            yield RayPool(ray, study, jobs, options)
        finally:
            if is_ours:
                ray.shutdown()


@dataclass(frozen=True)
class RayPool:
    """See `Pool`."""

    ray: Any
    study: StudyFolder
    jobs: int
    options: dict[str, Any]

    def has_room(self, memory: float, workers: Sequence[Worker]) -> bool:
        """The cluster finds the place."""
        return len(workers) < self.jobs

    def begin(self, cell: str, memory: float) -> "RayWorker":
        """A task that no other one shares a process with."""
        options = {**self.options, "name": cell, "max_retries": 0}
        if memory:
            options["memory"] = int(memory * GIB)
        threads = max(1, int(options["num_cpus"]))
        told = order(self.study.cell_path(cell), self.study.log_path(cell), threads)
        return RayWorker(self.ray, cell, memory, self.ray.remote(max_calls=1)(work).options(**options).remote(told))

    def stop(self, workers: Sequence[Worker]) -> None:
        """The task's process is killed, and its cell with it."""
        tasks = [worker.task for worker in workers if isinstance(worker, RayWorker)]
        for task in tasks:
            self.ray.cancel(task, force=True)
        if tasks:
            self.ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)


class RayWorker:
    """See `Worker`."""

    def __init__(self, ray: Any, cell: str, memory: float, task: Any) -> None:
        self.ray, self.cell, self.memory, self.task = ray, cell, memory, task

    @property
    def handle(self) -> str:
        """The task's id."""
        return f"ray task {self.task.task_id().hex()}"

    def is_running(self) -> bool:
        """Whether the task has no outcome."""
        return not self.ray.wait([self.task], timeout=0)[0]

    def ending(self) -> str:
        """The exit code, or the first sentence of what Ray says."""
        try:
            return how_it_ended(self.ray.get(self.task))
        except self.ray.exceptions.RayError as error:
            return f"was lost ({' '.join(str(error).split()).partition('. ')[0].rstrip('.')})"


def _options(resources: Resources) -> dict[str, Any]:
    """Ray's own options by their names, and everything else as the user's resources."""
    own = {name: value for name, value in resources.items() if name in ("num_cpus", "num_gpus")}
    others = {name: value for name, value in resources.items() if name not in own}
    if odd := [name for name, value in resources.items() if isinstance(value, str)]:
        raise RecipeError(f"--resource {odd[0]}={resources[odd[0]]} is no number, which Ray needs; mend it.")
    return {"num_cpus": 1, **own, **({"resources": others} if others else {})}
