"""What a cell is told and what it leaves: ``cells/ID.json`` in, a sealed ``results/ID.json`` out.

``inputs_sha256`` tells what a result of a study without a lock hangs on (`stablerank.studies.staleness`); under a lock
``study_sha256`` says it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stablerank.errors import RunFolderError
from stablerank.runs.atomic import write_json
from stablerank.runs.manifest import code_state, device_state, package_versions
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import Kind
from stablerank.studies.sealing import seal

Numbers = dict[str, float | None]


class Task(BaseModel):
    """All that a cell is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: str
    arm: str
    seed: int
    kind: Kind
    spec: str
    overrides: tuple[str, ...]
    study_sha256: str | None
    exploratory: bool
    inputs_sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """What a kind of cell gives: one value a column, and one a column and unit."""

    values: Mapping[str, float | None] = field(default_factory=dict)
    units: Mapping[str, Numbers] = field(default_factory=dict)


def read_task(path: Path) -> Task:
    """Read ``cells/ID.json``; raises `RunFolderError` when it is none."""
    try:
        return Task.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise RunFolderError(
            f"{path} is not a cell of a study ({reason}); `stablerank study run` writes and runs cells."
        ) from error


def write_result(study: StudyFolder, task: Task, found: Found, error: str | None, seconds: float) -> dict[str, Any]:
    """Seal and write what a cell came to: ``failed`` where there is an error, else ``done``."""
    own = ("cell", "arm", "seed", "kind", "study_sha256", "exploratory", "inputs_sha256")
    result = seal(
        {
            **task.model_dump(include=set(own)),
            "status": "failed" if error else "done",
            "error": error,
            "seconds": seconds,
            "values": found.values,
            "units": found.units,
            "provenance": _provenance(task),
        }
    )
    write_json(study.result_path(task.cell), result)
    return result


def _provenance(task: Task) -> dict[str, Any]:
    commit = code_state()
    return {
        "spec": task.spec,
        "overrides": list(task.overrides),
        "commit": {key: commit[key] for key in ("hash", "dirty")},
        "packages": package_versions(),
        "device": device_state(),
    }
