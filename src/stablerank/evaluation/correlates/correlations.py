"""Correlations of a score with text metrics, also with length held fixed, with intervals by prompt.

Legend: N responses or pairs, B draws of groups (the first one: the sample itself), M metrics, K kinds of coefficient.

- *Sample-level*: over responses. *Paired*: over pairs, between the differences chosen - rejected.
- *Pearson*; *Spearman*: of the ranks, ties at their mean.
- *Given length*: the correlation of what is left of both after a least-squares line on the logarithm of the length; for
  Spearman, ranks on ranks. Paired, the control is the difference of the logarithms.

That is arXiv 2512.02807, section 5 and appendix F.1, which has no control; there, all responses count as independent.
Here groups are drawn, such as all responses to a prompt, and ranks are taken again in every draw. Interval and p-value
come from the same draws; p-values are corrected over the metrics of one kind.

Undefined, NaN: fewer than `FEWEST` rows, a constant variable, or one that the control explains to within 1e-9 of its
variance, as ranks of the length itself.

Numerics: fp64, moments about the mean. Cost O(B N M).

Left out on purpose: controls other than length; correlation with preference (pairs/partial.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stablerank.errors import DataError
from stablerank.evaluation.correlates.significance import holm, sign_p_value
from stablerank.evaluation.pairs.resampling import DRAWS, draw_counts, group_numbers, percentile_interval
from stablerank.evaluation.statistics import Interval

Coefficient = Literal["pearson", "spearman"]
Floats = NDArray[np.float64]
Columns = tuple[Floats, Floats, Floats]
"""Metric, score and logarithm of the length, ``(N,)`` each."""

FEWEST = 5
"""Rows below which no correlation is given."""
_AT_ONCE = 250  # draws in memory
_EXPLAINED = 1e-9
_CONSTANT = 1e-12
_KINDS: tuple[tuple[Coefficient, bool], ...] = (
    *(("pearson", False), ("spearman", False)),
    *(("pearson", True), ("spearman", True)),
)
"""Coefficient, and whether length is held fixed."""


@dataclass(frozen=True)
class Correlation:
    """One coefficient with its 95 % interval over groups, from ``rows`` responses or pairs."""

    metric: str
    coefficient: Coefficient
    given_length: bool
    interval: Interval
    rows: int
    p: float
    p_holm: float


def correlation(x_N: Floats, y_N: Floats, coefficient: Coefficient, control_N: Floats | None = None) -> float:
    """One coefficient of the whole sample, given ``control_N`` if there is one."""
    columns = [np.asarray(column, dtype=np.float64) for column in (x_N, y_N, control_N) if column is not None]
    return float(_coefficients(columns, np.ones((1, len(columns[0]))), coefficient)[0])


def correlate(
    names: Sequence[str],
    metrics_NM: Floats,
    score_N: Floats,
    log_length_N: Floats,
    groups_N: Sequence[str],
    *,
    draws: int = DRAWS,
) -> list[Correlation]:
    """Every metric with the score: Pearson and Spearman, without and with length, Holm within each of the four.

    For paired correlations give differences throughout, one row a pair. A row takes part in a metric where all of it is
    finite.

    Raises:
        DataError: the columns differ in length.
    """
    sizes = (len(metrics_NM), len(score_N), len(log_length_N), len(groups_N))
    if len(set(sizes)) > 1:
        raise DataError(
            f"correlations need one row of metrics, score, length and group each, got {sizes[0]}, {sizes[1]}, "
            f"{sizes[2]} and {sizes[3]}; align them."
        )
    columns = [(metrics_NM[:, index], score_N, log_length_N) for index in range(len(names))]
    values_MKB = np.concatenate([_values(columns, weights_BN) for weights_BN in _weights(groups_N, draws)], axis=2)
    found = []
    for kind, (coefficient, given) in enumerate(_KINDS):
        family = [
            _summary(name, coefficient, given, values_MKB[index, kind], columns[index], groups_N)
            for index, name in enumerate(names)
        ]
        corrected = holm([each.p for each in family])
        found += [replace(each, p_holm=p) for each, p in zip(family, corrected, strict=True)]
    return found


def _weights(groups_N: Sequence[str], draws: int) -> Iterator[Floats]:
    """How often each row counts in each draw, some draws at a time, the sample itself first."""
    numbers_N, groups = group_numbers(groups_N)
    yield np.ones((1, len(numbers_N)))
    for counts_BG in draw_counts(groups, draws):
        for start in range(0, len(counts_BG), _AT_ONCE):
            yield counts_BG[start : start + _AT_ONCE, numbers_N]


def _values(columns: Sequence[Columns], weights_BN: Floats) -> Floats:
    """Every metric's coefficient of every kind in some draws: ``(M, K, B)``."""
    found = [_of_every_kind(column, weights_BN) for column in columns]
    return np.array(found).reshape(-1, len(_KINDS), len(weights_BN))


def _of_every_kind(columns: Columns, weights_BN: Floats) -> list[Floats]:
    usable_N = _usable(columns)
    kept, weights_BN = [column[usable_N] for column in columns], weights_BN[:, usable_N]
    return [_coefficients(kept[: 2 + given], weights_BN, coefficient) for coefficient, given in _KINDS]


def _usable(columns: Columns) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(np.stack(columns)).all(0))


def _summary(
    name: str, coefficient: Coefficient, given: bool, values_B: Floats, columns: Columns, groups_N: Sequence[str]
) -> Correlation:
    groups = [group for group, usable in zip(groups_N, _usable(columns), strict=True) if usable]
    drawn_B = values_B[1:] if np.isfinite(values_B[0]) else values_B[:0]
    count = len(set(groups))
    interval = percentile_interval(float(values_B[0]), drawn_B, count)
    return Correlation(name, coefficient, given, interval, len(groups), sign_p_value(drawn_B, count), float("nan"))


def _coefficients(columns: Sequence[Floats], weights_BN: Floats, coefficient: Coefficient) -> Floats:
    """Of the first two columns given the third, if there is one: ``(B,)``."""
    if len(columns[0]) < FEWEST:
        return np.full(len(weights_BN), np.nan)
    ranked = coefficient == "spearman"
    x_BN, y_BN, *control = (
        _standardised(_ranks(column, weights_BN) if ranked else column, weights_BN) for column in columns
    )
    xy_B = _dot(x_BN, y_BN)
    if not control:
        return xy_B
    xz_B, yz_B = _dot(x_BN, control[0]), _dot(y_BN, control[0])
    left = np.stack([1 - xz_B**2, 1 - yz_B**2])
    return np.asarray((xy_B - xz_B * yz_B) / np.sqrt(np.where(left < _EXPLAINED, np.nan, left).prod(0)))


def _standardised(values: Floats, weights_BN: Floats) -> Floats:
    """``sqrt(w) (x - mean)`` over its norm, so that a correlation is a dot product; NaN where x is constant."""
    total_B1 = weights_BN.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a draw without a usable row
        mean_B1 = (weights_BN * values).sum(1, keepdims=True) / total_B1
    centred_BN = np.sqrt(weights_BN) * (values - mean_B1)
    norm_B1 = np.sqrt((centred_BN**2).sum(1, keepdims=True))
    # What rounding leaves of a constant is no spread.
    least_B1 = _CONSTANT * np.sqrt(total_B1) * np.abs(values).max()
    return np.asarray(centred_BN / np.where(norm_B1 > least_B1, norm_B1, np.nan))


def _ranks(column_N: Floats, weights_BN: Floats) -> Floats:
    """Mean ranks of each row in a sample where it occurs ``weight`` times, as `scipy.stats.rankdata` gives them there.

    A row that does not occur gets a rank between its neighbours', which its weight of 0 leaves without effect.
    """
    _, value_N, counts = np.unique(column_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(value_N, kind="stable")
    tied_BV = np.add.reduceat(weights_BN[:, order_N], np.cumsum(counts) - counts, axis=1)
    ranks_BV = tied_BV.cumsum(axis=1) - (tied_BV - 1) / 2
    return np.asarray(ranks_BV[:, value_N], dtype=np.float64)


def _dot(x_BN: Floats, y_BN: Floats) -> Floats:
    return np.asarray(np.einsum("bn,bn->b", x_BN, y_BN), dtype=np.float64)
