"""One cell: an arm with a seed, done in a process of its own, and sealed as ``results/ID.json``.

Contract: `run_cell` reads ``cells/ID.json`` and always leaves a sealed result, of status ``failed`` where the work
raised; only a signal leaves none. ``train`` runs a recipe in ``runs/ID``, taking up what an earlier start left there,
and reads values and units from the finished run folder. ``measure`` certifies the stable rank of every matrix of a
checkpoint. A value that is not defined is None.

Units pair results across arms: a held-out problem is known by the hash of its prompt, a matrix by its name.

Left out on purpose: kinds of later rooms (score, bestofn, compress); each is one function and one line in `KINDS`.
"""

import hashlib
import math
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stablerank.dynamics.overfitting import Course
from stablerank.errors import ModelError, RecipeError, RunFolderError, StablerankError
from stablerank.runs.atomic import write_json
from stablerank.runs.folder import RunFolder
from stablerank.runs.manifest import code_state, device_state, package_versions
from stablerank.studies.courses import columns_of
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import LOSSES, Kind
from stablerank.studies.sealing import seal

if TYPE_CHECKING:
    from stablerank.probes.sources.stored import Problem
    from stablerank.training.recipe import AnyRecipe

Row = Mapping[str, Any]
Numbers = dict[str, float | None]


class Task(BaseModel):
    """What ``cells/ID.json`` holds: all that a cell is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: str
    arm: str
    seed: int
    kind: Kind
    spec: str
    overrides: tuple[str, ...]
    study_sha256: str | None
    exploratory: bool


@dataclass(frozen=True)
class Found:
    """What a kind of cell gives: one value a column, and one a column and unit."""

    values: Numbers = field(default_factory=dict)
    units: dict[str, Numbers] = field(default_factory=dict)


def run_cell(path: Path) -> dict[str, Any]:
    """Do the work of one cell and write its sealed result, which is returned.

    Raises:
        RunFolderError: ``path`` is no cell of a study.
    """
    task, study = read_task(path), StudyFolder(path.resolve().parents[1])
    started = time.perf_counter()
    try:
        found, error = KINDS[task.kind](task, study), None
    except Exception as problem:  # whatever went wrong is what this cell came to
        traceback.print_exc()
        found, error = Found(), _one_line(problem)
    result = seal(
        {
            **task.model_dump(include={"cell", "arm", "seed", "kind", "study_sha256", "exploratory"}),
            "status": "failed" if error else "done",
            "error": error,
            "seconds": time.perf_counter() - started,
            "values": found.values,
            "units": found.units,
            "provenance": _provenance(task),
        }
    )
    write_json(study.result_path(task.cell), result)
    return result


def read_task(path: Path) -> Task:
    """Read ``cells/ID.json``; raises `RunFolderError` when it is none."""
    try:
        return Task.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise RunFolderError(
            f"{path} is not a cell of a study ({reason}); `stablerank study run` writes and runs cells."
        ) from error


def _train(task: Task, study: StudyFolder) -> Found:
    # The trainer takes seconds to import, of which measuring has no need.
    from stablerank.training.recipe import Recipe, load_recipe

    run = RunFolder(study.run_path(task.cell))
    recipe = load_recipe(study.find(task.spec), task.overrides)
    recipe = recipe.model_copy(update={"seed": task.seed, "output": str(run.path)})
    _train_or_go_on(recipe, run)
    return _of_run(run, recipe.evaluation.pass_reward) if isinstance(recipe, Recipe) else _of_losses(run)


def _train_or_go_on(recipe: "AnyRecipe", run: RunFolder) -> None:
    from stablerank.training.session import resume, start

    if not run.manifest_path.exists():
        # A kill before the manifest was in place leaves at most its temporary file.
        for debris in run.path.glob(f".{run.manifest_path.name}.*"):
            debris.unlink()
        start(recipe, _Log())
        return
    begun = run.manifest()["recipe"]
    if {**begun, "output": ""} != {**recipe.resolved(), "output": ""}:
        raise RunFolderError(f"{run.path} was begun with another recipe; move it away and run the study again.")
    resume(run.path, _Log())


def _of_run(run: RunFolder, pass_reward: float) -> Found:
    """Values and units of a finished training run, from its own summary and tables."""
    summary, rollouts = run.summary(), run.rollouts.rows()
    before, after = (_passes(rollouts, phase, pass_reward) for phase in ("before", "after"))
    return Found(
        {
            **{
                column: summary[column]["value"] for column in ("pass_at_1_before", "pass_at_1_after", "pass_at_1_gain")
            },
            "mean_stable_rank": _mean_stable_rank(run.geometry.rows()),
            **{column: summary[column] for column in ("train_seconds", "peak_memory_bytes")},
        },
        {
            "pass_at_1_before": before,
            "pass_at_1_after": after,
            "pass_at_1_gain": {unit: _difference(after[unit], before[unit]) for unit in before},
        },
    )


def _of_losses(run: RunFolder) -> Found:
    """The same for a run with a held-out loss, whose units are matrices and layers."""
    summary, geometry = run.summary(), run.geometry.rows()
    values, units = columns_of(Course.of(run.evaluations.rows(), geometry))
    return Found(
        {
            **{column: summary[column]["value"] for column in LOSSES},
            "mean_stable_rank": _mean_stable_rank(geometry),
            **{column: summary[column] for column in ("train_seconds", "peak_memory_bytes")},
            **values,
        },
        units,
    )


def _passes(rollouts: Sequence[Row], phase: str, pass_reward: float) -> Numbers:
    """1.0 or 0.0 a problem, None for one that could not be scored."""
    rewards = {_problem(row): row["reward"] for row in rollouts if row["phase"] == phase}
    return {unit: None if math.isnan(reward) else float(reward >= pass_reward) for unit, reward in rewards.items()}


def _problem(row: Row) -> str:
    """A problem is what was asked: its place in a list would pair strangers where two arms ask different lists."""
    return hashlib.sha256(row["prompt"].encode()).hexdigest()[:16]


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _mean_stable_rank(geometry: Sequence[Row]) -> float | None:
    """Mean over the matrices whose update has one, at the last step measured."""
    updates = [row for row in geometry if (row["kind"], row["metric"]) == ("update", "stable_rank")]
    last = max((row["step"] for row in updates), default=None)
    values = [row["value"] for row in updates if row["step"] == last]
    return _mean([value for value in values if not math.isnan(value)])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _measure(task: Task, study: StudyFolder) -> Found:
    from stablerank.probes.checkpoints import weights
    from stablerank.probes.measure import MeasuredTensor, Settings, measure_all
    from stablerank.spectral.certified import DELTA, RTOL

    if task.overrides:
        raise RecipeError(
            f"Arm {task.arm} measures {task.spec}, which takes no override; remove {task.overrides[0]!r}."
        )
    work = weights(study.find(task.spec))
    tensors: list[MeasuredTensor] = []
    measure_all(work, Settings(task.cell, ("stable_rank",), RTOL, DELTA), keep=tensors.append)
    problems = [*work.problems, *(problem for tensor in tensors for problem in tensor.problems)]
    if problems or not tensors:
        raise ModelError(f"{task.spec} cannot be measured whole: {_why(problems)}")
    ranks = {
        matrix.name: None if math.isnan(matrix.rows[0].value) else matrix.rows[0].value
        for tensor in tensors
        for matrix in tensor.matrices
    }
    defined = [rank for rank in ranks.values() if rank is not None]
    median = statistics.median(defined) if defined else None
    return Found({"median_stable_rank": median, "matrices": float(len(ranks))}, {"stable_rank": ranks})


def _why(problems: "Sequence[Problem]") -> str:
    if not problems:
        return "it holds no matrix."
    first = problems[0]
    return first.reason if first.tensor is None or first.tensor in first.reason else f"{first.tensor}: {first.reason}"


class _Log:
    """Progress of training as lines of the cell's log."""

    def stage(self, name: str, total: int) -> None:
        """A stage of ``total`` units begins."""
        print(f"{name}: {total}")

    def advance(self, done: int, note: str) -> None:
        """``done`` units of it are behind us."""
        print(f"  {done} {note}".rstrip())


def _one_line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return text if isinstance(problem, StablerankError) else f"{type(problem).__name__}: {text}"


def _provenance(task: Task) -> dict[str, Any]:
    commit = code_state()
    return {
        "spec": task.spec,
        "overrides": list(task.overrides),
        "commit": {key: commit[key] for key in ("hash", "dirty")},
        "packages": package_versions(),
        "device": device_state(),
    }


KINDS: dict[Kind, Callable[[Task, StudyFolder], Found]] = {"train": _train, "measure": _measure}
"""What each kind of cell does."""
