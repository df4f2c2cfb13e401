"""The process that runs the code under test. It never sees an expected value, so it can only give answers.

As a program: standard input and output are those of one test. As a server: it defines the solution, says ``ready`` and
then answers the judge, who asks for names, calls and the like. Whatever the code does to this process (exit, replace
built-ins, print, rewrite this module), the worst that can reach the judge is a wrong answer.

Standard library only. Left out on purpose: changes that a call makes to its arguments (they go by value).
"""

import operator
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

from stablerank.rewards.code import wire

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "attribute": getattr,
    "item": operator.getitem,
    "contains": operator.contains,
    "length": len,
    "list": list,
    "truth": bool,
    "text": str,
}


def run_program(source: bytes) -> None:
    """The solution as ``__main__``."""
    _run(source, "__main__")


def serve(source: bytes, requests: IO[bytes], replies: IO[bytes]) -> None:
    """The solution as a module, then one reply for each request ``[operation, argument...]``."""
    names = vars(_run(source, "solution"))
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    replies.write(b"ready\n")
    replies.flush()
    for line in requests:
        try:
            operation, *arguments = wire.loads(line, kept.__getitem__)
            value = names[arguments[0]] if operation == "name" else _OPERATIONS[operation](*arguments)
            reply = wire.dumps({"value": value}, keep)
        except BaseException as error:
            reply = wire.dumps({"error": [kind.__name__ for kind in type(error).__mro__]}, keep)
        replies.write(reply)
        replies.flush()


def _run(source: bytes, name: str) -> ModuleType:
    sys.set_int_max_str_digits(0)
    module = sys.modules[name] = ModuleType(name)
    exec(compile(source, "solution.py", "exec"), vars(module))
    return module


def read_all(descriptor: int) -> bytes:
    """Everything of a file that the trainer opened for us."""
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
