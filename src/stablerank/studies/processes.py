"""The processes of a study: one runner at a time, a cell in a process group of its own, and no orphan.

Contract: whoever holds `claimed` is the only runner of a study. Its cells inherit the claim, so a study stays claimed
until the last of them is dead, even if the runner was killed with SIGKILL; and each cell is tethered (`tether`): when
the runner's end of its stdin closes, for whatever reason, the cell's process group ends at once. A second runner that
waits for the claim therefore never meets a cell of the first.

POSIX only (flock, process groups). On a network file system flock is as good as the server.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from stablerank.errors import RunFolderError
from stablerank.studies.layout import StudyFolder

PATIENCE = 5.0
"""Seconds that a runner waits for a claim; an orphaned cell is gone long before."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_THREADS = "OMP_NUM_THREADS"


@contextmanager
def claimed(study: StudyFolder, patience: float = PATIENCE) -> Iterator[int]:
    """Be the one runner of a study; yields the descriptor that cells inherit.

    Raises:
        RunFolderError: another runner, or a cell of it, still lives after ``patience`` seconds, or nothing can be
            written here.
    """
    with _opened(study.claim_path) as file:
        deadline = time.monotonic() + patience
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"{study.path} is being run by another process; wait for it, or watch it with "
                    f"`stablerank study status {study.path}`."
                )
            time.sleep(0.05)
        yield file.fileno()


def is_claimed(study: StudyFolder) -> bool:
    """Whether a runner or a cell of this study lives."""
    try:
        with study.claim_path.open("rb") as file:
            return not _locked(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


@contextmanager
def cell_claimed(file: Path) -> Iterator[None]:
    """Be the one process of a cell, on all machines: waits for another one, such as a job of a runner that is gone."""
    with _opened(file.with_suffix(".lock")) as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        yield


class Child:
    """The process of one cell; what it prints goes to the end of the cell's log."""

    def __init__(self, study: StudyFolder, cell: str, claim: int, threads: int) -> None:
        self.cell = cell
        self.process = cell_process(study.cell_path(cell), study.log_path(cell), threads, claim)

    def is_running(self) -> bool:
        """Whether the cell is still at work."""
        return self.process.poll() is None


def cell_process(file: Path, log: Path, threads: int, *claims: int) -> subprocess.Popen[bytes]:
    """``stablerank cell FILE``, tethered to this process, in a group of its own; what it prints is added to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "stablerank", "cell", str(file), "--tethered"],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=_environment(threads),
            start_new_session=True,  # Ctrl-C is the runner's business
            pass_fds=claims,
        )


def stop(children: Iterable[Child], grace: float = GRACE) -> None:
    """End cells with everything they started: SIGTERM, then SIGKILL for what is left after ``grace`` seconds."""
    living = [child for child in children if child.is_running()]
    for child in living:
        _signal_group(child, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for child in living:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(child, signal.SIGKILL)
            child.process.wait()


def tether() -> None:
    """Make this process group end when stdin closes; called first thing by a cell that a runner started."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="tether", daemon=True).start()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that a scheduler's stop cleans up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only; a program that runs us in another keeps its own
        return
    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(jobs: int) -> int:
    """Cores for each of ``jobs`` cells at a time."""
    return max(1, cores() // jobs)


def _environment(threads: int) -> dict[str, str]:
    """Ours, the same modules as we see, unbuffered logs, and a number of threads unless the user chose one."""
    path = os.pathsep.join(filter(None, sys.path))
    return {_THREADS: str(threads), **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); make the folder writable.") from error


def _locked(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signal_group(child: Child, number: signal.Signals) -> None:
    # Between poll and signal the group may have ended by itself.
    try:
        os.killpg(child.process.pid, number)
    except ProcessLookupError:
        return
