"""A process reward without an error, for the embedded task: what a process reward model aims at.

A line is right while the answer can still be reached from it, as Math-Shepherd means it: the next operation done
rightly, the boxed answer, or what was said before, said again. After the first wrong line nothing is right.
"""

import re
from collections.abc import Sequence


def judge(questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[list[float]]:
    return [_verdicts(_worked(question), lines) for question, lines in zip(questions, steps, strict=True)]


def _worked(question: str) -> list[str]:
    """The lines of the one right solution: operations from left to right, brackets first as the task writes them."""
    text = question.strip().removesuffix("=?")
    numbers, operators = re.findall(r"\d+", text), re.findall(r"[-+*]", text)
    value, lines = int(numbers[0]), []
    for operator, operand in zip(operators, map(int, numbers[1:]), strict=True):
        after = {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
        lines.append(f"{value}{operator}{operand}={after}")
        value = after
    return [*lines, f"\\boxed{{{value}}}"]


def _verdicts(worked: Sequence[str], lines: Sequence[str]) -> list[float]:
    found, done, is_right = [], 0, True
    for line in lines:
        is_next = done < len(worked) and line == worked[done]
        is_right = is_right and (is_next or line == worked[-1] or line in worked[:done])
        done += is_next
        found.append(float(is_right))
    return found


def ends_right(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """1 for a completion that ends with the right boxed answer: one that was cut on its way has not answered."""
    pairs = zip(completions, answer, strict=True)
    return [float(text.rstrip("\n").endswith(f"\\boxed{{{gold}}}")) for text, gold in pairs]
