"""A ``train`` cell: a recipe in ``runs/ID``, taking up what an earlier start left there.

Values and units are read from the finished run folder. A held-out problem is known by the hash of its prompt, which
pairs results across arms.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stablerank.dynamics.overfitting import Course
from stablerank.errors import RunFolderError
from stablerank.runs.folder import RunFolder
from stablerank.studies.courses import columns_of
from stablerank.studies.kinds.units import unit_of
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import LOSSES, VERDICTS
from stablerank.studies.task import Found, Numbers, Task

if TYPE_CHECKING:
    from stablerank.training.recipe import AnyRecipe

Row = Mapping[str, Any]


def train(task: Task, study: StudyFolder) -> Found:
    """Run the recipe to its end, and read what it came to."""
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
    found = {
        "pass_at_1_before": _passes(rollouts, "before", pass_reward),
        "pass_at_1_after": _passes(rollouts, "after", pass_reward),
    }
    if (peak := summary.get("peak_step")) is not None:
        found["pass_at_1_peak"] = _passes([row for row in rollouts if row["step"] == peak], "peak", pass_reward)
    before, after = found["pass_at_1_before"], found["pass_at_1_after"]
    return Found(
        {
            **{column: summary[column]["value"] if column in summary else None for column in VERDICTS},
            "mean_stable_rank": _mean_stable_rank(run.geometry.rows()),
            **{column: summary[column] for column in ("train_seconds", "peak_memory_bytes")},
        },
        {**found, "pass_at_1_gain": {unit: _difference(after[unit], before[unit]) for unit in before}},
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
    rewards = {unit_of(row["prompt"]): row["reward"] for row in rollouts if row["phase"] == phase}
    return {unit: None if math.isnan(reward) else float(reward >= pass_reward) for unit, reward in rewards.items()}


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


class _Log:
    """Progress of training as lines of the cell's log."""

    def stage(self, name: str, total: int) -> None:
        """A stage of ``total`` units begins."""
        print(f"{name}: {total}")

    def advance(self, done: int, note: str) -> None:
        """``done`` units of it are behind us."""
        print(f"  {done} {note}".rstrip())
