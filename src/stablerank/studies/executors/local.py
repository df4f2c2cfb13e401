"""Cells on this machine: at most one a core, and as many as memory holds where the plan says what a cell needs."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from stablerank.errors import RecipeError
from stablerank.studies.executors.seam import Pool, Worker
from stablerank.studies.layout import StudyFolder
from stablerank.studies.processes import Child, cores, stop, threads_for

GIB = 2**30


@dataclass(frozen=True)
class Local:
    """This machine; ``memory`` GiB for all cells together, by default what the machine has."""

    memory: float | None = None

    @contextmanager
    def pool(self, study: StudyFolder, claim: int, jobs: int, needs: Mapping[str, float]) -> Iterator[Pool]:
        """See `Executor.pool`."""
        limit = _installed() if self.memory is None else self.memory
        for arm, memory in needs.items():
            if memory > limit:
                raise RecipeError(
                    f"a cell of arm {arm} asks for {memory:g} GiB, but all cells together have {limit:.4g} GiB here; "
                    "ask for less, or raise `--memory`."
                )
        slots = min(jobs, cores())
        yield LocalPool(study, claim, slots, limit)


@dataclass(frozen=True)
class LocalPool:
    """See `Pool`."""

    study: StudyFolder
    claim: int
    slots: int
    limit: float

    def has_room(self, memory: float, workers: Sequence[Worker]) -> bool:
        """One core and the memory that is asked for."""
        return len(workers) < self.slots and memory + sum(worker.memory for worker in workers) <= self.limit

    def begin(self, cell: str, memory: float) -> "LocalWorker":
        """A process group of its own, which ends with the runner."""
        return LocalWorker(cell, memory, Child(self.study, cell, self.claim, threads_for(self.slots)))

    def stop(self, workers: Sequence[Worker]) -> None:
        """SIGTERM, then SIGKILL."""
        stop(worker.child for worker in workers if isinstance(worker, LocalWorker))


class LocalWorker:
    """See `Worker`."""

    def __init__(self, cell: str, memory: float, child: Child) -> None:
        self.cell, self.memory, self.child = cell, memory, child

    @property
    def handle(self) -> int:
        """The process id."""
        return self.child.process.pid

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.child.is_running()

    def ending(self) -> str:
        """By signal or exit code."""
        return how_it_ended(self.child.process.returncode)


def how_it_ended(code: int) -> str:
    """A return code in words."""
    if code >= 0:
        return f"ended with exit code {code} and no result"
    hint = ", as one that runs out of memory is" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def _installed() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
