"""Code reward: does the program of a completion pass its unit tests?

1.0 where it passes all of them, else 0.0; or the share that it passes. A completion without a program gets 0.0 and is
counted; a row whose tests cannot be read makes its completions unscorable (NaN) and is counted.

The program runs confined (``confine.py``), and what it returns or prints is compared elsewhere (``judge.py``,
``unit_tests.py``): it cannot report a success of its own.

Cost: about 90 ms of CPU a completion, or 50 ms a test of programs, plus what the code takes; ``workers`` at once.

Left out on purpose: partial credit within a test, coverage, style.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from stablerank.rewards.code import sandbox
from stablerank.rewards.code.extraction import python_code
from stablerank.rewards.code.unit_tests import Pair, read_tests, same_output
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout

Score = Literal["all", "share"]


class _Result(NamedTuple):
    reward: float | None
    note: str = ""


class CodeTestsReward(Reward):
    """Unit tests in column ``tests_column`` passed by the last Python block of a completion.

    ``score``: ``all`` gives 1.0 only for every test, ``share`` the fraction passed. ``workers`` processes run at once;
    unset, as many as there are cores.

    Notes: ``parse_failures`` completions without a program, ``unreadable_tests`` rows likewise, ``cut_off`` programs
    that a limit ended.
    """

    name = "code_tests"

    def __init__(
        self,
        tests_column: str = "tests",
        score: Score = "all",
        limits: sandbox.Limits | None = None,
        workers: int | None = None,
    ) -> None:
        self.tests_column = tests_column
        self.score = score
        self.limits = limits or sandbox.Limits()
        self.workers = workers or os.cpu_count() or 1
        held = [what for what, holds in sandbox.protections()._asdict().items() if holds]
        self.own_forward = (
            f"the code of every completion, in a sandbox that keeps it from: {', '.join(held) or 'nothing'}"
        )

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError if the data lacks the column."""
        columns = rollout.column(self.tests_column, self.name)
        with ThreadPoolExecutor(self.workers) as pool:
            results = list(pool.map(self._result, rollout.completions, columns))
        notes = [result.note for result in results]
        counted = {note: notes.count(note) for note in ("parse_failures", "unreadable_tests", "cut_off")}
        return trajectory_deposit([result.reward for result in results], rollout.completion_mask_NT, counted)

    def _result(self, completion: str, column: Any) -> _Result:
        tests = read_tests(column)
        if tests is None:
            return _Result(None, "unreadable_tests")
        code = python_code(completion)
        if code is None:
            return _Result(0.0, "parse_failures")
        if isinstance(tests[0], Pair):
            passed, cut_off = self._passed_pairs(code, tests)
        else:
            stop_at_first = self.score == "all"
            passed, cut_off = sandbox.run_asserts(code, tests, self.limits, stop_at_first)
        share = passed / len(tests)
        return _Result(share if self.score == "share" else float(share == 1), "cut_off" if cut_off else "")

    def _passed_pairs(self, code: str, tests: Sequence[Pair]) -> tuple[int, bool]:
        passed, cut_off = 0, False
        for given, expected in tests:
            outcome = sandbox.run_program(code, given, self.limits)
            cut_off = cut_off or outcome.was_cut_off
            printed = outcome.output.decode(errors="replace")
            right = outcome.status == 0 and same_output(printed, expected)
            passed += right
            if not right and self.score == "all":
                break
        return passed, cut_off
