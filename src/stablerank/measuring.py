"""`stablerank.measure`: from a path to a table, its findings and, if asked, a folder with a report.

What crosses floors: probes measure, `diagnoses` reads the rows, reports draw them.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stablerank.diagnoses import Finding, diagnose
from stablerank.errors import ModelError, StablerankError
from stablerank.probes import checkpoints
from stablerank.probes.checkpoints import Worklist
from stablerank.probes.evaluate import DEFAULT_PAIR, STORED_PAIR, TOP, check_accuracy, check_metrics
from stablerank.probes.measure import MeasuredTensor, Settings, measure_all
from stablerank.probes.measure_folder import MeasureFolder, fingerprint, rows_table
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.runs.manifest import package_versions
from stablerank.spectral.certified import DELTA, RTOL

Progress = Callable[[int, int, str], None]
"""``progress(bytes done, bytes in all, tensor)``."""


@dataclass(frozen=True)
class Measurement:
    """Every row, and what a reader needs to know beside them."""

    meta: dict[str, Any]
    tensors: tuple[MeasuredTensor, ...]
    folder: Path | None = None
    rows: tuple[GeometryRow, ...] = field(init=False)

    def __post_init__(self) -> None:
        rows = tuple(row for tensor in self.tensors for matrix in tensor.matrices for row in matrix.rows)
        object.__setattr__(self, "rows", rows)

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What could not be measured: file, tensor and reason."""
        return list(self.meta["problems"])

    def findings(self) -> list[Finding]:
        """What the rows say in plain words."""
        return diagnose(self.rows)

    def table(self) -> pa.Table:
        """The tidy table, one row a matrix and metric."""
        return rows_table(self.tensors)


def measure(
    path: str | Path,
    *,
    against: str | Path | None = None,
    adapter: bool | None = None,
    initial: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    rtol: float = RTOL,
    delta: float = DELTA,
    jobs: int = 1,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure a checkpoint, the update between two, or an adapter.

    Args:
        path: a safetensors or GGUF file, a folder of them, ``zoo:NAME``, or the folder of a PEFT adapter.
        against: the base: of a checkpoint to measure the update, of an adapter to compare with the weights it changes.
        adapter: whether ``path`` is an adapter; None looks for ``adapter_config.json``.
        initial: the same adapter before training, for initialisers that changed the base (PiSSA and kin).
        metrics: names; by default stable rank and norms, for an update also its relative norm and storage effects.
        rtol: relative accuracy of the stable rank, certified.
        delta: probability that the certificate of one matrix fails.
        jobs: tensors at a time; the result does not depend on it.
        out: folder for tables and report; an interrupted measurement goes on there.
        progress: called as tensors finish.

    Raises:
        StablerankError: nothing can be measured, or the request makes no sense; a broken tensor among whole ones is in
            ``problems`` instead.
    """
    started = time.perf_counter()
    is_adapter = checkpoints.is_adapter(path) if adapter is None else adapter
    _require_sense(is_adapter, initial, jobs)
    check_accuracy(rtol, delta)
    work = _worklist(path, against, is_adapter, initial)
    chosen = _metrics(metrics, work, base=against is not None, stored=not is_adapter)
    settings = Settings(os.path.basename(os.path.abspath(os.path.expanduser(path))), chosen, rtol, delta)
    folder = None if out is None else MeasureFolder(Path(os.path.expanduser(out)))
    question = _question(path, against, initial, is_adapter, settings, work)
    found = {} if folder is None else {tensor.tensor: tensor for tensor in folder.claim(question)}
    earlier = len(found)
    _measure_rest(work, settings, jobs, found, folder, progress)
    tensors = tuple(found[task.tensor] for task in work.tasks)
    if folder is None:
        return Measurement(_meta(question, work, tensors, started, earlier), tensors)
    meta = folder.finished() if earlier == len(work.tasks) else None
    if meta is None:
        meta = _meta(question, work, tensors, started, earlier)
        folder.complete(meta, tensors)
    _report(folder.path)
    return Measurement(meta, tensors, folder.path)


def _require_sense(is_adapter: bool, initial: str | Path | None, jobs: int) -> None:
    if jobs < 1:
        raise StablerankError(f"jobs is {jobs}, but at least one tensor must be measured at a time: give 1 or more.")
    if initial is not None and not is_adapter:
        raise StablerankError(
            f"An initial adapter ({initial}) belongs to an adapter, not to a checkpoint: leave it out."
        )


def _worklist(path: str | Path, against: str | Path | None, is_adapter: bool, initial: str | Path | None) -> Worklist:
    try:
        if is_adapter:
            work = checkpoints.adapter_updates(path, against, initial)
        else:
            work = checkpoints.weights(path) if against is None else checkpoints.differences(path, against)
    except OSError as error:
        place = error.filename or path
        raise ModelError(f"{place} cannot be read ({error.strerror or error}); make it readable first.") from error
    if not work.tasks:
        raise ModelError(f"Nothing can be measured in {path}: {_why_nothing(work, against)}")
    return work


def _why_nothing(work: Worklist, against: str | Path | None) -> str:
    if work.problems:
        first = work.problems[0]
        named = first.tensor is None or first.tensor in first.reason
        return first.reason if named else f"{first.tensor}: {first.reason}"
    if against is not None:
        return f"no matrix in it has the name of one in {against}; compare checkpoints of one model."
    held = ", ".join(f"{count} {reason}" for reason, count in work.skipped) or "nothing"
    return f"it holds no matrix ({held}); give the weights of a model."


def _metrics(names: Sequence[str] | None, work: Worklist, *, base: bool, stored: bool) -> tuple[str, ...]:
    is_update = work.kind == "update"
    if names is None:
        pair = [name for name in DEFAULT_PAIR if stored or name not in STORED_PAIR] if is_update and base else []
        return (*TOP, *pair)
    return check_metrics(names, update=is_update, base=base, stored=stored)


def _measure_rest(
    work: Worklist,
    settings: Settings,
    jobs: int,
    found: dict[str, MeasuredTensor],
    folder: MeasureFolder | None,
    progress: Progress | None,
) -> None:
    """Add to ``found`` what it lacks, on disk before it counts."""
    done = sum(tensor.nbytes for tensor in found.values())

    def keep(tensor: MeasuredTensor) -> None:
        nonlocal done
        if folder is not None:
            folder.keep(tensor)
        found[tensor.tensor] = tensor
        done += tensor.nbytes
        if progress is not None:
            progress(done, work.nbytes, tensor.tensor)

    measure_all(work, settings, jobs=jobs, done=set(found), keep=keep)


def _report(folder: Path) -> None:
    if not (folder / "report.html").exists():
        # Drawing loads matplotlib, which a table on the terminal has no need of.
        from stablerank.reports.measure_html import write_measure_report

        write_measure_report(folder)


def _question(
    path: str | Path,
    against: str | Path | None,
    initial: str | Path | None,
    is_adapter: bool,
    settings: Settings,
    work: Worklist,
) -> dict[str, Any]:
    return {
        "path": str(path),
        "against": None if against is None else str(against),
        "initial": None if initial is None else str(initial),
        "adapter": is_adapter,
        "metrics": list(settings.metrics),
        "rtol": settings.rtol,
        "delta": settings.delta,
        "files": fingerprint(work.files),
    }


def _meta(
    question: dict[str, Any], work: Worklist, tensors: Sequence[MeasuredTensor], started: float, earlier: int
) -> dict[str, Any]:
    problems = [*work.problems, *(problem for tensor in tensors for problem in tensor.problems)]
    return {
        **{key: value for key, value in question.items() if key != "files"},
        "kind": work.kind,
        "matrices": sum(len(tensor.matrices) for tensor in tensors),
        "bytes": work.nbytes,
        "seconds": time.perf_counter() - started,
        "problems": [asdict(problem) for problem in problems],
        "skipped": dict(work.skipped),
        "missing": list(work.missing),
        "extra": list(work.extra),
        "notes": [*work.notes, *_interruption(earlier, len(tensors))],
        "packages": package_versions(),
    }


def _interruption(earlier: int, tensors: int) -> list[str]:
    if not earlier:
        return []
    return [f"Resumed: {earlier} of {tensors} tensors are from an earlier start, which the time leaves out."]
