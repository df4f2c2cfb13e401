import math
import os
import signal
import subprocess
import sys
import threading
import time

import math_verify
import pytest

from stablerank.errors import RewardError
from stablerank.rewards.outcome import READ_CHARACTERS, MathVerifyReward, answer_text
from stablerank.rewards.rollout import rollout_from_trl
from stablerank.rewards.verdicts import MEMORY_BYTES
from stablerank.rewards.verifier import Verifier


@pytest.fixture(scope="module")
def reward():
    return MathVerifyReward(cpu_seconds=1.0)


def score(reward, completions, answers):
    count = len(completions)
    return reward(rollout_from_trl(["?"] * count, completions, [[1]] * count, answer=answers))


def rewards(reward, completions, answers):
    return score(reward, completions, answers).trajectory_rewards_N.tolist()


ORDINARY = [
    ("9", "\\boxed{9}"),
    ("9", "3+4=7\n7*2=14\n14-5=9\n\\boxed{9}"),
    ("9", "\\boxed{8}"),
    ("9", "so it is 9"),
    ("9", "it is 9.0"),
    ("-5", "\\boxed{-5}"),
    ("1234", "about \\boxed{1,234}"),
    ("0.5", "\\boxed{\\frac12}"),
    ("\\frac{1}{2}", "The answer is $\\frac{2}{4}$."),
    ("\\frac{1}{2}", "\\boxed{0.4}"),
    ("$x+1$", "\\boxed{1+x}"),
    ("\\boxed{7}", "7"),
    ("(1,2)", "\\boxed{(1, 2)}"),
    ("50%", "$50\\%$"),
    ("18", "\\boxed{\\$18}"),
]


def test_verdicts_are_those_of_math_verify(reward):
    golds, completions = zip(*ORDINARY, strict=True)
    expected = [
        float(
            math_verify.verify(math_verify.parse(gold if "$" in gold else f"${gold}$"), math_verify.parse(completion))
        )
        for gold, completion in ORDINARY
    ]
    assert rewards(reward, completions, golds) == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize(
    ("gold", "wrong"), [("2^{10}", "\\boxed{2}"), ("2x+1", "\\boxed{2}"), ("3\\sqrt{2}", "\\boxed{3}")]
)
def test_a_bare_gold_is_read_whole(reward, gold, wrong):
    assert rewards(reward, [f"\\boxed{{{gold}}}", wrong], [gold, gold]) == [1.0, 0.0]


def test_numbers_are_gold_answers_too(reward):
    assert rewards(reward, ["\\boxed{9}", "\\boxed{9}"], [9, 9.0]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "judged"),
    [
        ("\\boxed{1} no, \\boxed{2}", "\\boxed{2}"),
        ("\\boxed{\\frac{1}{2}}.", "\\boxed{\\frac{1}{2}}"),
        ("\\boxed{3} and \\boxed{4", "\\boxed{3}"),
        ("\\boxed{\\boxed{5}}", "\\boxed{\\boxed{5}}"),
        ("\\boxed{\\{1\\}} }{", "\\boxed{\\{1\\}}"),
        ("no box", "no box"),
        ("x" * 9_999 + "7", "x" * (READ_CHARACTERS - 1) + "7"),
        ("\\boxed{" + "1+" * READ_CHARACTERS + "9}", ""),
    ],
)
def test_what_is_judged(completion, judged):
    assert answer_text(completion) == judged


def test_failures_are_counted_and_only_a_missing_gold_is_unscorable(reward):
    deposit = score(reward, ["no idea", "\\boxed{}", "\\boxed{9}", "\\boxed{9}", ""], ["9", "9", None, " ", "9"])
    assert deposit.trajectory_rewards_N[[0, 1, 4]].tolist() == [0.0, 0.0, 0.0]
    assert all(math.isnan(value) for value in deposit.trajectory_rewards_N[[2, 3]].tolist())
    assert deposit.notes["parse_failures"] == 3 and deposit.notes["unreadable_golds"] == 2


def test_a_missing_column_is_named():
    with pytest.raises(RewardError, match="'solution'"):
        score(MathVerifyReward("solution"), ["\\boxed{9}"], ["9"])


ENDLESS = ["9**9**9", "\\boxed{9^{9^{9^9}}}", "\\boxed{(1+x)^{100000}}", "\\boxed{" + "(" * 900 + "9" + ")" * 900 + "}"]
NASTY = [
    "{" * 5_000 + "9" + "}" * 5_000,
    "\\boxed{" * 3_000,
    "\\frac{" * 2_000,
    "9" * 100_000,
    "\\boxed{" + "9" * 100_000 + "}",
    "1+" * 50_000,
    "$" * 100_000,
    "a " * 50_000,
    "\\boxed{9\x00}",
    "\\boxed{\\",
]


@pytest.mark.parametrize("completion", ENDLESS)
def test_endless_work_is_cut_off(reward, completion):
    started = time.monotonic()
    deposit = score(reward, [completion, "\\boxed{9}"], ["9", "9"])
    assert time.monotonic() - started < 30  # a second of CPU and a new worker, on a machine that may be busy
    assert deposit.trajectory_rewards_N.tolist() == [0.0, 1.0]
    assert deposit.notes["undecided"] == 1


def test_nasty_text_is_wrong_and_nothing_else(reward, capfd):
    assert rewards(reward, [*NASTY, "\x00\\boxed{9}\x00", "\ud800\\boxed{9}"], ["9"] * 12) == [0.0] * 10 + [1.0, 1.0]
    assert capfd.readouterr() == ("", "")


def test_a_verdict_is_remembered(reward):
    completions = ["\\boxed{\\frac{" + str(i % 7) + "}{3}}" + " " * i for i in range(140)]
    score(reward, completions, ["2"] * 140)
    started = time.perf_counter()
    score(reward, completions, ["2"] * 140)
    assert time.perf_counter() - started < 0.1


def test_works_outside_the_main_thread(reward):
    found = []
    thread = threading.Thread(target=lambda: found.extend(rewards(reward, ["\\boxed{31}", ENDLESS[0]], ["31", "31"])))
    thread.start()
    thread.join(60)
    assert found == [1.0, 0.0]


def test_an_interrupt_does_not_shift_the_answers():
    def interrupt(*_):
        raise KeyboardInterrupt

    verifier = Verifier(cpu_seconds=30)
    assert verifier.verdict("9", "\\boxed{9}") == "right"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            verifier.verdict("9", ENDLESS[0])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert verifier.verdict("9", "\\boxed{9}") == "right"
    assert verifier.verdict("9", "\\boxed{8}") == "wrong"


def test_the_worker_is_bounded_in_memory_and_replaced_when_killed():
    resource = pytest.importorskip("resource")
    verifier = Verifier()
    verifier.verdict("9", "9")
    pid = verifier._process.pid
    assert resource.prlimit(pid, resource.RLIMIT_AS)[0] == MEMORY_BYTES
    os.kill(pid, signal.SIGKILL)
    verifier._process.wait()
    assert verifier.verdict("9", "\\boxed{9}") == "right"


def test_the_worker_dies_with_its_trainer():
    trainer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from stablerank.rewards.verifier import Verifier; v = Verifier(); v.verdict('9', '9');"
            "print(v._process.pid, flush=True); v.verdict('9', '9**9**9'); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with trainer:
        worker = int(trainer.stdout.readline())
        trainer.kill()
    deadline = time.monotonic() + 30
    while _lives(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(worker)


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1][0] != "Z"  # a zombie waits for its foster parent only
    except FileNotFoundError:
        return False


def test_a_worker_that_cannot_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no grammar here')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RewardError, match=r"did not start \(ImportError: no grammar here\); try"):
        Verifier().verdict("9", "9")
