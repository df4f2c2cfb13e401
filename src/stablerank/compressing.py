"""`stablerank rate-distortion`: what quality each byte of one adapter buys, method by method and bit by bit.

What crosses floors: `compression` writes the files, `evaluation` finds the model and reads texts, `reports` show.

Contract: the adapter is compressed by every method with every number of bits it has. Each file is weighed on disk, its
updates are compared with the adapter's own (error, stable rank, and the bounds that tie them), and with texts the same
texts are read by the base, by the adapter as it is and by every file's adapter. ``cost`` is the loss of a file less
that of the adapter as it is, paired by text, with its 95 % interval. The pick is the smallest file of whose cost even
the upper end is within the tolerance.

Left out on purpose: training (a SineLoRA is another adapter; give it to a second call); other qualities than a loss of
texts (`benchmarks/rate_distortion.py` has pass@1); delta rates between adapters
(`stablerank.evaluation.rate_distortion`).
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from stablerank.compression.compress import Compressed, compress, load_compressed
from stablerank.compression.losses import LossSummary, summary
from stablerank.compression.quantisers.methods import QUANTISERS
from stablerank.compression.spec import FULL, CompressionSpec, Group, Method
from stablerank.errors import DataError
from stablerank.evaluation.losses import text_loss, text_loss_change
from stablerank.evaluation.statistics import Interval
from stablerank.evaluation.subjects import Subject, subject
from stablerank.evaluation.text_probe import TextProbe
from stablerank.reports.rate_distortion import page
from stablerank.runs.atomic import refuse_occupied, whole_folder, write_json, write_text
from stablerank.runs.strict_json import strict
from stablerank.tasks.named import named_rows

RESULTS, REPORT = "rate_distortion.json", "report.html"
METHODS: tuple[Method, ...] = ("kmeans", "affine", "nf4")
NF4_GROUP, BATCH = 64, 8
Progress = Callable[[int, int, str], None]
"""``progress(files done, files in all, what comes next)``."""
TextRows = list[dict[str, float]]


@dataclass(frozen=True)
class Point:
    """One compressed file."""

    method: str
    bits: int
    bytes: int
    share: float
    """Of the adapter in fp16."""
    lost: LossSummary
    lower: float
    """Bounds of the stable rank after compression, medians over modules; infinite where nothing is promised."""
    upper: float
    loss: Interval | None
    """Nats a token; None without texts."""
    cost: Interval | None
    """Loss less that of the adapter as it is, on the same texts."""


@dataclass(frozen=True)
class RateDistortion:
    """All files of one adapter."""

    adapter: str
    texts: int
    tolerance: float
    base_loss: Interval | None
    adapter_loss: Interval | None
    points: tuple[Point, ...]

    @property
    def pick(self) -> Point | None:
        """The smallest file that costs no more than the tolerance; None without texts, or where every file does."""
        fine = [point for point in self.points if point.cost is not None and point.cost.high <= self.tolerance]
        return min(fine, key=lambda point: point.bytes, default=None)

    def results(self) -> dict[str, Any]:
        """Plain data; what is not defined is null."""
        place = None if self.pick is None else self.points.index(self.pick)
        plain: dict[str, Any] = strict({**asdict(self), "pick": place})
        return plain


def rate_distortion(
    adapter: str,
    texts: str | None = None,
    *,
    base: str | None = None,
    columns: dict[str, str] | None = None,
    methods: Sequence[Method] = METHODS,
    bits: Sequence[int] = range(1, 9),
    group: Group | None = None,
    rank: int | None = None,
    energy: float | None = None,
    limit: int = 64,
    max_length: int = 512,
    tolerance: float = 0.01,
    out: Path | None = None,
    progress: Progress | None = None,
) -> RateDistortion:
    """Compress an adapter in every way and say what each file costs.

    Args:
        adapter: the folder of a PEFT adapter, or of a finished run.
        texts: ``arithmetic``, or JSONL, JSON, CSV, Parquet, ``data:NAME`` or a hub id; None leaves losses out.
        base: where the base is, if not where the adapter says.
        columns: our name to the file's: ``{"text": ...}``, or ``{"prompt": ..., "completion": ...}``.
        methods: quantisers; each takes those ``bits`` that it has. fp16 stands beside them.
        bits: bits a value.
        group: what shares a codebook or a scale; None: a tensor, and 64 values under nf4.
        rank: cut each update to so many directions first.
        energy: cut it to this share of the squared singular values.
        limit: the first texts only.
        max_length: tokens of a text that count.
        tolerance: the cost of the pick at most, nats a token.
        out: a new folder for the results and a page.
        progress: called before each file.

    Raises:
        StablerankError: adapter, base, texts or folder unusable.
    """
    specs = _specs(methods, bits, group, rank, energy)
    if out is not None:
        refuse_occupied(out.expanduser())
    found = subject(adapter) if base is None else subject(base, adapter)
    reader = None if texts is None else _Reader(found, texts, columns or {}, limit, max_length)
    points = tuple(_points(adapter, found.base, specs, reader, progress))
    of_base, of_adapter = (
        (None, None) if reader is None else (text_loss(rows)["loss"] for rows in (reader.of_base, reader.of_adapter))
    )
    done = RateDistortion(adapter, 0 if reader is None else reader.texts, tolerance, of_base, of_adapter, points)
    if out is not None:
        with whole_folder(out.expanduser()) as folder:
            write_json(folder / RESULTS, done.results())
            write_text(folder / REPORT, page(done.results()))
    return done


def _specs(
    methods: Sequence[Method], bits: Sequence[int], group: Group | None, rank: int | None, energy: float | None
) -> list[CompressionSpec]:
    pairs = [(method, b) for method in methods if method != FULL for b in bits if b in QUANTISERS[method].bits]
    if not pairs:
        raise DataError(f"None of {', '.join(methods)} has {', '.join(map(str, bits))} bits; give some of 1 to 8.")
    groups: dict[Method, Group] = {"nf4": NF4_GROUP}
    return [
        CompressionSpec(method, b, group or groups.get(method, "tensor"), rank, energy)
        for method, b in [(FULL, None), *pairs]
    ]


class _Reader:
    """The texts, and what base and adapter make of them; one base in memory serves every file."""

    def __init__(self, found: Subject, texts: str, columns: dict[str, str], limit: int, max_length: int) -> None:
        if limit < 2 or max_length < 2:
            raise DataError(f"{limit} texts of {max_length} tokens tell nothing apart: give 2 of both at least.")
        rows = named_rows(texts, columns, limit, "test")
        longest = min(max_length, found.context or max_length)
        self._probe = TextProbe(found.tokenizer, rows, longest, BATCH, named=texts, remedy="--max-length")
        self._base: nn.Module = replace(found, adapter=None).load()
        self.texts = len(rows)
        self.of_base: TextRows = self._probe.rows(self._base)
        self.of_adapter: TextRows = self._probe.rows(found.load())

    def of_file(self, file: Path) -> TextRows:
        loaded = load_compressed(file, self._base)
        rows = self._probe.rows(loaded)
        self._base = loaded.unload()
        return rows


def _points(
    adapter: str, base: str, specs: Sequence[CompressionSpec], reader: _Reader | None, progress: Progress | None
) -> Iterator[Point]:
    for place, spec in enumerate(specs):
        if progress is not None:
            progress(place, len(specs), f"{spec.method}, {spec.bits} bits")
        with tempfile.TemporaryDirectory() as folder:
            done = compress(adapter, Path(folder) / "adapter.safetensors", spec, base=base)
            rows = None if reader is None else reader.of_file(done.file)
        yield _point(done, rows, None if reader is None else reader.of_adapter)


def _point(done: Compressed, rows: TextRows | None, as_it_is: TextRows | None) -> Point:
    return Point(
        done.spec.method,
        int(done.spec.bits or 0),
        done.account.file,
        done.account.share,
        summary(done.losses),
        *_bounds(done),
        None if rows is None else text_loss(rows)["loss"],
        None if rows is None or as_it_is is None else text_loss_change(as_it_is, rows),
    )


def _bounds(done: Compressed) -> tuple[float, float]:
    def of(name: str) -> Iterator[float]:
        return (value for loss in done.losses if not math.isnan(value := getattr(loss, name)))

    if not list(of("lower")):
        return math.nan, math.nan
    return statistics.median(of("lower")), statistics.median(of("upper"))
