"""Spectral telemetry: where the update of every trained matrix lies, from a callback.

In any transformers or TRL trainer it is two lines::

    from stablerank import watch_geometry
    watch_geometry(trainer, "geometry", against_base=True)

Low-rank updates are measured through their small core, never as a dense product. Full fine-tuning keeps an fp32
snapshot of the trainable matrices (once their memory) and measures the difference by certified Lanczos; so do other
methods that train the model's own matrices. A run that trains none (biases only) has no rows, and one warning says so.

``against_base`` adds where the update lies relative to the weight it changes (probes/alignment.py). It decomposes every
base weight once, when training begins, and costs one thin product a matrix and measurement after that. ``nss`` adds the
shift of the singular values at the last step only: two whole spectra a matrix. ``factors`` adds the nuclear rank of
low-rank updates and the spectra of their factors (probes/factors.py).

Methods that count their update from a first product (GeoRA, PiSSA and kin) have that product measured once, at step 0,
as rows of kind ``initial``.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.probes.alignment import BaseHead
from stablerank.probes.effects import EffectPanel
from stablerank.probes.evaluate import HEAD
from stablerank.probes.factors import measure_factors
from stablerank.probes.orthogonality import measure_orthogonality
from stablerank.probes.updates import (
    NamedUpdate,
    adapter_updates,
    base_heads,
    first_products,
    full_updates,
    measure_updates,
    snapshot,
)
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.runs.tables import ShardedTable

GeometrySink = Callable[[int, list[GeometryRow]], None]


class _Columns(TypedDict):
    run: str
    seed: int
    step: int


class GeometryCallback(TrainerCallback):
    """Measure every ``every`` optimiser steps and at the last one."""

    def __init__(
        self,
        sink: GeometrySink,
        *,
        every: int = 10,
        against_base: bool = False,
        head: int = HEAD,
        nss: bool = False,
        factors: bool = False,
        run: str = "run",
        seed: int = 0,
        initial: Mapping[str, torch.Tensor] | None = None,
        log_scalar: Callable[[str, float], None] | None = None,
    ) -> None:
        """``sink(step, rows)`` stores the rows; ``log_scalar(name, value)`` feeds the trackers.

        ``against_base``, with the ``head`` leading directions of each base weight, ``nss`` and ``factors``: see the
        module.
        ``initial`` is the snapshot that full fine-tuning is measured against; adapters need none.
        """
        self.sink, self.every, self.run, self.seed = sink, every, run, seed
        self.against_base, self.head, self.nss, self.factors = against_base, head, nss, factors
        self.initial, self.log_scalar = initial, log_scalar
        self.panel: EffectPanel | None = None
        """Fixed texts on which the change of every layer's output is measured too."""
        self.seconds = 0.0
        self._heads: dict[str, BaseHead] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decompose the base weights if asked, and measure what a fresh adapter counts its update from."""
        if state.is_world_process_zero:
            started = time.perf_counter()
            self._begin(_unwrapped(kwargs["model"]), state.global_step)
            self.seconds += time.perf_counter() - started

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure when due, on the main process only."""
        is_due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if is_due and state.is_world_process_zero:
            started = time.perf_counter()
            self._measure(_unwrapped(kwargs["model"]), state.global_step, is_last=state.global_step == state.max_steps)
            self.seconds += time.perf_counter() - started

    def _begin(self, model: torch.nn.Module, step: int) -> None:
        updates = self._updates(model)
        if not updates and self.panel is None:
            warnings.warn(
                "This run trains no matrix, and biases and norms have no spectrum, so its geometry has no rows; turn "
                "the telemetry off to silence this.",
                stacklevel=2,
            )
        self._heads = base_heads(updates, self.head) if self.against_base else None
        products = first_products(model) if self.initial is None else []
        if products and step == 0:
            self._sink(0, measure_updates(products, kind="initial", heads=self._heads, **self._columns(0)))

    def _measure(self, model: torch.nn.Module, step: int, *, is_last: bool) -> None:
        updates, columns = self._updates(model), self._columns(step)
        rows = measure_updates(updates, heads=self._heads, nss=self.nss and is_last, **columns)
        others = measure_orthogonality(model, **columns) if self.initial is None else []
        others += measure_factors(updates, **columns) if self.factors else []
        others += self.panel.rows(model, **columns) if self.panel is not None else []
        self._sink(step, rows + others)
        if self.log_scalar is not None:
            for name, value in geometry_scalars(rows).items():
                self.log_scalar(name, value)

    def _sink(self, step: int, rows: list[GeometryRow]) -> None:
        if rows:
            self.sink(step, rows)

    def _columns(self, step: int) -> _Columns:
        return {"run": self.run, "seed": self.seed, "step": step}

    def _updates(self, model: torch.nn.Module) -> list[NamedUpdate]:
        return adapter_updates(model) if self.initial is None else full_updates(model, self.initial)


def geometry_scalars(rows: list[GeometryRow]) -> dict[str, float]:
    """What a tracker shows: means over the matrices whose metric is defined, beside the null's mean."""
    ranks = _defined(rows, "stable_rank")
    if not ranks:
        return {}
    scalars = {
        "geometry/stable_rank_mean": fmean(row.value for row in ranks),
        "geometry/stable_rank_min": min(row.value for row in ranks),
        "geometry/stable_rank_max": max(row.value for row in ranks),
        "geometry/stable_rank_null": fmean(row.null for row in ranks),
    }
    if energies := _defined(rows, "head_energy"):
        scalars["geometry/head_energy_mean"] = fmean(row.value for row in energies)
        scalars["geometry/head_energy_null"] = fmean(row.null for row in energies)
    return scalars


def initial_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The snapshot that telemetry needs, or None for an adapter, whose update is its own factors."""
    return None if getattr(model, "peft_config", None) else snapshot(model)


def watch_geometry(
    trainer: Trainer,
    folder: str | Path,
    *,
    every: int = 10,
    against_base: bool = False,
    head: int = HEAD,
    nss: bool = False,
    factors: bool = False,
) -> GeometryCallback:
    """Add the telemetry to any trainer; call it before ``trainer.train()``.

    Rows go to Parquet shards in ``folder``, scalars to the trainer's own log and trackers. ``against_base``, ``head``,
    ``nss`` and ``factors`` as for `GeometryCallback`.
    """
    table = ShardedTable(Path(folder))
    callback = GeometryCallback(
        lambda step, rows: table.write(step, [asdict(row) for row in rows]),
        every=every,
        against_base=against_base,
        head=head,
        nss=nss,
        factors=factors,
        run=Path(folder).name,
        seed=trainer.args.seed,
        initial=initial_weights(trainer.model),
        log_scalar=scalar_logger(trainer),
    )
    trainer.add_callback(callback)
    return callback


def scalar_logger(trainer: Trainer) -> Callable[[str, float], None]:
    """Adds a scalar to the log.

    TRL's trainers merge a pending metric into the step's own row; a plain Trainer logs a row of its own.
    """
    metrics = getattr(trainer, "_metrics", None)
    if metrics is None:
        return lambda name, value: trainer.log({name: value})
    return lambda name, value: metrics["train"][name].append(value)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a distributed wrapper."""
    inner: torch.nn.Module = getattr(model, "module", model)
    return inner


def _defined(rows: list[GeometryRow], metric: str) -> list[GeometryRow]:
    return [row for row in rows if row.metric == metric and not math.isnan(row.value)]
