"""Is this answer the gold one? The worker side of ``math_verify``, run as ``python -m stablerank.rewards.verdicts``.

Model text is hostile input: ``9^{9^{9}}`` or 3,000 brackets keep the symbolic parser busy for minutes and gigabytes.
So it is read in a process of its own, whose kernel timer kills it when one answer has used its CPU time. Unlike
``math_verify``'s own alarm this works from any thread of the trainer, interrupts C code, leaves the trainer's signals
and memory alone, and, being CPU time, does not depend on how busy the machine is.

Protocol: the line ``ready``, then one JSON line ``[gold, answer]`` in for one verdict out.

Left out on purpose: Windows (no interval timers), and ``math_verify``'s own timeouts (they would use the same signals).
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from stablerank.rewards.verifier import Verdict

MEMORY_BYTES = 2 << 30
_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def judge(gold: str, answer: str) -> Verdict:
    """Whether ``answer``, a text that ends in an answer, equals ``gold``, a bare LaTeX expression or number."""
    gold_expressions = _gold_expressions(gold)
    if not gold_expressions:
        return "no_gold"
    expressions = _expressions(answer)
    if not expressions:
        return "no_answer"
    return "right" if verify(gold_expressions, expressions, timeout_seconds=None) else "wrong"


@lru_cache(maxsize=4096)
def _gold_expressions(gold: str) -> list[Any]:
    """A bare gold is boxed first: unanchored, ``math_verify`` would read ``2^{10}`` as 2 and ``2x+1`` as 2."""
    anchored = "$" in gold or "\\boxed" in gold
    return _expressions(gold if anchored else f"\\boxed{{{gold}}}")


def _expressions(text: str) -> list[Any]:
    """What ``math_verify`` finds in a text; nothing, if all it found is a string that it could not parse."""
    found = parse(text, extraction_config=_EXTRACTION, parsing_timeout=None)
    return found if any(not isinstance(expression, str) for expression in found) else []


def main(cpu_seconds: float) -> None:
    """Answer requests until standard input closes; die of SIGPROF when one takes longer than ``cpu_seconds``."""
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    judge("1", "\\boxed{\\frac{1}{2}}")  # loads the grammar, which must not count as the first answer's time
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    _silence()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        verdict = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(verdict, file=replies, flush=True)


def _silence() -> None:
    """The parsers print their complaints; none of it may reach the protocol or the trainer's terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())


if __name__ == "__main__":
    main(float(sys.argv[1]))
