"""The run folder: where everything a run leaves behind has its one place.

A folder belongs to one run for ever. A second start on it resumes or says what is there; it never overwrites.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablerank.errors import RunFolderError
from stablerank.runs.atomic import write_json
from stablerank.runs.tables import JsonlTable, ShardedTable

COMPLETE = "complete.json"
"""Marker that a checkpoint folder was written to its end; a checkpoint without it is debris of a kill."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and tables of one run."""

    path: Path

    @property
    def manifest_path(self) -> Path:
        """What ran: resolved recipe, code, packages, device, seeds, hashes."""
        return self.path / "manifest.json"

    @property
    def summary_path(self) -> Path:
        """What it came to; its presence marks a finished run."""
        return self.path / "summary.json"

    @property
    def route_path(self) -> Path:
        """Which trained matrix which optimiser steps, where the recipe routes."""
        return self.path / "route.json"

    @property
    def report_path(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"

    @property
    def model_path(self) -> Path:
        """The trained adapter or model, as stock PEFT or transformers loads it."""
        return self.path / "model"

    @property
    def checkpoints_path(self) -> Path:
        """Checkpoints of the trainer; only those with the marker `COMPLETE` count."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> JsonlTable:
        """One row an optimiser step."""
        return JsonlTable(self.path / "metrics.jsonl")

    @property
    def timings(self) -> JsonlTable:
        """Seconds a step, kept apart from the metrics because no two runs share them."""
        return JsonlTable(self.path / "timings.jsonl")

    @property
    def evaluations(self) -> JsonlTable:
        """One row a held-out evaluation."""
        return JsonlTable(self.path / "evaluations.jsonl")

    @property
    def alarms(self) -> JsonlTable:
        """One row an alarm that was raised."""
        return JsonlTable(self.path / "alarms.jsonl")

    @property
    def geometry(self) -> ShardedTable:
        """Geometry rows (see `GeometryRow`)."""
        return ShardedTable(self.path / "geometry")

    @property
    def rollouts(self) -> ShardedTable:
        """Prompts, completions, rewards and advantages."""
        return ShardedTable(self.path / "rollouts")

    @property
    def examples(self) -> ShardedTable:
        """Log-likelihoods of held-out and training examples, one row an example and evaluation."""
        return ShardedTable(self.path / "examples")

    def manifest(self) -> dict[str, Any]:
        """Read the manifest; raises `RunFolderError` when this is no run folder."""
        try:
            manifest: dict[str, Any] = json.loads(self.manifest_path.read_text())
            if not isinstance(manifest["recipe"], dict):
                raise TypeError("it holds no recipe")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunFolderError(
                f"{self.path} is not a run folder: its manifest.json is missing or unreadable ({error!r:.120}); "
                "give the folder that `stablerank train` wrote."
            ) from error
        return manifest

    def summary(self) -> dict[str, Any]:
        """What the run came to; only a finished run has one."""
        if not self.is_complete():
            raise RunFolderError(
                f"{self.path} is not finished; go on with `stablerank train --resume {self.path}` first."
            )
        summary: dict[str, Any] = json.loads(self.summary_path.read_text())
        return summary

    def is_complete(self) -> bool:
        """Whether the run has finished."""
        return self.summary_path.exists()

    def complete_checkpoints(self) -> list[tuple[int, Path]]:
        """``(step, folder)`` of every checkpoint that was written to its end, oldest first."""
        found = [(int(p.name.rpartition("-")[2]), p) for p in self.checkpoints_path.glob("checkpoint-*")]
        return sorted((step, path) for step, path in found if (path / COMPLETE).exists())

    def truncate(self, last_step: int) -> None:
        """Cut every table back to ``last_step``, the step of the checkpoint that a resume starts from."""
        for table in (self.metrics, self.timings, self.evaluations, self.alarms):
            table.truncate(last_step)
        for shards in (self.geometry, self.rollouts, self.examples):
            shards.truncate(last_step)


def claim(path: Path, manifest: dict[str, Any]) -> RunFolder:
    """Make ``path`` the folder of a new run, or refuse when something is there already."""
    folder = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_occupied = any(path.iterdir())
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be made a folder ({error.strerror}); choose another one with `output=FOLDER`."
        ) from error
    if is_occupied:
        raise RunFolderError(_occupied(folder))
    write_json(folder.manifest_path, manifest)
    return folder


def _occupied(folder: RunFolder) -> str:
    if not folder.manifest_path.exists():
        return f"{folder.path} is not empty and is not a run folder; choose another one with `output=FOLDER`."
    if folder.is_complete():
        return (
            f"{folder.path} holds a finished run; read it with `stablerank report {folder.path}` "
            "or choose another one with `output=FOLDER`."
        )
    return (
        f"{folder.path} holds an unfinished run; go on with `stablerank train --resume {folder.path}` "
        "or choose another one with `output=FOLDER`."
    )
