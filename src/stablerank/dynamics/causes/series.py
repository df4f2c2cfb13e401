"""One column of a run as a series: where it began, where it ended, and whether that is more than noise.

Contract: finite values only, at least one. The opening and the closing are means over `Series.window` rows at either
end, a third of the rows at most, so that they never overlap. Noise is estimated from neighbours, ``sqrt(pi) / 2 *
mean |x[i+1] - x[i]|`` (for normal noise the deviation of one row): a slow trend hardly enters it. A change is measured
in standard errors of the difference of the two means.

Numerics: float64. A constant column has no noise, and a change over no noise is infinite.

Left out on purpose: autocorrelation. Rows of on-policy batches are nearly independent about their trend, and the
thresholds are far out.

Legend: S rows that have a value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_ROWS = 5
"""Rows that the mean at an end takes: more would blur runs of twenty steps, where most faults show within ten."""
STAYS = 0.8
"""Share of the rows to come in which a condition must hold to have begun for good; noise may lift single rows out."""


@dataclass(frozen=True)
class Series:
    """The finite values of one column, in order of their steps."""

    step_S: NDArray[np.int64]
    value_S: Floats

    def __len__(self) -> int:
        return self.value_S.size

    @property
    def window(self) -> int:
        """Rows of a mean at an end."""
        return max(1, min(MOST_ROWS, len(self) // 3))

    @property
    def opening(self) -> float:
        """Mean of the first rows."""
        return float(self.value_S[: self.window].mean())

    @property
    def closing(self) -> float:
        """Mean of the last rows."""
        return float(self.value_S[-self.window :].mean())

    @property
    def first(self) -> float:
        """The first value."""
        return float(self.value_S[0])

    @property
    def largest(self) -> float:
        """The largest value."""
        return float(self.value_S.max())

    @property
    def is_constant(self) -> bool:
        """Whether every value is the same, up to the rounding of a mean in single precision."""
        return bool(np.ptp(self.value_S) <= 1e-6 * max(1.0, np.abs(self.value_S).max()))

    @property
    def noise(self) -> float:
        """Standard deviation of one row about its neighbours."""
        jumps = np.abs(np.diff(self.value_S))
        return float(jumps.mean()) * math.sqrt(math.pi) / 2 if jumps.size else 0.0

    @property
    def change(self) -> float:
        """From opening to closing, in standard errors; its sign says which way."""
        return self._in_errors(self.closing - self.opening)

    def change_to_peak(self) -> float:
        """From opening to the highest mean over a window, in standard errors."""
        return self._in_errors(self.peak - self.opening)

    def change_from_peak(self) -> float:
        """From the highest mean over a window to the closing, in standard errors; never above 0."""
        return self._in_errors(self.closing - self.peak)

    @property
    def peak(self) -> float:
        """The highest mean over a window."""
        return float(self._means_W().max())

    def near(self, step: int) -> float:
        """Mean over the window that ends at the last row up to ``step``, or of the first rows."""
        last = max(int(np.searchsorted(self.step_S, step, side="right")), self.window)
        return float(self.value_S[last - self.window : last].mean())

    def after(self, step: int) -> float:
        """Mean over the window that begins at the first row from ``step`` on, or of the last rows."""
        first = min(int(np.searchsorted(self.step_S, step)), len(self) - self.window)
        return float(self.value_S[first : first + self.window].mean())

    def between(self, first: int, last: int) -> float:
        """Mean over the rows of steps ``first`` to ``last``; NaN without one."""
        inside_S = (self.step_S >= first) & (self.step_S <= last)
        return float(self.value_S[inside_S].mean()) if inside_S.any() else math.nan

    def course(self, well: int, lost: int) -> float:
        """From `near` ``well`` to `after` ``lost``, in standard errors."""
        return self._in_errors(self.after(lost) - self.near(well))

    def before(self, step: int) -> int:
        """The step of two windows before ``step``: the mean there is not yet of what began at ``step``."""
        at = int(np.searchsorted(self.step_S, step))
        return int(self.step_S[max(0, at - 2 * self.window)])

    def since(self, mask_S: NDArray[np.bool_]) -> int | None:
        """The first step from which ``mask_S`` holds for good (`STAYS`); None where it does not."""
        if not mask_S.any() or not mask_S[-self.window :].mean() >= STAYS:
            return None
        share_S = np.cumsum(mask_S[::-1])[::-1] / np.arange(len(self), 0, -1)
        return int(self.step_S[int(np.argmax(mask_S & (share_S >= STAYS)))])

    def _means_W(self) -> Floats:
        return np.convolve(self.value_S, np.full(self.window, 1 / self.window), "valid")

    def _in_errors(self, difference: float) -> float:
        error = self.noise * math.sqrt(2 / self.window)
        if math.isclose(difference, 0.0, abs_tol=1e-12):
            return 0.0
        return difference / error if error > 0 else math.copysign(math.inf, difference)


def series(step_S: Sequence[int] | NDArray[np.int64], value_S: Sequence[float] | Floats) -> Series | None:
    """The finite values with their steps; None where there are none."""
    steps, values = np.asarray(step_S, np.int64), np.asarray(value_S, np.float64)
    kept_S = np.isfinite(values)
    return Series(steps[kept_S], values[kept_S]) if kept_S.any() else None


def shown(value: float) -> str:
    """A number as a sentence has it: three significant digits."""
    return f"{value:.3g}"


def shown_share(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f} %"
