"""Numbers of several arms side by side: the same seed and unit in every arm, whatever their order in the table.

Contract: `paired` keeps the seeds and units that all arms have. A unit without a number in one arm leaves the pair; a
seed that no pair is left of makes the whole undefined (`UndefinedError`), for a seed that could not be measured is no
evidence. Unit values are used wherever every arm has them, else those of whole cells.

Left out on purpose: filling in what is missing.

Legend: K arms, R rows, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from stablerank.studies.intervals import Codes, CrossedMean, CrossedShare, Floats, crossed_mean, crossed_share, sums
from stablerank.studies.plan import VERDICTS
from stablerank.studies.results import WHOLE, Names, Table


class UndefinedError(Exception):
    """There is nothing to judge; the message says why."""


@dataclass(frozen=True)
class Paired:
    """The numbers of K arms; codes count from 0, ``unit_R`` is None for whole cells.

    ``limits``: the least and the largest possible number of right-or-wrong outcomes, None of measurements.
    """

    value_KR: Floats
    seed_R: Codes
    unit_R: Codes | None
    limits: tuple[float, float] | None

    @property
    def n_seeds(self) -> int:
        """Seeds that count."""
        return int(self.seed_R.max()) + 1

    @property
    def n_units(self) -> int:
        """Distinct units, 0 for whole cells."""
        return 0 if self.unit_R is None else int(self.unit_R.max()) + 1

    @property
    def sample(self) -> str:
        """The size in words."""
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds > 1 else ''}"
        return seeds if self.unit_R is None else f"{seeds} and {self.n_units} unit{'s' if self.n_units > 1 else ''}"

    def mean(self, weight_K: Sequence[float] | Floats) -> CrossedMean:
        """The mean of a weighted sum of the arms."""
        weight_K = np.asarray(weight_K, np.float64)
        scale = None if self.limits is None else max(_reach(weight_K, self.limits), _reach(-weight_K, self.limits))
        return crossed_mean(weight_K @ self.value_KR, self.seed_R, self.unit_R, scale)

    def seed_means(self) -> Floats:
        """Each arm's mean in each seed, (K, S)."""
        count_S = np.bincount(self.seed_R)
        return np.stack([sums(self.seed_R, value_R) / count_S for value_R in self.value_KR])

    def share(self) -> CrossedShare:
        """The share of ones of the first arm."""
        return crossed_share(self.value_KR[0], self.seed_R, self.unit_R)


def paired(table: Table, column: str, arms: Sequence[str]) -> Paired:
    """The numbers of ``arms`` at every seed and unit that all of them have.

    Raises:
        UndefinedError: an arm without the column, no seed in common, or a seed without a number.
    """
    rows_K = [table.rows(arm, column) for arm in arms]
    for arm, rows in zip(arms, rows_K, strict=True):
        if not len(rows):
            raise UndefinedError(f"no result of arm {arm} has column {column}")
    has_unit_K = [table.unit_R[rows] != WHOLE for rows in rows_K]
    by_unit = all(has_unit.any() for has_unit in has_unit_K)
    rows_K = [rows[has_unit == by_unit] for rows, has_unit in zip(rows_K, has_unit_K, strict=True)]
    seeds = _common([table.seed_R[rows] for rows in rows_K])
    if not len(seeds):
        raise UndefinedError(f"arms {', '.join(arms)} have no seed in common for column {column}")
    rows_KR = _matched(table, rows_K)
    rows_KR = rows_KR[:, ~np.isnan(table.value_R[rows_KR]).any(axis=0)]
    defined, seed_R = np.unique(table.seed_R[rows_KR[0]], return_inverse=True)
    if len(defined) < len(seeds):
        lost = np.setdiff1d(seeds, defined)[0]
        raise UndefinedError(f"column {column} is undefined for seed {lost} in {' or '.join(arms)}")
    unit_R = _codes(table.unit_R[rows_KR[0]]) if by_unit else None
    return Paired(table.value_R[rows_KR], seed_R, unit_R, _limits(table, column, by_unit))


def _matched(table: Table, rows_K: Sequence[Codes]) -> Codes:
    """Rows (K, R) so that each column of them is one seed and unit, in every arm."""
    if len(rows_K) == 1:
        return rows_K[0][None]
    joint = np.concatenate(rows_K)
    unit = _codes(table.unit_R[joint])
    _, seed = np.unique(table.seed_R[joint], return_inverse=True)
    keys_K = np.split(seed * (unit.max() + 1) + unit, np.cumsum([len(rows) for rows in rows_K])[:-1])
    common = _common(keys_K)
    orders = [np.argsort(keys) for keys in keys_K]
    return np.stack(
        [
            rows[order[np.searchsorted(keys, common, sorter=order)]]
            for rows, keys, order in zip(rows_K, keys_K, orders, strict=True)
        ]
    )


def _common(values_K: Sequence[Codes]) -> Codes:
    return reduce(np.intersect1d, values_K[1:], np.unique(values_K[0]))


def _codes(name_R: Names) -> Codes:
    """Numbers from 0 for names, in the order in which they appear."""
    names = name_R.tolist()
    code_of = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([code_of[name] for name in names], np.int64)


def _reach(weight_K: Floats, limits: tuple[float, float]) -> float:
    """The largest weighted sum of values within limits."""
    least, most = limits
    return float(np.where(weight_K > 0, weight_K * most, weight_K * least).sum())


def _limits(table: Table, column: str, by_unit: bool) -> tuple[float, float] | None:
    """The least and the largest possible number of a column of verdicts or of their differences, None of any other.

    Of a column that the plan does not know, every arm is asked. One alone would not tell: the update of a run at
    learning rate 0 is exactly 0 everywhere, and is a measurement.
    """
    if by_unit and column in VERDICTS:
        return VERDICTS[column]
    least = 0.0
    for arm in table.arms(column):
        rows = table.rows(arm, column)
        value = table.value_R[rows[(table.unit_R[rows] != WHOLE) == by_unit]]
        value = value[~np.isnan(value)]
        if not ((value == 0) | (np.abs(value) == 1)).all():
            return None
        least = float(value.min(initial=least))
    return least, 1.0
