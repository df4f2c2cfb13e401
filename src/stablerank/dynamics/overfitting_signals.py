"""What a rule may read at each evaluated step of a run with a held-out loss.

Contract: `signals_of` reads the rows of ``evaluations.jsonl``, ``geometry`` and ``metrics.jsonl`` and gives one row a
step of the curve, in order, with every name of `SIGNALS`; None says "not recorded". Live and read years later it is the
same, because a step's rows are on disk before anything reads them.

- ``step``: itself, the rule of who always stops there.
- ``held_out`` and ``train``: loss in the objective's nats; ``kl``: to the untouched policy on held-out texts.
- ``grad_norm``: mean over the steps since the last evaluation, before clipping.
- ``update_rank``: mean stable rank of the updates; ``update_norm``: Frobenius norm of all of them together.
- ``effect_rank``: mean stable rank of the change of the layers' outputs; ``effect_norm``: its mean relative norm.

Spectra are those of the last measurement at or before the step.

`signals_of_history` makes the same rows of the log of any transformers or TRL trainer, as far as it goes: ``train`` is
then the mean of the logged batches, and ``update_rank`` is there where `watch_geometry` logs it.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, get_args

from stablerank.dynamics.overfitting import Course, ranks_at

Row = Mapping[str, Any]
Signals = dict[str, float | None]

Signal = Literal[
    "step", "held_out", "train", "kl", "grad_norm", "update_rank", "update_norm", "effect_rank", "effect_norm"
]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
OF_UPDATES = ("update_rank", "update_norm")
OF_EFFECTS = ("effect_rank", "effect_norm")
RANKS = ("update_rank", "effect_rank")
"""Those that a spectrum has to be measured for."""


def signals_of(evaluations: Iterable[Row], geometry: Iterable[Row], metrics: Iterable[Row]) -> list[Signals]:
    """A row an evaluated step of the curve."""
    evaluations, geometry, metrics = list(evaluations), list(geometry), list(metrics)
    course = Course.of(evaluations, geometry)
    moved = _effect_norms(geometry)
    curve = {row["step"]: row for row in evaluations if row["phase"] == "curve"}
    rows = []
    for last, step in zip([0, *sorted(curve)], sorted(curve), strict=False):
        norms = [row["grad_norm"] for row in metrics if last < row["step"] <= step and "grad_norm" in row]
        rows.append(
            {
                **{"step": float(step), "held_out": curve[step]["loss"], "train": curve[step]["loss_train"]},
                **{"kl": curve[step].get("kl"), "grad_norm": fmean(norms) if norms else None},
                **{"update_rank": _mean(ranks_at(course.updates, step).values()), "update_norm": course.norm_at(step)},
                "effect_rank": _mean(ranks_at(course.effects, step).values()),
                "effect_norm": _mean(ranks_at(moved, step).values()),
            }
        )
    return rows


def signals_of_history(history: Iterable[Row]) -> list[Signals]:
    """A row an evaluation (``eval_loss``) of a trainer's ``log_history``; the last one of a step counts."""
    found: dict[int, Signals] = {}
    since: list[Row] = []
    rank: float | None = None
    for row in history:
        rank = row.get("geometry/stable_rank_mean", rank)
        if "loss" in row:
            since.append(row)
        if "eval_loss" in row:
            batches = {name: [one[name] for one in since if name in one] for name in ("loss", "grad_norm")}
            found[int(row["step"])] = {
                **dict.fromkeys(SIGNALS),
                **{"step": float(row["step"]), "held_out": float(row["eval_loss"])},
                **{"train": _mean(batches["loss"]), "grad_norm": _mean(batches["grad_norm"]), "update_rank": rank},
            }
            since = []
    return [found[step] for step in sorted(found)]


def _effect_norms(geometry: Sequence[Row]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in geometry:
        if (row["kind"], row["metric"]) == ("effect", "relative_norm"):
            found.setdefault(int(row["step"]), {})[str(row["layer"])] = float(row["value"])
    return found


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
