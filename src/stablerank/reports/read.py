"""A run folder, read into plain frozen records for the report and the summary.

Works on a run that is still going, or that was killed: whatever is not there yet is None or empty, and whatever is
there but cannot be read is left out and named in `Run.damage`. Only the manifest is required.

Legend: R one geometry measurement, S steps. Stable ranks are float64; NaN means "not defined" (a zero update).

Left out on purpose: training rollouts. The page shows the held-out answers before and after, and those are few.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stablerank.reports.blocks import BlockSides, block_sides
from stablerank.reports.losses import UNITS, LossEvaluation, LossSummary, best, loss_evaluation, loss_summary
from stablerank.runs.folder import RunFolder

Row = Mapping[str, Any]
Floats = NDArray[np.float64]
T = TypeVar("T")

NO_LAYER = -1
"""Stands for a module outside the layer stack, such as an output head."""


@dataclass(frozen=True)
class Score:
    """A share of problems solved, or a difference of two, with its 95 % interval; all in 0..1 (gains in -1..1)."""

    value: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation."""

    step: int
    phase: Literal["before", "curve", "peak", "after"]
    split: str
    score: Score


@dataclass(frozen=True)
class Summary:
    """What ``summary.json`` says; written when a run ends."""

    before: Score | None
    after: Score | None
    gain: Score | None
    train_seconds: float
    telemetry_seconds: float
    peak_memory_bytes: float
    steps: int
    split: str
    loss: LossSummary | None


@dataclass(frozen=True)
class Rollout:
    """One held-out answer."""

    row: int
    prompt: str
    completion: str
    answer: str | None
    reward: float
    """NaN for an answer that could not be scored."""
    passed: bool
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class UpdateRanks:
    """Stable rank of each weight update and of its null, one entry a measurement, sorted by step, module, layer."""

    step_R: NDArray[np.int64]
    layer_R: NDArray[np.int64]
    module_R: NDArray[np.str_]
    value_R: Floats
    null_R: Floats
    null_low_R: Floats
    null_high_R: Floats

    def where(self, chosen_R: NDArray[np.bool_]) -> "UpdateRanks":
        """Only the measurements that ``chosen_R`` marks."""
        return UpdateRanks(**{name: column[chosen_R] for name, column in vars(self).items()})

    def measured(self) -> "UpdateRanks":
        """Only the measurements that are defined."""
        return self.where(np.isfinite(self.value_R))

    def last(self) -> "UpdateRanks":
        """Only the measurements of the last step."""
        return self.where(self.step_R == self.step_R.max(initial=0))


@dataclass(frozen=True)
class Run:
    """Everything the report shows of one run."""

    folder: Path
    manifest: dict[str, Any]
    summary: Summary | None
    metrics: Sequence[Row]
    timings: Sequence[Row]
    evaluations: Sequence[Evaluation]
    losses: Sequence[LossEvaluation]
    ranks: UpdateRanks | None
    effects: UpdateRanks | None
    """Of the change of every layer's output, where it was measured."""
    blocks: Sequence[BlockSides]
    """Both sides of the spectral condition, where they were measured."""
    before: Sequence[Rollout]
    after: Sequence[Rollout]
    damage: tuple[str, ...]

    def evaluations_of(self, phase: str) -> list[Evaluation]:
        """The evaluations of one phase, in the order they were made."""
        return [evaluation for evaluation in self.evaluations if evaluation.phase == phase]

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        recipe: dict[str, Any] = self.manifest["recipe"]
        return recipe

    @property
    def loss_unit(self) -> str | None:
        """What a held-out loss is counted by; None for an objective that is judged by answers."""
        return UNITS.get(str(self.recipe.get("objective")))

    @property
    def loss_curve(self) -> list[LossEvaluation]:
        """The held-out losses on the way."""
        return [evaluation for evaluation in self.losses if evaluation.phase == "curve"]

    @property
    def best_step(self) -> int | None:
        """Of the lowest held-out loss on the way."""
        return best(self.loss_curve).step if self.loss_curve else None

    @property
    def last_step(self) -> int:
        """The last optimiser step on record, 0 before the first."""
        return max((int(row["step"]) for row in self.metrics), default=0)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RunFolderError: the folder has no readable manifest.
    """
    folder, damage = RunFolder(path), list[str]()
    manifest = folder.manifest()
    bar = _pass_reward(manifest["recipe"])
    has_loss = str(manifest["recipe"].get("objective")) in UNITS

    def tolerant(name: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage.append(f"{name} cannot be read ({error}), so the report leaves it out.")
            return otherwise

    rows = folder.evaluations.rows
    return Run(
        folder=path,
        manifest=manifest,
        summary=tolerant("summary.json", lambda: _summary(folder.summary_path), None),
        metrics=tolerant("metrics.jsonl", lambda: _by_step(folder.metrics.rows()), []),
        timings=tolerant("timings.jsonl", lambda: _by_step(folder.timings.rows()), []),
        evaluations=[] if has_loss else tolerant("evaluations.jsonl", lambda: [_evaluation(row) for row in rows()], []),
        losses=tolerant("evaluations.jsonl", lambda: [loss_evaluation(row) for row in rows()], []) if has_loss else [],
        ranks=tolerant("geometry/", lambda: _stable_ranks(folder.geometry.read(), "update"), None),
        effects=tolerant("geometry/", lambda: _stable_ranks(folder.geometry.read(), "effect"), None),
        blocks=tolerant("geometry/", lambda: block_sides(folder.geometry.read()), []),
        before=tolerant("rollouts/ (before)", lambda: _rollouts(folder.rollouts.read(), "before", bar), []),
        after=tolerant("rollouts/ (after)", lambda: _rollouts(folder.rollouts.read(), "after", bar), []),
        damage=tuple(damage),
    )


def series(rows: Sequence[Row], column: str) -> tuple[Floats, Floats]:
    """``(step_S, value_S)`` of one column, without the steps that do not have it."""
    pairs = [(float(row["step"]), number(row.get(column))) for row in rows]
    kept = np.array([pair for pair in pairs if math.isfinite(pair[1])], dtype=np.float64).reshape(-1, 2)
    return kept[:, 0], kept[:, 1]


def number(value: Any) -> float:
    """The value as a float, NaN for whatever is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _by_step(rows: Sequence[Row]) -> list[Row]:
    """One row a step, the later one where two share a step."""
    unique = {int(row["step"]): row for row in rows}
    return [unique[step] for step in sorted(unique)]


def _summary(path: Path) -> Summary | None:
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    return Summary(
        before=_score(raw.get("pass_at_1_before")),
        after=_score(raw.get("pass_at_1_after")),
        gain=_score(raw.get("pass_at_1_gain")),
        train_seconds=number(raw.get("train_seconds")),
        telemetry_seconds=number(raw.get("telemetry_seconds")),
        peak_memory_bytes=number(raw.get("peak_memory_bytes")),
        steps=int(raw.get("steps") or 0),
        split=str(raw.get("split") or "held-out"),
        loss=loss_summary(raw),
    )


def _score(raw: Any) -> Score | None:
    """None unless there is a value: a run without problems to evaluate on has no score."""
    if not isinstance(raw, Mapping) or not math.isfinite(number(raw.get("value"))):
        return None
    return Score(number(raw["value"]), number(raw.get("low")), number(raw.get("high")), int(raw.get("problems") or 0))


def _evaluation(row: Row) -> Evaluation:
    score = Score(number(row["pass_at_1"]), number(row["low"]), number(row["high"]), int(row["problems"]))
    return Evaluation(int(row["step"]), row["phase"], str(row["split"]), score)


def _stable_ranks(table: pa.Table | None, kind: str) -> UpdateRanks | None:
    if table is None:
        return None
    kept = table.filter((pc.field("kind") == kind) & (pc.field("metric") == "stable_rank"))
    if not kept.num_rows:
        return None
    kept = kept.sort_by([("step", "ascending"), ("module", "ascending"), ("layer", "ascending")])

    def floats(name: str) -> Floats:
        return np.array([number(value) for value in kept[name].to_pylist()], dtype=np.float64)

    return UpdateRanks(
        step_R=kept["step"].to_numpy().astype(np.int64),
        layer_R=np.array([NO_LAYER if v is None else v for v in kept["layer"].to_pylist()], dtype=np.int64),
        module_R=np.array(kept["module"].to_pylist(), dtype=np.str_),
        value_R=floats("value"),
        null_R=floats("null"),
        null_low_R=floats("null_low"),
        null_high_R=floats("null_high"),
    )


def _pass_reward(recipe: Row) -> float:
    """The reward that an answer must reach to count as right."""
    evaluation = recipe.get("evaluation")
    reward = number(evaluation.get("pass_reward")) if isinstance(evaluation, Mapping) else math.nan
    return 1.0 if math.isnan(reward) else reward


def _rollouts(table: pa.Table | None, phase: str, pass_reward: float) -> list[Rollout]:
    if table is None:
        return []
    rows = table.filter(pc.field("phase") == phase).to_pylist()
    return [
        Rollout(
            row=int(row["row"]),
            prompt=str(row["prompt"]),
            completion=str(row["completion"]),
            answer=None if row["answer"] is None else str(row["answer"]),
            reward=number(row["reward"]),
            passed=number(row["reward"]) >= pass_reward,
            tokens=int(row["tokens"]),
            truncated=bool(row["truncated"]),
        )
        for row in rows
    ]
