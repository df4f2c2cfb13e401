"""Spectral telemetry: the stable rank of every trained matrix's update, from a callback.

In any transformers or TRL trainer it is two lines::

    from stablerank import watch_geometry
    watch_geometry(trainer, "geometry")

Low-rank updates are measured through their r-by-r core, never as a dense product. Full fine-tuning keeps an fp32
snapshot of the trainable matrices (once their memory) and measures the difference by certified Lanczos.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.probes.updates import NamedUpdate, adapter_updates, full_updates, measure_updates, snapshot
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.runs.tables import ShardedTable

GeometrySink = Callable[[int, list[GeometryRow]], None]


class GeometryCallback(TrainerCallback):
    """Measure every ``every`` optimiser steps and at the last one."""

    def __init__(
        self,
        sink: GeometrySink,
        *,
        every: int = 10,
        run: str = "run",
        seed: int = 0,
        initial: Mapping[str, torch.Tensor] | None = None,
        log_scalar: Callable[[str, float], None] | None = None,
    ) -> None:
        """``sink(step, rows)`` stores the rows; ``log_scalar(name, value)`` feeds the trackers.

        ``initial`` is the snapshot that full fine-tuning is measured against; adapters need none.
        """
        self.sink, self.every, self.run, self.seed = sink, every, run, seed
        self.initial, self.log_scalar = initial, log_scalar
        self.seconds = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure when due, on the main process only."""
        is_due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if is_due and state.is_world_process_zero:
            started = time.perf_counter()
            self._measure(kwargs["model"], state.global_step)
            self.seconds += time.perf_counter() - started

    def _measure(self, model: torch.nn.Module, step: int) -> None:
        updates = self._updates(getattr(model, "module", model))
        rows = measure_updates(updates, run=self.run, seed=self.seed, step=step)
        self.sink(step, rows)
        if self.log_scalar is not None:
            for name, value in geometry_scalars(rows).items():
                self.log_scalar(name, value)

    def _updates(self, model: torch.nn.Module) -> list[NamedUpdate]:
        return adapter_updates(model) if self.initial is None else full_updates(model, self.initial)


def geometry_scalars(rows: list[GeometryRow]) -> dict[str, float]:
    """What a tracker shows: means over the matrices whose stable rank is defined, and the null's mean."""
    ranks = [row for row in rows if row.metric == "stable_rank" and not math.isnan(row.value)]
    if not ranks:
        return {}
    return {
        "geometry/stable_rank_mean": sum(row.value for row in ranks) / len(ranks),
        "geometry/stable_rank_min": min(row.value for row in ranks),
        "geometry/stable_rank_max": max(row.value for row in ranks),
        "geometry/stable_rank_null": sum(row.null for row in ranks) / len(ranks),
    }


def initial_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The snapshot that telemetry needs, or None for an adapter, whose update is its own factors."""
    return None if getattr(model, "peft_config", None) else snapshot(model)


def watch_geometry(trainer: Trainer, folder: str | Path, *, every: int = 10) -> GeometryCallback:
    """Add the telemetry to any trainer; call it before ``trainer.train()``.

    Rows go to Parquet shards in ``folder``, scalars to the trainer's own log and trackers.
    """
    table = ShardedTable(Path(folder))
    callback = GeometryCallback(
        lambda step, rows: table.write(step, [asdict(row) for row in rows]),
        every=every,
        run=Path(folder).name,
        seed=trainer.args.seed,
        initial=initial_weights(trainer.model),
        log_scalar=_scalar_logger(trainer),
    )
    trainer.add_callback(callback)
    return callback


def _scalar_logger(trainer: Trainer) -> Callable[[str, float], None]:
    """TRL's trainers merge a pending metric into the step's own log row; a plain Trainer logs a row of its own."""
    metrics = getattr(trainer, "_metrics", None)
    if metrics is None:
        return lambda name, value: trainer.log({name: value})
    return lambda name, value: metrics["train"][name].append(value)
