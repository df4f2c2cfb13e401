"""Cells as Slurm jobs, through submitit: a job each, which starts the cell's process on its node and waits for it.

Contract: run on a machine that has ``sbatch``, in folders that all nodes share. ``resources`` are submitit's
parameters (``slurm_partition``, ``timeout_min``, ``gpus_per_node``, ``cpus_per_task``); a job takes one core, a day
and the arm's ``memory`` unless they say otherwise. At most ``jobs`` jobs are queued or running at a time, also in
submitit's local mode, which knows no limit of its own. Slurm's and submitit's files lie in ``logs/submitit``.

Ctrl-C cancels the jobs. Jobs of a runner that was killed go on; those of the next wait for them cell by cell.

Left out on purpose: job arrays, which would keep failed cells from starting again one by one.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from stablerank.errors import MissingExtraError, RecipeError
from stablerank.studies.executors.local import how_it_ended
from stablerank.studies.executors.seam import Pool, Resources, Worker
from stablerank.studies.executors.work import order, work
from stablerank.studies.layout import StudyFolder

DAY = 24 * 60
"""Minutes."""


@dataclass(frozen=True)
class Slurm:
    """A cluster, or submitit's stand-in for one on this machine."""

    resources: Resources = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"

    @contextmanager
    def pool(self, study: StudyFolder, claim: int, jobs: int, needs: Mapping[str, float]) -> Iterator[Pool]:
        """See `Executor.pool`."""
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError("submitit is not installed; run `pip install 'stablerank[slurm]'`.") from error
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise RecipeError("there is no `sbatch` here; run the study on a machine that submits Slurm jobs.")
        executor = submitit.AutoExecutor(study.log_path("submitit").with_suffix(""), cluster=self.cluster)
        try:
            executor.update_parameters(**{"cpus_per_task": 1, "timeout_min": DAY, **self.resources})
        except (NameError, TypeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise RecipeError(f"submitit refuses a --resource ({reason}); see its documentation.") from error
        yield SlurmPool(executor, study, jobs, int(self.resources.get("cpus_per_task", 1)))


@dataclass(frozen=True)
class SlurmPool:
    """See `Pool`."""

    executor: Any
    study: StudyFolder
    jobs: int
    threads: int

    def has_room(self, memory: float, workers: Sequence[Worker]) -> bool:
        """Slurm finds the place; here stands the limit."""
        return len(workers) < self.jobs

    def begin(self, cell: str, memory: float) -> "SlurmWorker":
        """Submit one job."""
        if memory:
            self.executor.update_parameters(mem_gb=memory)
        self.executor.update_parameters(name=cell)
        told = order(self.study.cell_path(cell), self.study.log_path(cell), self.threads)
        return SlurmWorker(cell, memory, self.executor.submit(work, told))

    def stop(self, workers: Sequence[Worker]) -> None:
        """Cancel the jobs, and their cells with them."""
        jobs = [worker.job for worker in workers if isinstance(worker, SlurmWorker)]
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.wait()


class SlurmWorker:
    """See `Worker`."""

    def __init__(self, cell: str, memory: float, job: Any) -> None:
        self.cell, self.memory, self.job = cell, memory, job

    @property
    def handle(self) -> str:
        """The job's number."""
        return f"job {self.job.job_id}"

    def is_running(self) -> bool:
        """Whether the job is queued or at work."""
        return not self.job.done()

    def ending(self) -> str:
        """The exit code, or Slurm's word for the job's state."""
        if self.job.exception() is None:
            return how_it_ended(self.job.result())
        return f"was lost (job {self.job.job_id}: {self.job.state.lower()})"
