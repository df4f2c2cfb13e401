"""What every kind of block reads and how its gradient spreads, read from a run's geometry table.

Legend: S measured steps.

Where ``nr`` of the gradient is above ``st`` of the input, a spectral step promises more than a Euclidean one
(probes/spectral_condition.py). Values are medians over layers.

Left out on purpose: the factors of low-rank adapters, whose verdicts `stablerank condition` tells; intervals, which the
table has.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

import pyarrow as pa
import pyarrow.compute as pc

SIDES = {"gradient": "nuclear_rank", "activation": "stable_rank"}
"""Kind of row to the metric that the condition reads of it."""


@dataclass(frozen=True)
class BlockSides:
    """Both sides of the condition at one kind of block."""

    module: str
    step_S: Sequence[int]
    nuclear_S: Sequence[float]
    """Nuclear rank of the gradient."""
    stable_S: Sequence[float]
    """Stable rank of the input."""

    @property
    def ratio_last(self) -> float:
        """What a spectral step promises at the last measurement, for one of a Euclidean step."""
        return self.nuclear_S[-1] / self.stable_S[-1]


def block_sides(table: pa.Table | None) -> list[BlockSides]:
    """One a kind of block with both sides at some step, in the order of their names; `table` is the geometry table."""
    if table is None:
        return []
    found: dict[tuple[str, str], dict[int, float]] = {}
    for kind, metric in SIDES.items():
        rows = table.filter((pc.field("kind") == kind) & (pc.field("metric") == metric))
        for module, step, value in _medians(rows):
            found.setdefault((module, kind), {})[step] = value
    modules = sorted({module for module, _ in found if ".lora_" not in module})
    sides = (_sides(module, *(found.get((module, kind), {}) for kind in SIDES)) for module in modules)
    return [each for each in sides if each.step_S]


def _medians(rows: pa.Table) -> Iterator[tuple[str, int, float]]:
    """``(module, step, median over layers)``; what is not defined does not count."""
    finite = rows.filter(pc.is_finite(rows["value"]).fill_null(False))
    names = ("module", "step", "value")
    triples = sorted(zip(*(finite[name].to_pylist() for name in names), strict=True))
    for (module, step), same in groupby(triples, key=lambda triple: triple[:2]):
        yield module, step, median(value for _, _, value in same)


def _sides(module: str, nuclear: dict[int, float], stable: dict[int, float]) -> BlockSides:
    steps = sorted(nuclear.keys() & stable.keys())
    return BlockSides(module, steps, [nuclear[step] for step in steps], [stable[step] for step in steps])
