"""Problems that `reasoning-gym` generates: one of its hundred tasks, in one fixed order, each with what scores it.

Problem ``i`` of a task, its settings and a seed is always the same. The stream of problems is split by the hash of its
question, so the splits are disjoint and do not move when more problems are asked for. A question counts once.

Left out on purpose: curricula and mixtures of tasks (``composite``).
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

from stablerank.errors import DataError, MissingExtraError
from stablerank.tasks.files import split_of

SEARCHED = 20_000
"""How many problems of the stream are looked at; ``word_ladder`` has no more."""
_NOTHING_NEW = 2_000
"""Known questions in a row after which a task has no others."""
_SIZES_TRIED = (5, 50)

Entry = dict[str, Any]
"""``question``, ``answer`` (None where many are right) and ``metadata``, as `reasoning-gym` has them."""
Config = dict[str, Any]


def problems(task: str, config: Config, seed: int, split: str, count: int) -> list[Entry]:
    """The first ``count`` problems of a split, fewer if the task has fewer.

    Raises:
        MissingExtraError: `reasoning-gym` is not installed.
        DataError: unknown task, bad settings, or a task that cannot be repeated or scored from stored data.
    """
    found: list[Entry] = []
    for entry in _distinct(_checked(task, config, seed)):
        if split_of(entry["question"], whole_file_is_held_out=None) == split:
            found.append(entry)
        if len(found) == count:
            break
    return found


def scorer(task: str, config: Config) -> Callable[[str, Entry], float]:
    """The task's own ``score_answer``: 1.0 for a right answer, less for others, sometimes more than 0.0."""
    return cast(Callable[[str, Entry], float], _dataset(task, config, seed=0, size=1).score_answer)


def _distinct(dataset: Any) -> Iterator[Entry]:
    seen: set[str] = set()
    known = 0
    for index in range(SEARCHED):
        entry = dataset[index]
        known = known + 1 if entry["question"] in seen else 0
        if known == 0:
            seen.add(entry["question"])
            yield entry
        elif known == _NOTHING_NEW:
            return


def _checked(task: str, config: Config, seed: int) -> Any:
    """The data set, once its first problem came out the same twice and its scorer took its answer back from JSON."""
    few, more = (_dataset(task, config, seed, size) for size in _SIZES_TRIED)
    entry = few[0]
    if entry != more[0]:  # `acre` draws all of its problems at once, so more of them are others
        raise DataError(f"the gym task {task!r} gives other problems each time it is asked; choose another data.task.")
    stored = json.loads(json.dumps(entry, default=str))
    if entry["answer"] is not None and few.score_answer(entry["answer"], stored) < 1:
        raise DataError(
            f"the gym task {task!r} does not accept its own answer once the problem was stored as JSON; "
            "choose another data.task."
        )
    return _dataset(task, config, seed, SEARCHED)


def _dataset(task: str, config: Config, seed: int, size: int) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise MissingExtraError(
            "data of kind gym needs reasoning-gym, which is not installed; run `pip install 'stablerank[tasks]'`."
        ) from error
    if task not in DATASETS:
        raise DataError(f"data.task {task!r} is no task of reasoning-gym{_close(task, DATASETS)}; mend the name.")
    fields = [field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in ("seed", "size")]
    for key in config:
        if key not in fields:
            raise DataError(
                f"data.config.{key} is no setting of the gym task {task!r}{_close(key, fields)}; "
                f"it has {', '.join(fields)}."
            )
    try:
        return create_dataset(task, seed=seed, size=size, **config)
    except Exception as error:  # a task checks its settings with assert, or fails on them in its own way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"data.config {config} is refused by the gym task {task!r} ({reason}); mend it.") from error


def _close(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    return f" (close: {', '.join(close)})" if close else ""
