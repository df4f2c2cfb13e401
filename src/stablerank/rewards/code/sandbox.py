"""The trainer's side of the sandbox: starts confined processes, waits, ends them, reads what they left.

A process gets a session of its own, an empty temporary folder to be in, no environment but a fixed hash seed (so that a
reward does not depend on the order of a set), no site-packages, and files without a name for what goes in and out. It
ends with its wall-clock limit, which is three times its CPU limit and two seconds for a busy machine.

Cost: one interpreter a test for programs, two a completion for assert statements: about 50 ms of CPU each.

Left out on purpose: other systems than Linux, and containers or remote sandboxes (write a ``python`` reward for them).
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from stablerank.errors import RewardError
from stablerank.rewards.code.confine import OUTPUT_BYTES

_SOURCE_ROOT = str(Path(__file__).resolve().parents[3])
_START = (
    "import sys; root = sys.argv.pop(1); sys.path.append(root); "
    "from stablerank.rewards.code.worker import main; sys.path.remove(root); main(sys.argv[1:])"
)
_PYTHON = [sys.executable, "-s", "-S", "-P", "-X", "utf8", "-c", _START, _SOURCE_ROOT]
_AFTER_THE_JUDGE = 0.5
"""Seconds that the code under test gets to end by itself once nobody asks it any more."""
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Limits:
    """Of one process. ``must`` names what has to be guarded: ``network``, ``files``."""

    cpu_seconds: int = 5
    memory_mb: int = 512
    must: frozenset[str] = frozenset({"network", "files"})

    @property
    def wall_seconds(self) -> int:
        """When a process is ended that sleeps, or that a busy machine starves."""
        return 3 * self.cpu_seconds + 2


class Protections(NamedTuple):
    """What this machine's kernel guards, by trial."""

    network: bool
    processes: bool
    files: bool


class Outcome(NamedTuple):
    """How a process ended: ``status`` as `subprocess` has it, None where the wall clock ended it."""

    status: int | None
    output: bytes

    @property
    def was_cut_off(self) -> bool:
        """Whether a limit ended it."""
        return self.status is None or self.status == -signal.SIGKILL


@cache
def protections() -> Protections:
    """What holds here. Raises RewardError where the sandbox cannot start at all."""
    if not sys.platform.startswith("linux"):
        raise RewardError(
            f"the reward code_tests needs the Linux kernel to confine code, and this is {sys.platform}; train on Linux"
        )
    with tempfile.NamedTemporaryFile() as trainers_file, _folder() as folder, tempfile.TemporaryFile() as output:
        probe = _start(["probe", *_limits(Limits(must=frozenset())), trainers_file.name], folder, output)
        outcome = _finish(probe, Limits().wall_seconds, output)
    try:
        return Protections(**json.loads(outcome.output))
    except (ValueError, TypeError):
        raise RewardError(
            f"the sandbox of the reward code_tests ended with status {outcome.status} instead of answering; "
            f"see whether `{sys.executable} -S -c pass` works"
        ) from None


def run_program(code: str, given: str, limits: Limits) -> Outcome:
    """What ``code`` prints when it reads ``given``; at most ``OUTPUT_BYTES``."""
    with _folder() as folder, _holding(code) as source, _holding(given) as stdin, tempfile.TemporaryFile() as output:
        arguments = ["program", *_limits(limits), str(source.fileno())]
        return _finish(_start(arguments, folder, output, [source.fileno()], stdin), limits.wall_seconds, output)


def run_asserts(code: str, tests: Sequence[str], limits: Limits, stop_at_first: bool) -> tuple[int, bool]:
    """How many tests passed, and whether a limit ended the code. Of each test both sides live in processes apart."""
    orders = json.dumps({"tests": list(tests), "stop_at_first": stop_at_first})
    with _folder() as folder, _holding(code) as source, _holding(orders) as ordered, tempfile.TemporaryFile() as output:
        ask, tell = os.pipe(), os.pipe()
        server_side, judge_side = [source.fileno(), ask[0], tell[1]], [ordered.fileno(), tell[0], ask[1]]
        try:
            server = _start(["server", *_limits(limits), *map(str, server_side)], folder, None, server_side)
            try:
                judge = _start(["judge", *_limits(limits), *map(str, judge_side)], folder, output, judge_side)
            finally:
                for end in (*ask, *tell):
                    os.close(end)
            verdicts = _finish(judge, limits.wall_seconds, output).output
        finally:
            ended = _finish(server, _AFTER_THE_JUDGE)
    return verdicts.count(b"1"), ended.was_cut_off


def _limits(limits: Limits) -> list[str]:
    return [str(limits.cpu_seconds), str(limits.memory_mb), ",".join(sorted(limits.must))]


@contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="stablerank-", ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def _holding(text: str) -> Iterator[IO[bytes]]:
    """A nameless file with this text. Model text may hold halves of surrogate pairs."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode(errors="replace"))
        file.seek(0)
        yield file


def _start(
    arguments: list[str],
    folder: str,
    output: IO[bytes] | None,
    descriptors: Sequence[int] = (),
    stdin: IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*_PYTHON, *arguments],
        stdin=stdin or subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=_ENVIRONMENT,
        pass_fds=descriptors,
        start_new_session=True,
    )


def _finish(process: "subprocess.Popen[bytes]", seconds: float, output: IO[bytes] | None = None) -> Outcome:
    """Wait, end the whole process group before its leader is reaped (its number cannot be anybody else's), and read."""
    watched = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    try:
        ended = bool(poll.poll(1000 * seconds))
    finally:
        os.close(watched)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return Outcome(status if ended else None, os.pread(output.fileno(), OUTPUT_BYTES, 0) if output else b"")
