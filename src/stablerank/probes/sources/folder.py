"""From what a user points at to a `Source`: a file, a folder of shards, or a zoo model.

Contract: one bad file or tensor is a `Problem` and the rest is offered; only where nothing at all can be read is there
an error. In a folder the weights are those that transformers would read: ``model.safetensors``, else the shards of
``model.safetensors.index.json``, else every ``*.safetensors``, else the one GGUF model. A name in two files is a
problem; the file that the index gives for it wins, else the first.

FP8 codes with scales in a tensor of their own are a problem: without the scales they are not the weights.

Left out on purpose: pickle (``*.bin``, ``*.pt``), because unpickling runs code of whoever wrote the file; hub ids,
which ``hf download`` turns into a folder; sub-folders.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from stablerank.errors import ModelError
from stablerank.probes.sources.gguf_files import gguf_contents
from stablerank.probes.sources.safetensors_files import safetensors_contents
from stablerank.probes.sources.stored import FileContents, Problem, Source, StoredTensor
from stablerank.zoo.catalogue import SCHEME
from stablerank.zoo.fetch import fetch

INDEX = "model.safetensors.index.json"
_READERS: dict[str, Callable[[Path], FileContents]] = {".safetensors": safetensors_contents, ".gguf": gguf_contents}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_GGUF_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_SCALE_ENDINGS = ("_scale_inv", "_scale")


def open_source(path: str | Path) -> Source:
    """What can be measured in a checkpoint; reads headers only.

    Args:
        path: a ``.safetensors`` or ``.gguf`` file, a folder of them, or ``zoo:NAME`` (fetched now if need be).

    Raises:
        ModelError: nothing is there, nothing in it can be read, it is pickle only, or it is a PEFT adapter's folder.
    """
    place = fetch(path) if isinstance(path, str) and path.startswith(SCHEME) else Path(os.path.expanduser(path))
    if not os.path.exists(place):  # unlike Path.exists, False where a folder above may not be entered
        raise ModelError(
            f"{place} does not exist, and nothing is downloaded; give a safetensors or GGUF file, a folder of them "
            "(`hf download` makes one of a hub id), or zoo:NAME."
        )
    folder = place if place.is_dir() else place.parent
    files, owner, index_problems = _weight_files(place) if place.is_dir() else ([_readable_file(place)], {}, [])
    tensors, file_problems = _gathered(files, owner)
    problems = [*index_problems, *file_problems]
    if not tensors:
        first = problems[0].reason if problems else "It holds no tensor; save the model again."
        raise ModelError(f"Nothing can be measured in {place}: {first}")
    config, config_problems = _config(folder)
    return Source(place, tuple(tensors), (*problems, *config_problems), config)


def _readable_file(file: Path) -> Path:
    if file.suffix in _PICKLES:
        raise _pickled(file)
    if file.suffix not in _READERS or not file.is_file():
        raise ModelError(f"{file} is neither a .safetensors nor a .gguf file; give one of these or a folder of them.")
    return file


def _pickled(file: Path) -> ModelError:
    return ModelError(
        f"{file} is a pickle, which runs code of whoever wrote it when it is loaded, so it is not read; load it with "
        "transformers in a sandbox that you trust and write it with `save_pretrained`, or have the hub convert it."
    )


def _config(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    file = folder / "config.json"
    if not file.is_file():
        return {}, []
    parsed = _json_object(file)
    if parsed is None:
        reason = "It is not a JSON object, so fused weights cannot be split; save the model again."
        return {}, [Problem(str(file), None, reason)]
    return parsed, []


def _json_object(file: Path) -> dict[str, Any] | None:
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, Path], list[Problem]]:
    """The files to read, the file that the index gives for each tensor, and problems of the index."""
    safetensors = [path for path in _files(folder, "*.safetensors") if not path.name.startswith("adapter_")]
    if folder / "model.safetensors" in safetensors:
        return [folder / "model.safetensors"], {}, []
    if (folder / INDEX).is_file():
        return _indexed(folder, safetensors)
    return safetensors or _gguf_files(folder), {}, []


def _files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if path.is_file()]


def _gguf_files(folder: Path) -> list[Path]:
    files = _files(folder, "*.gguf")
    models = {_GGUF_SHARD.sub("", file.stem): file for file in files}
    if len(models) > 1:
        names = ", ".join(file.name for file in models.values())
        raise ModelError(f"{folder} holds {len(models)} GGUF models ({names}); give the path of one of them.")
    if not files:
        raise _nothing_readable(folder)
    return files


def _nothing_readable(folder: Path) -> ModelError:
    if (folder / "adapter_config.json").is_file() or _files(folder, "adapter_*.safetensors"):
        return ModelError(f"{folder} is a PEFT adapter and not a model; add --adapter to measure its update.")
    pickles = [path for path in _files(folder, "*") if path.suffix in _PICKLES]
    if pickles:
        return _pickled(pickles[0])
    return ModelError(f"{folder} holds no .safetensors and no .gguf file; give a folder that `save_pretrained` wrote.")


def _indexed(folder: Path, present: list[Path]) -> tuple[list[Path], dict[str, Path], list[Problem]]:
    index = folder / INDEX
    weight_map = (_json_object(index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        reason = "It has no weight_map of names to files; every shard beside it is read instead."
        return present, {}, [Problem(str(index), None, reason)]
    shards: list[Path] = []
    problems: list[Problem] = []
    for shard in dict.fromkeys(weight_map.values()):
        refusal = _shard_refusal(folder, shard)
        if refusal is None:
            shards.append(folder / shard)
        else:
            problems.append(Problem(str(folder / shard), None, refusal))
    return list(dict.fromkeys(shards)), {name: folder / shard for name, shard in weight_map.items()}, problems


def _shard_refusal(folder: Path, shard: str) -> str | None:
    # By its words and not by where links lead: the cache of the hub links every file out of its folder.
    path = PurePosixPath(shard)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
        return f"{INDEX} names it, which is not a .safetensors file inside the folder; download the model again."
    if not (folder / shard).is_file():
        return f"{INDEX} names it, but it is missing; download the rest of the model."
    return None


def _gathered(files: Iterable[Path], owner: dict[str, Path]) -> tuple[list[StoredTensor], list[Problem]]:
    """The tensors of all files, each name once, and what is wrong with files, tensors and the index."""
    tensors: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            found, troubles = _READERS[file.suffix](file)
        except ModelError as error:
            problems.append(Problem(str(file), None, str(error)))
            continue
        problems += troubles
        present = {problem.tensor for problem in troubles} | {tensor.name for tensor in found}
        problems += _absent(file, owner, present)
        for tensor in found:
            earlier = tensors.get(tensor.name)
            if earlier is None:
                tensors[tensor.name] = tensor
                continue
            used = tensor if owner.get(tensor.name) == tensor.file else earlier
            tensors[tensor.name] = used
            problems.append(_duplicate(tensor, earlier, used))
    scaled = _without_scales(tensors, {*tensors, *owner, *(problem.tensor for problem in problems)})
    return [tensor for name, tensor in tensors.items() if name not in scaled], problems + list(scaled.values())


def _absent(file: Path, owner: dict[str, Path], present: set[str | None]) -> list[Problem]:
    reason = f"{INDEX} names it, but the file does not hold it; download the file again."
    return [Problem(str(file), name, reason) for name, where in owner.items() if where == file and name not in present]


def _duplicate(tensor: StoredTensor, earlier: StoredTensor, used: StoredTensor) -> Problem:
    reason = f"It is in {earlier.file.name} and in {tensor.file.name}; the one in {used.file.name} is used."
    return Problem(str(tensor.file), tensor.name, reason)


def _without_scales(tensors: dict[str, StoredTensor], known: set[str | None]) -> dict[str, Problem]:
    """Problems of FP8 codes whose scales are among the ``known`` names, even if the scales cannot be read."""
    problems = {}
    for name, tensor in tensors.items():
        scales = [name + ending for ending in _SCALE_ENDINGS if name + ending in known]
        if tensor.dtype.startswith("F8") and scales:
            reason = (
                f"Its {tensor.dtype} codes are the weights only after the scales in {scales[0]!r}; save it in BF16."
            )
            problems[name] = Problem(str(tensor.file), name, reason)
    return problems
