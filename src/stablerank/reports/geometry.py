"""Stable ranks of the updates as a curve, as a grid a module type and as a table, each with its null.

Numerics: float64 means over matrices of a quantity that is itself exact to the telemetry's tolerance. The null band of
a mean is the mean of the matrices' null bands, so it is the range of a typical matrix, not of the mean.

Legend: R one measurement, S steps, L layers.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stablerank.reports.read import NO_LAYER, Floats, UpdateRanks


@dataclass(frozen=True)
class Curve:
    """Mean over matrices at each measured step, with the middle four fifths of the matrices, and the null."""

    step_S: Floats
    mean_S: Floats
    low_S: Floats
    high_S: Floats
    null_S: Floats
    null_low_S: Floats
    null_high_S: Floats

    @property
    def has_null(self) -> bool:
        """Whether any measurement came with a null."""
        return bool(np.isfinite(self.null_S).any())


@dataclass(frozen=True)
class Grid:
    """One module type: layer by step; NaN where nothing was measured or the update was zero."""

    module: str
    step_S: NDArray[np.int64]
    layer_L: NDArray[np.int64]
    value_LS: Floats

    @property
    def layer_names(self) -> list[str]:
        """Axis labels; a hyphen for a module outside the layer stack."""
        return ["-" if layer == NO_LAYER else str(layer) for layer in self.layer_L]


@dataclass(frozen=True)
class Reading:
    """One module type at the first and last measured step, held against its null."""

    module: str
    matrices: int
    first: float
    last: float
    null: float
    null_low: float
    null_high: float
    below: int
    above: int

    @property
    def has_null(self) -> bool:
        """Whether any of these matrices came with a null."""
        return bool(np.isfinite(self.null))

    @property
    def within(self) -> int:
        """Matrices inside the range of their null."""
        return self.matrices - self.below - self.above


def mean_curve(ranks: UpdateRanks) -> Curve:
    """Mean over all matrices; steps without a defined stable rank are absent."""
    measured = ranks.measured()
    step_S = np.unique(measured.step_R)
    at_S = [measured.where(measured.step_R == step) for step in step_S]
    return Curve(
        step_S=step_S.astype(np.float64),
        mean_S=np.array([np.mean(at.value_R) for at in at_S]),
        low_S=np.array([np.quantile(at.value_R, 0.1) for at in at_S]),
        high_S=np.array([np.quantile(at.value_R, 0.9) for at in at_S]),
        null_S=np.array([_mean(at.null_R) for at in at_S]),
        null_low_S=np.array([_mean(at.null_low_R) for at in at_S]),
        null_high_S=np.array([_mean(at.null_high_R) for at in at_S]),
    )


def grids(ranks: UpdateRanks) -> list[Grid]:
    """One grid a module type, in the order of their names; all share the columns of the steps with any value."""
    step_S = np.unique(ranks.measured().step_R)
    return [_grid(ranks.where(ranks.module_R == module), step_S) for module in np.unique(ranks.module_R)]


def readings(ranks: UpdateRanks) -> list[Reading]:
    """One row a module type with at least one defined stable rank."""
    measured = ranks.measured()
    return [_reading(measured.where(measured.module_R == module)) for module in np.unique(measured.module_R)]


def overall(ranks: UpdateRanks) -> Reading:
    """The same reading over the matrices of every module type; `ranks` must hold a defined stable rank."""
    return _reading(ranks.measured())


def _grid(ranks: UpdateRanks, step_S: NDArray[np.int64]) -> Grid:
    layer_L = np.unique(ranks.layer_R)
    value_LS = np.full((layer_L.size, step_S.size), np.nan)
    seen_R = np.isin(ranks.step_R, step_S)
    rows, columns = np.searchsorted(layer_L, ranks.layer_R), np.searchsorted(step_S, ranks.step_R)
    value_LS[rows[seen_R], columns[seen_R]] = ranks.value_R[seen_R]
    return Grid(str(ranks.module_R[0]), step_S, layer_L, value_LS)


def _reading(measured: UpdateRanks) -> Reading:
    first, last = measured.where(measured.step_R == measured.step_R.min()), measured.last()
    module = np.unique(measured.module_R)
    return Reading(
        module=str(module[0]) if module.size == 1 else "all",
        matrices=last.value_R.size,
        first=float(np.mean(first.value_R)),
        last=float(np.mean(last.value_R)),
        null=_mean(last.null_R),
        null_low=_mean(last.null_low_R),
        null_high=_mean(last.null_high_R),
        below=int(np.sum(last.value_R < last.null_low_R)),
        above=int(np.sum(last.value_R > last.null_high_R)),
    )


def _mean(value_R: Floats) -> float:
    """Mean of the nulls that were recorded, NaN when none was."""
    known_R = value_R[np.isfinite(value_R)]
    return float(np.mean(known_R)) if known_R.size else math.nan
