"""Measure every matrix of a checkpoint, a difference or an adapter, several at a time, and survive what is broken.

Contract: one `MeasuredTensor` a task, in the order of the file whatever finishes first. A tensor that cannot be read,
or that holds a value which is not finite, is a `Problem` naming file and tensor; the rest is measured. Nothing that has
no status has a number.

Concurrency: ``jobs`` threads, each with one torch thread, so that results do not depend on ``jobs``; torch releases the
interpreter lock inside its kernels. Peak memory is ``jobs`` times the largest tensor in its stored dtype (twice that
for a pair of checkpoints) plus a constant; ask for one job where a single tensor is large.

Left out on purpose: files and reports; what is measured is handed to ``keep`` as it comes.
"""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stablerank.errors import ModelError
from stablerank.probes.checkpoints import Task, Worklist
from stablerank.probes.evaluate import read
from stablerank.probes.rows import Moment, geometry_row
from stablerank.probes.sources.stored import Problem
from stablerank.runs.geometry_rows import GeometryRow


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
    tasks = iter([task for task in work.tasks if task.tensor not in done])
    with one_torch_thread(), ThreadPoolExecutor(jobs) as pool:
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
    try:
        found = tuple(_matrices(task, kind, settings))
    except (ModelError, OSError) as error:
        return MeasuredTensor(task.tensor, task.dtype, task.nbytes, (), (Problem(task.file, task.tensor, str(error)),))
    broken = [matrix.name for matrix in found if any(row.status == "non_finite" for row in matrix.rows)]
    problems = tuple(
        Problem(task.file, task.tensor, f"{name} holds values that are not finite; save or download the model again.")
        for name in broken
    )
    return MeasuredTensor(task.tensor, task.dtype, task.nbytes, found, problems)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One torch thread for the callers' threads, the former number afterwards."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _matrices(task: Task, kind: str, settings: Settings) -> Iterator[MeasuredMatrix]:
    moment = Moment(settings.run)
    for name, subject in task.subjects():
        readings = read(subject, settings.metrics, rtol=settings.rtol, delta=settings.delta)
        rows = [
            geometry_row(name, kind, reading.metric, reading.estimate, reading.null, moment, delta=settings.delta)
            for reading in readings
        ]
        yield MeasuredMatrix(name, subject.operator.shape, tuple(rows))


def _kept(running: set[Future[MeasuredTensor]], keep: Callable[[MeasuredTensor], None]) -> set[Future[MeasuredTensor]]:
    finished, still = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        keep(future.result())
    return still
