"""`reasoning-gym`'s own scorers, in a process of its own: run as ``python -m stablerank.rewards.gym_scores``.

Its scorers simulate, parse and search whatever a model wrote, some for ever, so the kernel's timer kills this process
when one answer has used its CPU time, as in ``verdicts.py``.

Nine of them hand the model's text to ``eval``, plainly or through `sympy`'s ``parse_expr``. `EVALUATED` names those
that cannot be used; the two of `ARITHMETIC` are given answers made of numbers, operators and brackets only, which name
nothing that could be called.

Protocol: the line ``ready``, then one JSON line ``[scored, answer]`` in for one verdict out, where ``scored`` is the
row's ``metadata``.
"""

import contextlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from stablerank.rewards.verifier import Verdict
from stablerank.tasks import gym

EVALUATED = frozenset(
    {
        "binary_matrix",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
ARITHMETIC = frozenset({"countdown", "puzzle24"})
MEMORY_BYTES = 2 << 30
_ARITHMETIC_TEXT = re.compile(r"[0-9+\-*/(). ]+")
_FULL_SCORE = 1 - 1e-9


def judge(scored: str, answer: str) -> Verdict:
    """Whether the task's scorer gives ``answer`` its full score. ``no_gold`` if the row cannot be read."""
    try:
        row = json.loads(scored)
        task, config, entry = row["task"], row["config"], row["entry"]
    except (ValueError, TypeError, KeyError):
        return "no_gold"
    if task in EVALUATED or (task in ARITHMETIC and not _ARITHMETIC_TEXT.fullmatch(answer)):
        return "wrong"
    try:
        return "right" if _scorer(task, json.dumps(config))(answer, entry) >= _FULL_SCORE else "wrong"
    except Exception:  # a scorer that stumbles over an answer: many do not guard their parsing
        return "wrong"


@lru_cache(maxsize=64)
def _scorer(task: str, config: str) -> Callable[[str, Any], float]:
    return gym.scorer(task, json.loads(config))


def main(cpu_seconds: float) -> None:
    """Answer requests until standard input closes; die of SIGPROF when one takes longer than ``cpu_seconds``."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    gym.scorer("chain_sum", {})  # loads the library, which must not count as the first answer's time
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        verdict = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(verdict, file=replies, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
