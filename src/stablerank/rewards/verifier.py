"""The trainer's side of the verdict worker: one question, one verdict, never an exception because of a model's text.

A worker that dies on an answer (CPU time, memory, a crash of the parser) costs that answer the verdict ``undecided``
and is replaced at the next question. Safe to call from several threads; they take turns.
"""

import json
import os
import subprocess
import sys
import threading
import weakref
from typing import IO, Literal, cast

from stablerank.errors import RewardError

Verdict = Literal["right", "wrong", "no_answer", "no_gold", "undecided"]


class Verifier:
    """Judges answers in a worker process that is started at the first question.

    ``cpu_seconds`` bounds the CPU time of one answer. ``worker`` is the module that runs there, ``remedy`` what to do
    where it does not start. The worker holds about 60 MB, ends with this object, and ends by itself when the trainer
    is killed.
    """

    def __init__(
        self,
        cpu_seconds: float = 2.0,
        worker: str = "stablerank.rewards.verdicts",
        remedy: str = "try `python -m pip check`",
    ) -> None:
        self.cpu_seconds = cpu_seconds
        self._worker, self._remedy = worker, remedy
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def verdict(self, gold: str, answer: str) -> Verdict:
        """Whether ``answer`` equals ``gold``. Raises RewardError only if no worker can be started at all."""
        with self._lock:
            process = self._running()
            try:
                reply = _ask(process, json.dumps([gold, answer]))
            except BaseException:  # an interrupt between question and reply: the pipe would stay one reply behind
                _stop(process)
                raise
            if not reply:
                _stop(process)
            return cast(Verdict, reply or "undecided")

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._process = _start(self._worker, self.cpu_seconds, self._remedy)
            weakref.finalize(self, _stop, self._process)
        return self._process


def _start(worker: str, cpu_seconds: float, remedy: str) -> "subprocess.Popen[str]":
    """A worker that said ``ready``; it sees the same modules as we do, and none from the current folder."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", worker, str(cpu_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is the trainer's business
    )
    if cast(IO[str], process.stdout).readline().strip() == "ready":
        return process
    complaint = (cast(IO[str], process.stderr).read().strip().splitlines() or ["it said nothing"])[-1]
    _stop(process)
    raise RewardError(f"the worker {worker} did not start ({complaint}); {remedy}")


def _ask(process: "subprocess.Popen[str]", question: str) -> str:
    """The worker's reply, empty if it died."""
    try:
        print(question, file=process.stdin, flush=True)
    except BrokenPipeError:
        return ""
    return cast(IO[str], process.stdout).readline().strip()


def _stop(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
