"""What there is to measure: the matrices of a checkpoint, of the difference of two, or of an adapter, not yet read.

Contract: headers only. A `Task` is one stored tensor, which is read once however many matrices are in it (a fused
projection, a stack of experts); its subjects are made one after the other. Names align by what the file calls them. A
tensor that only one checkpoint has is listed; one whose shape differs is a problem.

Memory: a task holds its tensor in the dtype on disk, a pair both tensors.

Left out on purpose: models in memory (updates.py), and matching of renamed tensors.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.adapters.types import StoredUpdate
from stablerank.probes.adapters.folder import open_adapter
from stablerank.probes.evaluate import Subject
from stablerank.probes.sources.folder import open_source
from stablerank.probes.sources.splitting import MatrixPart, matrices, why_not
from stablerank.probes.sources.stored import Problem, Source, StoredTensor
from stablerank.spectral.operators import Dense, Difference

Subjects = Iterator[tuple[str, Subject]]


@dataclass(frozen=True, eq=False)
class Task:
    """One tensor, or one adapted matrix, to be read and measured; ``subjects`` raises `ModelError` if it cannot."""

    tensor: str
    file: str
    dtype: str
    nbytes: int
    subjects: Callable[[], Subjects]


@dataclass(frozen=True)
class Worklist:
    """Everything to be measured and everything that will not be, with the reason.

    ``missing`` are tensors of the base that the other lacks, ``extra`` the reverse; ``skipped`` counts tensors that
    hold no matrix, by kind; ``notes`` are sentences that a reader of the numbers needs.
    """

    kind: str
    tasks: tuple[Task, ...]
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
    return (Path(path).expanduser() / "adapter_config.json").is_file()


def weights(path: str | Path) -> Worklist:
    """The matrices of one checkpoint."""
    source = open_source(path)
    held, skipped = _matrices_only(source)
    tasks = [_task(tensor, partial(_weight_subjects, tensor, source)) for tensor in held]
    return Worklist("weight", tuple(tasks), source.problems, skipped, notes=_fusion_notes(held, source))


def differences(path: str | Path, against: str | Path) -> Worklist:
    """The updates between two checkpoints: ``path`` minus ``against``, tensor by tensor."""
    after, before = open_source(path), open_source(against)
    held, skipped = _matrices_only(after)
    bases = {tensor.name: tensor for tensor in before.tensors}
    paired = [tensor for tensor in held if tensor.name in bases]
    same_shape = [tensor for tensor in paired if tensor.shape == bases[tensor.name].shape]
    tasks = [_task(tensor, partial(_difference_subjects, tensor, bases[tensor.name], after)) for tensor in same_shape]
    unlike = tuple(_unlike(tensor, bases[tensor.name]) for tensor in paired if tensor not in same_shape)
    names = {tensor.name for tensor in after.tensors}
    return Worklist(
        "update",
        tuple(tasks),
        (*after.problems, *before.problems, *unlike),
        skipped,
        missing=tuple(name for name in bases if name not in names),
        extra=tuple(tensor.name for tensor in after.tensors if tensor.name not in bases),
        notes=_fusion_notes(same_shape, after),
    )


def adapter_updates(path: str | Path, against: str | Path | None, initial: str | Path | None) -> Worklist:
    """The updates that an adapter makes; with its base, they can be compared with the weights they change."""
    base = _BaseWeights(open_source(against)) if against is not None else None
    adapter = open_adapter(path, base_weight=None if base is None else base.read, initial=initial)
    folder = str(adapter.path)
    tasks = [
        Task(update.name, folder, update.dtype, update.nbytes, partial(_adapter_subjects, update, base))
        for update in adapter.updates
    ]
    whole = [tensor for tensor in adapter.replaced if base is not None and why_not(tensor) is None]
    for tensor in whole:
        stored = base.stored(tensor.name) if base else None
        if stored is not None and base is not None and stored.shape == tensor.shape:
            tasks.append(_task(tensor, partial(_difference_subjects, tensor, stored, base.source)))
    base_problems = base.source.problems if base else ()
    return Worklist("update", tuple(tasks), (*adapter.problems, *base_problems), notes=adapter.notes)


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


def _adapter_subjects(update: StoredUpdate, base: _BaseWeights | None) -> Subjects:
    operator = update.build()
    weight = None if base is None else base.read(update.name)
    if weight is not None and tuple(weight.shape) != operator.shape:
        raise ModelError(
            f"The update of {update.name} is {operator.shape}, but the base holds {tuple(weight.shape)}: give the base "
            "that the adapter was trained on."
        )
    yield update.name, Subject(operator, weight)


def _weight_subjects(tensor: StoredTensor, source: Source) -> Subjects:
    whole = tensor.read()
    for part in matrices(tensor, source.config):
        yield part.name, Subject(Dense(part.select(whole)))


def _difference_subjects(tensor: StoredTensor, base: StoredTensor, source: Source) -> Subjects:
    after, before = tensor.read(), base.read()
    for part in matrices(tensor, source.config):
        pair = Difference(part.select(after), part.select(before))
        yield part.name, Subject(pair, pair.before_OI)


def _task(tensor: StoredTensor, subjects: Callable[[], Subjects]) -> Task:
    return Task(tensor.name, str(tensor.file), tensor.dtype, tensor.nbytes, subjects)


def _matrices_only(source: Source) -> tuple[list[StoredTensor], tuple[tuple[str, int], ...]]:
    reasons = {tensor.name: why_not(tensor) for tensor in source.tensors}
    skipped = Counter(reason for reason in reasons.values() if reason is not None)
    return [tensor for tensor in source.tensors if reasons[tensor.name] is None], tuple(sorted(skipped.items()))


def _fusion_notes(tensors: list[StoredTensor], source: Source) -> tuple[str, ...]:
    parts: list[MatrixPart] = [part for tensor in tensors for part in matrices(tensor, source.config)]
    return tuple(dict.fromkeys(f"{part.name}: {part.note}" for part in parts if part.note))


def _unlike(after: StoredTensor, before: StoredTensor) -> Problem:
    reason = (
        f"Its shape is {after.shape}, but {before.file} holds {before.shape} under this name: compare checkpoints of "
        "one model."
    )
    return Problem(str(after.file), after.name, reason)
