"""What an adapter folder holds once its headers are read: updates, problems, tensors that replace the base's.

Legend: O output features, I input features.

Contract: opening reads headers and settings only; an update's tensors are read when it is built. The rules that every
adapter type shares are here: a setting by module pattern (PEFT's own rule), and one bad module never stops the others.

Left out on purpose: nothing here knows the formula of any adapter type.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.sources.stored import Problem, StoredTensor
from stablerank.spectral.operators import Dense, Factored

BaseWeight = Callable[[str], Tensor | None]
"""The base's weight by the name of an update (no ``.weight`` at its end), as stored; None where the base has none."""

Parts = Mapping[str, StoredTensor]
"""The tensors of one adapted module by what they are: ``lora_A``, ``hada_w1_a``, ``vera_lambda_b``."""


@dataclass(frozen=True, eq=False)
class StoredUpdate:
    """The update of one matrix, in the orientation of the stored weight; ``build`` reads it from the file.

    ``build`` raises :class:`~stablerank.errors.ModelError` when the base, which it may need, does not fit.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    nbytes: int
    build: Callable[[], Factored | Dense]


@dataclass(frozen=True)
class AdapterSource:
    """An adapter folder: its updates, what could not be read and why, and what a reader of its numbers must know.

    ``replaced`` are tensors saved whole (``modules_to_save``, embeddings), under the base's own names: their update is
    a difference that only the base can give.
    """

    path: Path
    peft_type: str
    base_model_name: str | None
    updates: tuple[StoredUpdate, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    replaced: tuple[StoredTensor, ...]


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """An adapter's tensors, sorted by the module they adapt, and its settings."""

    path: Path
    config: Mapping[str, Any]
    modules: Mapping[str, Parts]
    shared: Parts
    replaced: tuple[StoredTensor, ...]
    biases: int
    token_rows: int
    problems: tuple[Problem, ...]


def each_module(
    adapter: AdapterFile, read: Callable[[str, Parts], Iterable[StoredUpdate]]
) -> tuple[list[StoredUpdate], list[Problem]]:
    """The updates of every module that ``read`` accepts, and a problem for each that it refuses."""
    updates: list[StoredUpdate] = []
    problems: list[Problem] = []
    for module, parts in adapter.modules.items():
        try:
            updates.extend(read(module, parts))
        except ModelError as error:
            problems.append(Problem(str(adapter.path), module, str(error)))
    return updates, problems


def mapping(config: Mapping[str, Any], setting: str) -> Mapping[str, Any]:
    """A setting that maps names to values; empty where it is absent or null.

    Raises:
        ModelError: it is something else.
    """
    value = config.get(setting) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"adapter_config.json has a {setting} that is not a mapping but {value!r}: mend it.")
    return value


def patterned(config: Mapping[str, Any], setting: str, pattern: str, module: str) -> float:
    """A number from the settings, or from the first key of ``pattern`` that matches the module's name.

    Raises:
        ModelError: the setting is absent or no finite number, or the pattern is no mapping from regular expressions.
    """
    patterns = mapping(config, pattern)
    try:
        value = patterns.get(get_pattern_key(patterns, module), config.get(setting))
    except re.error as error:
        raise ModelError(
            f"adapter_config.json has a {pattern} with a key that is no regular expression ({error}): mend it."
        ) from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"adapter_config.json gives {setting} = {value!r} for {module}: it must be a finite number.")
    return value


def ranked(config: Mapping[str, Any], module: str, setting: str = "r") -> int:
    """The rank that the settings give a module, by ``rank_pattern`` or else by ``setting``.

    Raises:
        ModelError: it is no positive whole number.
    """
    rank = patterned(config, setting, "rank_pattern", module)
    if rank != int(rank) or rank < 1:
        raise ModelError(f"adapter_config.json gives {module} rank {rank}: it must be a positive whole number.")
    return int(rank)


def need(module: str, parts: Parts, *names: str) -> list[StoredTensor]:
    """The named tensors of a module.

    Raises:
        ModelError: one of them is absent.
    """
    missing = [name for name in names if name not in parts]
    if missing:
        raise ModelError(
            f"{module} has {_listed(parts)} without {_listed(missing)}, so its update cannot be formed: "
            "save the adapter again."
        )
    return [parts[name] for name in names]


def stored_update(
    name: str, shape: tuple[int, int], parts: Iterable[StoredTensor], build: Callable[[], Factored | Dense]
) -> StoredUpdate:
    """An update with the dtype of its first part and the bytes of all."""
    stored = list(parts)
    return StoredUpdate(name, shape, stored[0].dtype, sum(part.nbytes for part in stored), build)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no tensor"
