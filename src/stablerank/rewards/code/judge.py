"""The process that judges: it runs the assert statements and asks the code under test, in another process, for values.

In the same interpreter the code under test could replace ``__eq__``, the built-ins, the frame of the assert, or the
result on its way out; from over there it can only answer. So within an assert:

- plain data arrives as exact built-in types; other objects stay over there, behind a ``Remote``, which is equal to
  nothing but itself;
- built-ins, and the modules of `TRUSTED`, are this process's own, whatever the solution calls so;
- an exception arrives as the built-in exception it derives from, as far as there is one.

Protocol: one character a test on standard output, ``1`` passed or ``0``. Standard library only.
"""

import ast
import builtins
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from stablerank.rewards.code import wire

TRUSTED = frozenset(
    {"cmath", "collections", "datetime", "decimal", "fractions", "functools", "itertools", "math", "operator", "re"}
)
REPLY_BYTES = 8 << 20


class Channel:
    """The line to the code under test."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._requests, self._replies = requests, replies
        self._known: dict[int, Remote] = {}

    def is_ready(self) -> bool:
        """Whether the solution could be loaded; waits for it."""
        return self._replies.readline(REPLY_BYTES) == b"ready\n"

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The value of an operation over there, or its exception. Raises EOFError when nobody answers any more."""
        self._requests.write(wire.dumps([operation, *arguments], _number))
        self._requests.flush()
        line = self._replies.readline(REPLY_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError("the code under test is gone, or says too much")
        reply = wire.loads(line, self._remote)
        if "error" in reply:
            raise _exception(reply["error"])
        return reply["value"]

    def _remote(self, number: int) -> "Remote":
        return self._known.setdefault(number, Remote(self, number))


class Remote:
    """An object of the code under test."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it over there, with plain data."""
        return self._channel.ask("call", self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("attribute", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("item", self, key)

    def __contains__(self, item: Any) -> bool:
        return self._channel.ask("contains", self, item) is True

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._channel.ask("list", self)))

    def __len__(self) -> int:
        return int(self._channel.ask("length", self))

    def __bool__(self) -> bool:
        return self._channel.ask("truth", self) is True

    def __str__(self) -> str:
        return str(self._channel.ask("text", self))


def judge(tests: Sequence[str], channel: Channel, verdicts: IO[bytes], stop_at_first: bool) -> None:
    """Write the verdicts, one by one, so that those before a crash are kept."""
    sys.set_int_max_str_digits(0)
    alive = channel.is_ready()
    for test in tests:
        passed = alive and _passes(test, channel)
        verdicts.write(b"1" if passed else b"0")
        verdicts.flush()
        if stop_at_first and not passed:
            return


def _passes(test: str, channel: Channel) -> bool:
    try:
        tree = ast.parse(test)
        exec(compile(tree, "test", "exec"), {"__name__": "test", **_names(tree, channel)})
    except BaseException:
        return False
    return True


def _names(tree: ast.AST, channel: Channel) -> dict[str, Any]:
    """What the names of a test mean, where the test does not say so itself."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    found = {name: importlib.import_module(name) for name in read & TRUSTED}
    for name in sorted(read - TRUSTED - vars(builtins).keys()):
        try:
            found[name] = channel.ask("name", name)
        except KeyError:
            continue
    return found


def _number(value: Any) -> int:
    if isinstance(value, Remote):
        return value._number
    raise TypeError(f"a test can hand over plain data only, not a {type(value).__name__}")


def _exception(ancestry: Any) -> Exception:
    for name in ancestry:
        kind = vars(builtins).get(name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind()
            except TypeError:  # UnicodeDecodeError and its like want arguments
                continue
    return RuntimeError("the code under test raised")
