"""What a runner asks of an executor, and nothing more.

Contract: the unit is one process of ``stablerank cell FILE`` on a cell that is written out, in a study folder that the
process can reach under the same path. What it found lies in ``results/ID.json``; an executor carries no result. A cell
that ended without one died, and the runner alone decides whether it starts again: executors never retry. When the
runner ends, for whatever reason, its local and Ray cells end with it; Slurm's go on, and each cell holds a claim of
its own, so that a second start waits for them instead of working beside them.

Left out on purpose: moving files. Studies on several machines need one file system.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from stablerank.errors import RecipeError
from stablerank.studies.layout import StudyFolder

Resources = Mapping[str, float | int | str]
"""What a scheduler is asked for beside a core, by the scheduler's own names."""


class Worker(Protocol):
    """One cell under way; ``handle`` names it to the user: a process id, or a job of a scheduler."""

    cell: str
    memory: float

    @property
    def handle(self) -> int | str:
        """For `running.json`."""

    def is_running(self) -> bool:
        """Whether it is still at work, or waiting for a place."""

    def ending(self) -> str:
        """How it ended, in words that follow "its process"; asked only of one that left no result."""


class Pool(Protocol):
    """Begins and ends cells."""

    def has_room(self, memory: float, workers: Sequence[Worker]) -> bool:
        """Whether a cell that needs so many GiB may begin beside those under way."""

    def begin(self, cell: str, memory: float) -> Worker:
        """Start a cell whose ``cells/ID.json`` is written."""

    def stop(self, workers: Sequence[Worker]) -> None:
        """End cells with everything they started; returns when they are gone."""


class Executor(Protocol):
    """Opens a pool for one study."""

    def pool(
        self, study: StudyFolder, claim: int, jobs: int, needs: Mapping[str, float]
    ) -> AbstractContextManager[Pool]:
        """A pool for cells ``jobs`` at a time; ``needs`` holds the GiB that a cell of each arm asks for.

        Raises:
            StablerankError: an arm that can never run here, or a scheduler that cannot be reached.
        """


def parse_resources(texts: Sequence[str]) -> Resources:
    """``KEY=VALUE`` as numbers where they are.

    Raises:
        RecipeError: something else.
    """
    found: dict[str, float | int | str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals or not value:
            raise RecipeError(f"--resource {text!r} is not KEY=VALUE; write it like `--resource num_gpus=1`.")
        found[key] = _number(value)
    return found


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
