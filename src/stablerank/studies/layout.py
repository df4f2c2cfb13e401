"""The study folder: where everything a study leaves behind has its one place.

Nothing inside names a place outside: the folder can be moved, and each path below is found from the folder alone.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudyFolder:
    """Paths of one study; ``cell`` is a cell's id, ``ARM--SEED``."""

    path: Path

    def find(self, spec: str) -> str:
        """What an arm's ``spec`` names: a file of this folder, else of the working directory; ``zoo:NAME`` stays."""
        inside = self.path / spec
        return str(inside) if inside.exists() else spec

    @property
    def plan_path(self) -> Path:
        """What is asked, and the rules that will judge it."""
        return self.path / "plan.yaml"

    @property
    def lock_path(self) -> Path:
        """The hash over the plan and all that decides its results."""
        return self.path / "plan.lock"

    @property
    def results_path(self) -> Path:
        """One sealed file a cell."""
        return self.path / "results"

    @property
    def verdict_path(self) -> Path:
        """What the rules came to."""
        return self.path / "verdict.json"

    @property
    def claim_path(self) -> Path:
        """Held locked by the runner and its cells for as long as any of them lives."""
        return self.path / "run.lock"

    @property
    def running_path(self) -> Path:
        """The cells under way, with their process ids; true only while `claim_path` is held."""
        return self.path / "running.json"

    def cell_path(self, cell: str) -> Path:
        """What the cell's process is told."""
        return self.path / "cells" / f"{cell}.json"

    def result_path(self, cell: str) -> Path:
        """What it found, sealed."""
        return self.results_path / f"{cell}.json"

    def log_path(self, cell: str) -> Path:
        """What it printed, over all its starts."""
        return self.path / "logs" / f"{cell}.log"

    def run_path(self, cell: str) -> Path:
        """The run folder of a training cell."""
        return self.path / "runs" / cell
