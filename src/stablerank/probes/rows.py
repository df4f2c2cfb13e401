"""From one estimate to one geometry row: where it lies in the model, when it was taken, and what it is read against."""

import math
from dataclasses import dataclass

from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import Estimate
from stablerank.spectral.nulls import Null


@dataclass(frozen=True)
class Moment:
    """The columns that say when a row was measured."""

    run: str
    seed: int = 0
    step: int = 0


def geometry_row(
    name: str,
    kind: str,
    metric: str,
    estimate: Estimate,
    null: Null,
    moment: Moment,
    *,
    tokens: int | None = None,
    delta: float = 0.0,
) -> GeometryRow:
    """One row; ``delta`` is the probability that an iterative bound fails, and does not touch the others."""
    layer, module = layer_and_module(name)
    return GeometryRow(
        run=moment.run,
        seed=moment.seed,
        step=moment.step,
        layer=layer,
        module=module,
        kind=kind,
        metric=metric,
        value=estimate.value,
        lower=estimate.lower,
        upper=estimate.upper,
        confidence=_confidence(estimate, delta),
        status=estimate.status,
        passes=estimate.passes,
        null=null.median,
        null_low=null.low,
        null_high=null.high,
        null_kind=null.kind,
        tokens=tokens,
    )


def layer_and_module(name: str) -> tuple[int | None, str]:
    """Split a module's name at its first number: ``model.layers.3.mlp.up_proj`` is ``(3, "mlp.up_proj")``."""
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return int(part), ".".join(parts[position + 1 :])
    return None, name


def _confidence(estimate: Estimate, delta: float) -> float:
    if estimate.status == "estimated":
        return math.nan
    return 1.0 - delta if estimate.status in ("certified", "open") else 1.0
