"""A user's own reward: ``file.py:function`` with the signature of TRL's ``reward_funcs``.

The function gets ``prompts, completions, completion_ids`` and every dataset column by keyword and returns one number
or None (not scorable) a completion. As in TRL, completions of chat prompts come as a list of one assistant message.

Left out on purpose: dotted module names (the file is the unit a run can record), async functions, and TRL's own
extras (``trainer_state`` and loggers): a reward that depends on the training step cannot be evaluated.
"""

import importlib.util
import math
import sys
import traceback
import zlib
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from stablerank.errors import RewardError
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout

_SIGNATURE = "def {name}(prompts, completions, completion_ids, **columns) -> list[float | None]"


class PythonReward(Reward):
    """The function of ``ref`` as a reward named after it. Its file is run once, here.

    Raises RewardError for a file or function that is missing or fails; when called, for a function that raises or
    returns anything but one number or None a completion.
    """

    def __init__(self, ref: str) -> None:
        self.ref = ref
        self._path, self._function = load_function(ref)
        self.name = self._function.__name__

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion with the user's function."""
        try:
            returned = self._function(
                prompts=list(rollout.prompts),
                completions=_trl_completions(rollout),
                completion_ids=[list(ids) for ids in rollout.completion_ids],
                **rollout.columns,
            )
        except Exception as error:
            line = _last_line_in(self._path, error) or self._function.__code__.co_firstlineno
            raise RewardError(
                f"the reward {self.ref} raised {_one_line(error)} at line {line}; "
                f"mend it, its signature is `{_SIGNATURE.format(name=self.name)}`"
            ) from error
        return trajectory_deposit(self._numbers(returned, len(rollout)), rollout.completion_mask_NT)

    def _numbers(self, returned: Any, count: int) -> list[float | None]:
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise RewardError(
                f"the reward {self.ref} returned a {type(returned).__name__}; return a list of {count} numbers"
            )
        if len(values) != count:
            raise RewardError(
                f"the reward {self.ref} returned {len(values)} numbers for {count} completions; "
                "return one number, or None, for each completion"
            )
        return [self._number(value, row) for row, value in enumerate(values)]

    def _number(self, value: Any, row: int) -> float | None:
        value = value.item() if hasattr(value, "item") else value
        if value is None:
            return None
        if isinstance(value, Real) and not math.isinf(value):
            return float(value)
        raise RewardError(
            f"the reward {self.ref} returned {value!r:.60} for completion {row}; "
            "return a finite number, or None to skip it"
        )


def load_function(ref: str) -> tuple[Path, Callable[..., Any]]:
    """The absolute path and the function behind ``file.py:function``; RewardError says what is missing."""
    file, _, name = ref.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not file or not path.is_file():
        raise RewardError(
            f"the reward {ref!r} names no file ({path} does not exist); write it as path/to/file.py:function"
        )
    function = getattr(_run_file(path, ref), name, None)
    if not callable(function) or not hasattr(function, "__code__"):
        raise RewardError(
            f"the reward {ref!r} names no function of {path}; define `{_SIGNATURE.format(name=name)}` there"
        )
    return path, function


def _run_file(path: Path, ref: str) -> ModuleType:
    """Run a file as a module under a name of its own: two files of one name do not meet, dataclasses inside work."""
    name = f"_reward_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"the reward {ref!r} names {path}, which is no Python file; give it a name that ends in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        line = getattr(error, "lineno", None) or _last_line_in(path, error) or 1
        raise RewardError(f"the reward file {path} raised {_one_line(error)} at line {line}; mend it there") from error
    return module


def _trl_completions(rollout: Rollout) -> list[Any]:
    """Completions as TRL hands them over: text for a text prompt, one assistant message for a chat prompt."""
    pairs = zip(rollout.prompts, rollout.completions, strict=True)
    return [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for prompt, text in pairs]


def _last_line_in(path: Path, error: Exception) -> int | None:
    """The innermost line of ``path`` on the way to an error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
