"""The one tidy table of every probe: a row is one metric of one matrix at one step of one run.

Left out on purpose: reading and writing; this is the schema alone, so that probes depend on nothing else of a run.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GeometryRow:
    """One measured number, its certificate and the null it is to be read against.

    The field order is the column order of ``geometry/*.parquet``. NaN means "not measured" or "not defined"; ``status``
    says which.
    """

    run: str
    seed: int
    step: int
    """Optimiser step, 0 before the first update."""
    layer: int | None
    """Block index; None for a matrix outside the blocks."""
    module: str
    """Path inside the block, such as ``self_attn.q_proj``; the full name where ``layer`` is None."""
    kind: str
    """What was measured: ``weight``, ``update`` (trained minus initial weight), ``initial`` (the first product
    ``s B0 A0`` from which a frozen difference counts its update), ``activation``, ``gradient`` or ``effect`` (the
    change of a layer's output)."""
    metric: str
    value: float
    lower: float
    upper: float
    confidence: float
    """Coverage of ``[lower, upper]``; 1.0 for a deterministic bound, NaN without bounds."""
    status: str
    """``exact``, ``certified``, ``open`` or ``estimated``, or the named reason why there is no value."""
    passes: int
    """How often the matrix was read."""
    null: float
    """Median over random matrices of the same structure; NaN where the metric has no null."""
    null_low: float
    null_high: float
    """``null_low`` and ``null_high`` hold the central 95 % of the draws."""
    null_kind: str
    tokens: int | None
    """Tokens behind an activation row, or tokens with a non-zero gradient behind a gradient row; None elsewhere."""
