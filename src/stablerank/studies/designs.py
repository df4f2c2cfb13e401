"""How large a study is and how far its arms scatter: the model behind every power estimate.

Contract: an arm's value at seed s and unit u is ``mean + between_s + shared_u + within_su``, independent normal
effects; arms are independent but for what pairs have in common, which cancels. `Design.sources` are the expectations of
the two variances that `stablerank.studies.intervals` estimates; for complete data both estimates are independent
chi-squares, also of the mean. With ``units`` 0 a value belongs to a whole cell, and only ``between`` counts.

Left out on purpose: units that are missing in some seeds.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """Sizes of a study and the standard deviations of one arm's effects, in the units of the column."""

    seeds: int
    units: int
    between: float
    within: float
    shared: float

    @property
    def sd(self) -> float:
        """Of an arm's mean."""
        of_units = (self.shared**2 + self.within**2 / self.seeds) / self.units if self.units else 0.0
        return math.sqrt(self.between**2 / self.seeds + of_units)

    @property
    def sources(self) -> list[tuple[float, int]]:
        """What the interval of an arm's mean is made of: (expected variance of the mean, degrees of freedom)."""
        if not self.units:
            return [(self.between**2 / self.seeds, self.seeds - 1)]
        noise = self.within**2 / (self.seeds * self.units)
        return [
            (self.between**2 / self.seeds + noise, self.seeds - 1),
            (self.shared**2 / self.units + noise, self.units - 1),
        ]

    @property
    def is_blind(self) -> bool:
        """One seed or one unit, and nothing tells how another would differ."""
        return any(degrees == 0 for _, degrees in self.sources)
