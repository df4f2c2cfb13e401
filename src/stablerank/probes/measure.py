"""Measure every matrix of a checkpoint, a difference or an adapter, several at a time, and survive what is broken.

Contract: one `MeasuredTensor` a task, handed over as it finishes. A tensor that cannot be read, or that holds a value
which is not finite, is a `Problem` naming file and tensor, of a pair the file that is to blame; the rest is measured.
Nothing that has no status has a number.

Concurrency: ``jobs`` threads, each with one torch thread, so that results do not depend on ``jobs``; torch releases the
interpreter lock inside its kernels. Peak memory is ``jobs`` times the largest tensor in its stored dtype (twice that
for a pair of checkpoints) plus a constant; ask for one job where a single tensor is large.

Left out on purpose: files and reports; what is measured is handed to ``keep`` as it comes.
"""

import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stablerank.errors import ModelError
from stablerank.probes.checkpoints import Task, Worklist
from stablerank.probes.evaluate import Subject, frobenius_norm, read
from stablerank.probes.rows import Moment, geometry_row
from stablerank.probes.sources.stored import Problem
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.operators import Difference


@dataclass(frozen=True)
class MeasuredMatrix:
    """The rows of one matrix."""

    name: str
    shape: tuple[int, int]
    rows: tuple[GeometryRow, ...]


@dataclass(frozen=True)
class MeasuredTensor:
    """What one stored tensor gave: its matrices, or the problem that kept it from being measured."""

    tensor: str
    dtype: str
    nbytes: int
    matrices: tuple[MeasuredMatrix, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Settings:
    """What to measure and how closely."""

    run: str
    metrics: tuple[str, ...]
    rtol: float
    delta: float


def measure_all(
    work: Worklist,
    settings: Settings,
    *,
    jobs: int = 1,
    done: Collection[str] = (),
    keep: Callable[[MeasuredTensor], None],
) -> None:
    """Measure every task whose tensor is not in ``done``; ``keep`` gets the results one at a time, as they finish."""
    tasks = [task for task in work.tasks if task.tensor not in done]
    # Each thread is told by itself: BLAS in a new one ignores the caller's number, and the last bits depend on it.
    with one_torch_thread(), ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: set[Future[MeasuredTensor]] = set()
        try:
            for task in tasks:
                running.add(pool.submit(measure_tensor, task, work.kind, settings))
                if len(running) >= jobs:
                    running = _kept(running, keep)
            while running:
                running = _kept(running, keep)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def measure_tensor(task: Task, kind: str, settings: Settings) -> MeasuredTensor:
    """Read one tensor and measure the matrices in it."""
    found: list[MeasuredMatrix] = []
    problems: list[Problem] = []
    try:
        for name, subject in task.subjects():
            matrix = _measured(name, subject, kind, settings)
            found.append(matrix)
            if any(row.status == "non_finite" for row in matrix.rows):
                problems += _not_finite(task, name, subject)
    except (ModelError, OSError) as error:
        return MeasuredTensor(task.tensor, task.dtype, task.nbytes, (), (Problem(task.file, task.tensor, str(error)),))
    return MeasuredTensor(task.tensor, task.dtype, task.nbytes, tuple(found), tuple(problems))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread, then the former number for the caller and for threads to come."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _measured(name: str, subject: Subject, kind: str, settings: Settings) -> MeasuredMatrix:
    moment = Moment(settings.run)
    readings = read(subject, settings.metrics, rtol=settings.rtol, delta=settings.delta)
    rows = [
        geometry_row(name, kind, reading.metric, reading.estimate, reading.null, moment, delta=settings.delta)
        for reading in readings
    ]
    return MeasuredMatrix(name, subject.operator.shape, tuple(rows))


def _not_finite(task: Task, name: str, subject: Subject) -> list[Problem]:
    """Which of an update's two files is to blame, or both."""
    own = subject.operator.after_OI if isinstance(subject.operator, Difference) else None
    base_broken = subject.base_OI is not None and not math.isfinite(subject.base_norm)
    own_broken = not base_broken or (own is not None and not math.isfinite(frobenius_norm(own)))
    files = [task.file] * own_broken + [task.base_file] * base_broken
    reason = f"{name} holds values that are not finite; save or download the model again."
    return [Problem(file, task.tensor, reason) for file in files]


def _kept(running: set[Future[MeasuredTensor]], keep: Callable[[MeasuredTensor], None]) -> set[Future[MeasuredTensor]]:
    finished, still = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        keep(future.result())
    return still
