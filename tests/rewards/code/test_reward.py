import math
import sys

import pytest

from stablerank.errors import RewardError
from stablerank.rewards.code import sandbox
from stablerank.rewards.code.reward import CodeTestsReward
from stablerank.rewards.code.sandbox import Protections, protections
from stablerank.rewards.code.spec import CodeTestsSpec

SQUARE = ["assert square(2) == 4", "assert square(-3) == 9", "assert square(0) == 0"]
DOUBLE = [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10\n"}]


def test_asserts_decide(rewards):
    programs = [
        "def square(x):\n    return x * x",
        "def square(x):\n    return 2 * x",
        "def cube(x):\n    return x ** 3",
    ]
    assert rewards(programs, [SQUARE] * 3) == [1.0, 0.0, 0.0]
    shares = rewards(programs, [SQUARE] * 3, score="share")
    assert shares == pytest.approx([1.0, 2 / 3, 0.0])


def test_standard_input_and_output_decide(rewards):
    programs = ["print(2 * int(input()))", "print(4)", "print(2 * int(input()))\nraise SystemExit(1)", "x ="]
    assert rewards(programs, [DOUBLE] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert rewards(programs[:2], [DOUBLE] * 2, score="share") == [1.0, 0.5]


LANGUAGE = {
    "class Solution:\n def two(self, a, b): return [a, b]": "assert Solution().two(1, 2) == [1, 2]",
    "def pairs(n):\n for i in range(n): yield i, str(i)": "assert list(pairs(2)) == [(0, '0'), (1, '1')]",
    "from collections import Counter\ndef count(s): return Counter(s)": "assert count('aab') == {'a': 2, 'b': 1}",
    "import math\ndef area(r): return math.pi * r * r": "assert math.isclose(area(2), 12.566, rel_tol=1e-3)",
    "def half(x): return x / 2": "assert abs(half(3) - 1.5) < 1e-9 and isinstance(half(3), float)",
    "def bad(): raise LookupError('no')": "try:\n    bad()\n    assert False\nexcept LookupError:\n    pass",
    "def add(a, b=1): return a + b": "def check(candidate):\n    assert candidate(1, b=3) == 4\n\ncheck(add)",
    "def is_odd(n): return n % 2 == 1": "assert is_odd(3)\nassert not is_odd(4)",
    "def fact(n): return 1 if n < 2 else n * fact(n - 1)": "import math\nassert fact(900) == math.factorial(900)",
    "class Stack:\n def __init__(self): self.items = []\n def push(self, x): self.items.append(x)": (
        "s = Stack()\ns.push(1)\ns.push('a')\nassert s.items == [1, 'a'] and len(s.items) == 2"
    ),
    "import asyncio\ndef f():\n async def g(): return 3\n return asyncio.run(g())": "assert f() == 3",
    "from threading import Thread\no = []\nt = Thread(None, o.append, '', [1])\nt.start()\nt.join()": "assert o == [1]",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n x: int = 0": "assert P(3).x == 3",
}


@pytest.mark.parametrize(("program", "test"), LANGUAGE.items())
def test_what_tests_may_do(program, test, rewards):
    assert rewards([program, program], [[test], [test, "assert False"]]) == [1.0, 0.0]


def test_failures_are_counted_and_only_unreadable_tests_are_unscorable(deposit):
    texts = ["no code", "```python\nx = 1\n```", "```python\nx = 1\n```", "```python\nwhile True: pass\n```"]
    scored = deposit(texts, [SQUARE, None, ["assert x == 1"], ["assert x == 1"]], raw=True)
    values = scored.trajectory_rewards_N.tolist()
    assert values[0] == 0.0 and math.isnan(values[1]) and values[2:] == [1.0, 0.0]
    assert scored.notes == {"parse_failures": 1, "unreadable_tests": 1, "cut_off": 1, "empty_completions": 0}


def test_a_missing_column_is_named():
    from stablerank.rewards.rollout import rollout_from_trl

    with pytest.raises(RewardError, match="'tests'"):
        CodeTestsReward()(rollout_from_trl(["?"], ["x"], [[1]]))


def test_the_recipe_has_to_allow_execution(tokenizer):
    with pytest.raises(RewardError, match=r"reward\.execution=allowed"):
        CodeTestsSpec().build(tokenizer)
    reward = CodeTestsSpec(execution="allowed").build(tokenizer)
    assert "network, processes, files" in reward.own_forward


@pytest.mark.parametrize(
    ("held", "setting"),
    [
        (Protections(False, True, True), "allow_network"),
        (Protections(True, False, True), "allow_network"),
        (Protections(True, True, False), "allow_files"),
    ],
)
def test_a_kernel_that_guards_too_little_is_refused_unless_the_recipe_accepts_it(held, setting, tokenizer, monkeypatch):
    monkeypatch.setattr("stablerank.rewards.code.spec.protections", lambda: held)
    with pytest.raises(RewardError, match=f"reward.{setting}=true"):
        CodeTestsSpec(execution="allowed").build(tokenizer)
    reward = CodeTestsSpec(execution="allowed", **{setting: True}).build(tokenizer)
    assert len(reward.limits.must) == 1


def test_a_process_that_is_not_guarded_as_it_must_be_reads_no_code(rewards):
    impossible = sandbox.Limits(must=frozenset({"network", "moon"}))
    assert rewards(["def square(x):\n    return x * x"], [SQUARE], limits=impossible) == [0.0]


def test_other_systems_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RewardError, match="darwin"):
        protections.__wrapped__()
