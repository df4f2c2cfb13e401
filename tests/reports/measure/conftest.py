"""Output folders of a measurement, with rows that the real spectral code measured on small matrices."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from stablerank.reports.measure import MeasuredRow, measured_rows
from stablerank.runs.atomic import write_json
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral import functionals
from stablerank.spectral.exact import Estimate, singular_values, stable_rank_exact
from stablerank.spectral.nulls import Null, dense_null, factored_null
from stablerank.spectral.operators import Dense, Factored

LAYERS, RANK = 12, 8
SHAPES = {
    "self_attn.q_proj": (96, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 96),
    "mlp.gate_proj": (160, 64),
    "mlp.down_proj": (64, 160),
}
HOSTILE = "</title></svg><script>document.title='owned'</script>\u202e\x1b[31m\"' onload=alert(1) [red]{{7*7}}"
META: dict[str, Any] = {
    "path": "checkpoints/tuned",
    "against": None,
    "adapter": False,
    "kind": "weight",
    "rtol": 1e-3,
    "delta": 1e-6,
    "bytes": 269_060_552,
    "seconds": 4.13,
    "problems": [],
    "skipped": {},
    "missing": [],
    "extra": [],
    "packages": {"stablerank": "0.1.0"},
}
PROBLEM = {"file": "model-2.safetensors", "tensor": HOSTILE, "reason": "The header promises more bytes than there are."}

Operator = Dense | Factored


@pytest.fixture(scope="session")
def weight_rows() -> tuple[MeasuredRow, ...]:
    """Weights with a decaying spectrum; layer 9 of one module is spiked, one matrix is random, one holds a NaN."""
    torch.manual_seed(0)
    made = dict(_weights())
    made["model.layers.9.mlp.down_proj"] = _decaying(64, 160, 3.0)
    made["model.layers.4.mlp.gate_proj"] = torch.randn(160, 64)
    made["model.layers.2.self_attn.k_proj"] = torch.full((32, 64), torch.nan)
    made["lm_head"] = _decaying(200, 64, 0.3)
    return measured_rows(row for name, w in made.items() for row in _rows(name, "weight", Dense(w)))


@pytest.fixture(scope="session")
def update_rows() -> tuple[MeasuredRow, ...]:
    """LoRA updates: noise, but q_proj is one direction in layers 3-7 and 9, and k_proj did not change in layer 0."""
    torch.manual_seed(1)
    made = {f"model.layers.{layer}.{module}": _factors(layer, module) for module in SHAPES for layer in range(LAYERS)}
    return measured_rows(row for name, factors in made.items() for row in _rows(name, "update", factors))


@pytest.fixture(scope="session")
def hostile_rows(weight_rows: tuple[MeasuredRow, ...]) -> tuple[MeasuredRow, ...]:
    """The weights, and one tensor whose name attacks the page and the terminal."""
    rows = _rows(f"model.layers.0.{HOSTILE}", "weight", Dense(torch.randn(9, 7)))
    outside = _rows(HOSTILE, "weight", Dense(torch.zeros(9, 7)))
    return (*weight_rows, *measured_rows([*rows, *outside]))


@pytest.fixture(scope="session")
def write_measurement() -> Callable[..., Path]:
    """Write an output folder; keywords replace entries of ``measure.json``."""
    return _write


def _write(folder: Path, rows: tuple[MeasuredRow, ...], **meta: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = {row.name for row in rows}
    write_json(folder / "measure.json", META | {"matrices": len(names)} | meta)
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), folder / "rows.parquet")
    return folder


def _weights() -> Iterator[tuple[str, Tensor]]:
    for module, (rows, columns) in SHAPES.items():
        for layer in range(LAYERS):
            yield f"model.layers.{layer}.{module}", _decaying(rows, columns, 0.45 + 0.02 * layer)


def _decaying(rows: int, columns: int, power: float) -> Tensor:
    """Singular values k^-power between random orthogonal factors."""
    q_left, q_right = (torch.linalg.qr(torch.randn(size, min(rows, columns)))[0] for size in (rows, columns))
    return q_left * torch.arange(1.0, min(rows, columns) + 1) ** -power @ q_right.T


def _factors(layer: int, module: str) -> Factored:
    rows, columns = SHAPES[module]
    b_OR, a_RI = torch.randn(rows, RANK), torch.randn(RANK, columns)
    if module == "self_attn.q_proj" and layer in (3, 4, 5, 6, 7, 9):
        b_OR[:, 1:] *= 0.05
    if module == "self_attn.k_proj" and layer == 0:
        b_OR.zero_()
    return Factored(b_OR, a_RI, 2.0)


def _rows(name: str, kind: str, operator: Operator) -> Iterator[dict[str, Any]]:
    values = singular_values(operator)
    rank = stable_rank_exact(operator)
    yield _row(name, kind, operator, "stable_rank", rank, _null(operator))
    for metric in ("effective_rank", "nuclear_rank"):
        value = getattr(functionals, metric)(values).item()
        status = "estimated" if value == value else rank.status
        yield _row(name, kind, operator, metric, Estimate(value, *[float("nan")] * 2, 1, status), None)


def _null(operator: Operator) -> Null:
    return factored_null(*operator.shape, RANK) if isinstance(operator, Factored) else dense_null(*operator.shape)


def _row(
    name: str, kind: str, operator: Operator, metric: str, estimate: Estimate, null: Null | None
) -> dict[str, Any]:
    layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
    module = name.split(".", 3)[3] if layer is not None else name
    nothing = float("nan")
    row = GeometryRow(
        "tuned", 0, 0, layer, module, kind, metric, estimate.value, estimate.lower, estimate.upper, 1.0,
        estimate.status, estimate.passes, null.median if null else nothing, null.low if null else nothing,
        null.high if null else nothing, null.kind if null else "none", None,
    )  # fmt: skip
    stored = {"name": name, "rows": operator.shape[0], "columns": operator.shape[1], "dtype": "bfloat16"}
    return asdict(row) | stored
