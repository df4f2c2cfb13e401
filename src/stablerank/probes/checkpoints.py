"""What there is to measure: the matrices of a checkpoint, of the difference of two, or of an adapter, not yet read.

Contract: headers only. A `Task` is one stored tensor, which is read once however many matrices are in it (a fused
projection, a stack of experts); its subjects are made one after the other. Names align by what the file calls them. A
tensor that only one checkpoint has is listed; one whose shape differs is a problem.

Memory: a task holds its tensor in the dtype on disk, a pair both tensors.

Left out on purpose: models in memory (updates.py), and matching of renamed tensors.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.evaluate import Subject
from stablerank.probes.sources.folder import open_source
from stablerank.probes.sources.splitting import MatrixPart, matrices, why_not
from stablerank.probes.sources.stored import Problem, Source, StoredTensor
from stablerank.spectral.operators import Dense, Difference

if TYPE_CHECKING:
    from stablerank.probes.adapters.types import StoredUpdate

Subjects = Iterator[tuple[str, Subject]]


@dataclass(frozen=True, eq=False)
class Task:
    """One tensor, or one adapted matrix, to be read and measured; ``subjects`` raises `ModelError` if it cannot."""

    tensor: str
    file: str
    dtype: str
    nbytes: int
    subjects: Callable[[], Subjects]
    base_file: str = ""


@dataclass(frozen=True)
class Worklist:
    """Everything to be measured and everything that will not be, with the reason.

    ``files`` are all that decide the numbers; ``missing`` are tensors of the base that the other lacks, ``extra`` the
    reverse; ``skipped`` counts tensors that hold no matrix, by kind; ``notes`` are sentences that a reader of the
    numbers needs.
    """

    kind: str
    tasks: tuple[Task, ...]
    files: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    skipped: tuple[tuple[str, int], ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes to be read."""
        return sum(task.nbytes for task in self.tasks)


def is_adapter(path: str | Path) -> bool:
    """Whether a path is the folder of a PEFT adapter."""
    return os.path.isfile(os.path.join(os.path.expanduser(path), "adapter_config.json"))


def weights(path: str | Path) -> Worklist:
    """The matrices of one checkpoint."""
    source = open_source(path)
    held, skipped = _matrices_only(source.tensors)
    tasks = [
        Task(tensor.name, str(tensor.file), tensor.dtype, tensor.nbytes, partial(_weight_subjects, tensor, source))
        for tensor in held
    ]
    return Worklist("weight", tuple(tasks), _files(source), source.problems, skipped, notes=_fusion_notes(held, source))


def differences(path: str | Path, against: str | Path) -> Worklist:
    """The updates between two checkpoints: ``path`` minus ``against``, tensor by tensor."""
    after, before = open_source(path), open_source(against)
    held, skipped = _matrices_only(after.tensors)
    bases = {tensor.name: tensor for tensor in before.tensors}
    paired = [tensor for tensor in held if tensor.name in bases]
    tasks, unlike = _compared([(tensor, bases[tensor.name]) for tensor in paired], after)
    in_after, in_before = _names(after), _names(before)
    return Worklist(
        "update",
        tuple(tasks),
        _files(after) + _files(before),
        (*after.problems, *before.problems, *unlike),
        skipped,
        missing=tuple(name for name in bases if name not in in_after),
        extra=tuple(tensor.name for tensor in after.tensors if tensor.name not in in_before),
        notes=_fusion_notes(paired, after),
    )


def adapter_updates(path: str | Path, against: str | Path | None, initial: str | Path | None) -> Worklist:
    """The updates that an adapter makes; with its base, they can be compared with the weights they change."""
    # Importing PEFT takes seconds and loads transformers, of which a checkpoint has no need.
    from stablerank.probes.adapters.folder import WEIGHTS, open_adapter

    base = None if against is None else _BaseWeights(open_source(against))
    folder = Path(os.path.expanduser(path))  # unlike Path.expanduser, leaves an unknown user's ~ as it is
    first = None if initial is None else Path(os.path.expanduser(initial))
    adapter = open_adapter(folder, base_weight=None if base is None else base.read, initial=first)
    file = str(adapter.path / WEIGHTS)
    tasks = [_adapter_task(update, file, base) for update in adapter.updates]
    files = _adapter_files(adapter.path) + (() if first is None else _adapter_files(first))
    if base is None:
        return Worklist("update", tuple(tasks), files, adapter.problems, notes=adapter.notes)
    held, skipped = _matrices_only(adapter.replaced)
    bases = {tensor.name: base.stored(tensor.name) for tensor in held}
    pairs = [(tensor, stored) for tensor in held if (stored := bases[tensor.name]) is not None]
    whole, unlike = _compared(pairs, base.source)
    return Worklist(
        "update",
        (*tasks, *whole),
        files + _files(base.source),
        (*adapter.problems, *base.source.problems, *unlike),
        skipped,
        extra=tuple(name for name, stored in bases.items() if stored is None),
        notes=adapter.notes,
    )


class _BaseWeights:
    """Weights of the base by the names that an adapter gives its modules."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._tensors = {tensor.name: tensor for tensor in source.tensors}

    def stored(self, name: str) -> StoredTensor | None:
        """A task model's prefix (``model.``) may be in the adapter's names, in the base's, or in both."""
        bare = name.removesuffix(".weight").removeprefix("model.")
        for candidate in (f"{bare}.weight", f"model.{bare}.weight", bare, f"model.{bare}"):
            if candidate in self._tensors:
                return self._tensors[candidate]
        return None

    def read(self, name: str) -> Tensor | None:
        """The weight of a module, or None where the base has none of that name."""
        stored = self.stored(name)
        return stored.read() if stored is not None else None


def _adapter_task(update: "StoredUpdate", file: str, base: _BaseWeights | None) -> Task:
    stored = None if base is None else base.stored(update.name)
    subjects = partial(_adapter_subjects, update, base)
    if stored is None:
        return Task(update.name, file, update.dtype, update.nbytes, subjects)
    return Task(update.name, file, update.dtype, update.nbytes + stored.nbytes, subjects, str(stored.file))


def _adapter_subjects(update: "StoredUpdate", base: _BaseWeights | None) -> Subjects:
    weight = None if base is None else _weight_under(update, base)
    yield update.name, Subject(update.build(), weight)


def _weight_under(update: "StoredUpdate", base: _BaseWeights) -> Tensor:
    """The weight that an update changes, as a matrix; a convolution's kernel is flattened as PEFT flattens it."""
    weight = base.read(update.name)
    if weight is None:
        raise ModelError(
            f"{base.source.path} holds no weight of this name: give the base that the adapter was trained on, or leave "
            "--against out."
        )
    weight = weight.flatten(1) if weight.ndim > 2 else weight
    if tuple(weight.shape) != update.shape:
        raise ModelError(
            f"Its update is {update.shape}, but {base.source.path} holds {tuple(weight.shape)} under this name: give "
            "the base that the adapter was trained on."
        )
    return weight


def _weight_subjects(tensor: StoredTensor, source: Source) -> Subjects:
    whole = tensor.read()
    for part in matrices(tensor, source.config):
        yield part.name, Subject(Dense(part.select(whole)))


def _difference_subjects(tensor: StoredTensor, base: StoredTensor, source: Source) -> Subjects:
    after, before = tensor.read(), base.read()
    for part in matrices(tensor, source.config):
        pair = Difference(part.select(after), part.select(before))
        yield part.name, Subject(pair, pair.before_OI)


def _compared(pairs: Iterable[tuple[StoredTensor, StoredTensor]], source: Source) -> tuple[list[Task], list[Problem]]:
    """A task for each pair ``(after, before)`` of one shape, a problem for every other."""
    tasks, problems = [], []
    for after, before in pairs:
        if after.shape == before.shape:
            subjects, nbytes = partial(_difference_subjects, after, before, source), after.nbytes + before.nbytes
            tasks.append(Task(after.name, str(after.file), after.dtype, nbytes, subjects, str(before.file)))
        else:
            problems.append(_unlike(after, before))
    return tasks, problems


def _matrices_only(tensors: Iterable[StoredTensor]) -> tuple[list[StoredTensor], tuple[tuple[str, int], ...]]:
    reasons = [(tensor, why_not(tensor)) for tensor in tensors]
    skipped = Counter(reason for _, reason in reasons if reason is not None)
    return [tensor for tensor, reason in reasons if reason is None], tuple(sorted(skipped.items()))


def _names(source: Source) -> set[str | None]:
    """Also those that a file has but that cannot be read: they are problems, not missing."""
    return {tensor.name for tensor in source.tensors} | {problem.tensor for problem in source.problems}


def _files(source: Source) -> tuple[str, ...]:
    """The files of all tensors, and the settings that say how fused weights are cut."""
    config = (source.path if source.path.is_dir() else source.path.parent) / "config.json"
    files = dict.fromkeys(str(tensor.file) for tensor in source.tensors)
    return (*files, str(config)) if config.is_file() else tuple(files)


def _adapter_files(folder: Path) -> tuple[str, ...]:
    """Settings and tensors, in the folder or in the one sub-folder that PEFT gives a named adapter."""
    return tuple(str(file) for pattern in ("adapter_*", "*/adapter_*") for file in sorted(folder.glob(pattern)))


def _fusion_notes(tensors: list[StoredTensor], source: Source) -> tuple[str, ...]:
    parts: list[MatrixPart] = [part for tensor in tensors for part in matrices(tensor, source.config)]
    return tuple(dict.fromkeys(f"{part.name}: {part.note}" for part in parts if part.note))


def _unlike(after: StoredTensor, before: StoredTensor) -> Problem:
    reason = (
        f"Its shape is {after.shape}, but {before.file} holds {before.shape} under this name: compare checkpoints of "
        "one model."
    )
    return Problem(str(after.file), after.name, reason)
