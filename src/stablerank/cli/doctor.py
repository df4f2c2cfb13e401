"""``stablerank doctor``: does this machine run the library, and if not, what to do about it.

Each check is one row: what was found, what is wanted, and a remedy where the two differ. A part that is broken or not
installed makes a failed row, never a traceback, so every import of another library happens inside its own check.

Left out on purpose: mending anything. The doctor writes nothing but temporary files.
"""

import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import metadata
from json import dumps
from typing import Any

from stablerank.tasks.files import data_folder
from stablerank.zoo.cache import cache_folder, damage, folder_of
from stablerank.zoo.catalogue import ENTRIES, SCHEME, ZooEntry

PACKAGE = "stablerank"
MATMUL_SIZE, MATMUL_REPEATS = 1024, 5
BFLOAT16_TOLERANCE = 2.0**-7
"""Relative error allowed to a bfloat16 product against float32: one unit in the last place of bfloat16."""


@dataclass(frozen=True)
class Check:
    """One row; ``remedy`` is empty where nothing is to be done, and also names what an absent option would need."""

    name: str
    ok: bool
    found: str
    wanted: str
    remedy: str = ""


def run_doctor(json: bool = False) -> int:
    """Print every check, as a table or as one JSON list; returns the exit code, 1 where a check failed."""
    if json:
        found = list(checks())
        print(dumps([asdict(check) for check in found], indent=2))
    else:
        found = _print_table()
    return 0 if all(check.ok for check in found) else 1


def checks() -> Iterator[Check]:
    """Every check in turn; the last one trains for one step and takes seconds."""
    for name, group in _GROUPS.items():
        try:
            yield from group()
        # Whatever a broken installation raises must become a row.
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            remedy = "Mend the failed rows above, then run `stablerank doctor` again."
            yield Check(name, False, f"{type(error).__name__}: {reason}", "no error", remedy)


def _installation() -> Iterable[Check]:
    """Versions against our own pins, as recorded when the package was installed."""
    found = _version(PACKAGE)
    if found is None:
        remedy = "Run `pip install -e .` in the source tree: without its metadata no version can be checked."
        yield Check(PACKAGE, False, "not installed", "installed", remedy)
        return
    yield Check(PACKAGE, True, found, "installed")
    yield from (*_python(), *_packages(), *_extras())


def _python() -> Iterable[Check]:
    from packaging.specifiers import SpecifierSet

    wanted = str(metadata.metadata(PACKAGE)["Requires-Python"])
    ok = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    remedy = "" if ok else f"Make a virtual environment with Python {wanted} and install {PACKAGE} there."
    yield Check("python", ok, platform.python_version(), wanted, remedy)


def _packages() -> Iterable[Check]:
    for requirement, extra in _requirements():
        if extra is None:
            found = _version(requirement.name)
            ok = found is not None and requirement.specifier.contains(found, prereleases=True)
            remedy = "" if ok else f"Run `pip install '{requirement.name}{requirement.specifier}'`."
            yield Check(requirement.name, ok, found or "absent", str(requirement.specifier) or "any", remedy)


def _extras() -> Iterable[Check]:
    missing: dict[str, list[str]] = {}
    for requirement, extra in _requirements():
        if extra is not None:
            found = _version(requirement.name)
            fits = found is not None and requirement.specifier.contains(found, prereleases=True)
            missing.setdefault(extra, []).extend([] if fits else [requirement.name])
    for extra, absent in missing.items():
        state = f"absent: {', '.join(absent)}" if absent else "present"
        remedy = f"For this option: `pip install '{PACKAGE}[{extra}]'`." if absent else ""
        yield Check(f"extra {extra}", True, state, "optional", remedy)


def _requirements() -> Iterator[tuple[Any, str | None]]:
    """Our pins as installed, each with the extra it belongs to; those of another platform are left out."""
    from packaging.requirements import Requirement

    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    for text in metadata.requires(PACKAGE) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement, None
        else:
            yield from ((requirement, extra) for extra in extras if requirement.marker.evaluate({"extra": extra}))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Iterable[Check]:
    import torch

    yield Check("device", True, _device_name(torch), "any")
    threads, cores = (
        torch.get_num_threads(),
        len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    )
    ok = threads <= (cores or threads)
    remedy = "" if ok else f"Run with OMP_NUM_THREADS={cores}: more threads than cores slow each other down."
    yield Check("threads", ok, f"{threads} on {cores} cores", f"at most {cores}", remedy)


def _device_name(torch: Any) -> str:
    kind = _device_type(torch)
    kernels = f"cpu kernels {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind} ({torch.cuda.get_device_name()}), {kernels}" if kind == "cuda" else f"{kind}, {kernels}"


def _device_type(torch: Any) -> str:
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


def _bfloat16() -> Iterable[Check]:
    import torch

    a_NN = torch.randn(MATMUL_SIZE, MATMUL_SIZE, generator=torch.Generator().manual_seed(0)).to(_device_type(torch))
    exact_NN = a_NN @ a_NN
    half_NN = a_NN.bfloat16()
    error = float(((half_NN @ half_NN).float() - exact_NN).norm() / exact_NN.norm())
    ratio = _seconds(torch, a_NN) / _seconds(torch, half_NN)
    ok = error <= BFLOAT16_TOLERANCE
    advice = "" if ratio >= 1 else "; float32 is faster here"
    remedy = "" if ok else "Set `model.dtype=float32`."
    yield Check("bfloat16", ok, f"error {error:.1e}, {ratio:.1f}x the speed of float32{advice}", "error < 8e-3", remedy)


def _seconds(torch: Any, a_NN: Any) -> float:
    """Median seconds of a square product, after one to warm up."""
    times = []
    for _ in range(MATMUL_REPEATS + 1):
        start = time.perf_counter()
        a_NN @ a_NN
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _cache() -> Iterable[Check]:
    folder = cache_folder()
    # The nearest folder that exists: looking must not create the cache.
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
        yield Check("cache", True, f"{folder} can be written", "can be written")
    except OSError as error:
        remedy = "Set STABLERANK_CACHE to a folder that can be written."
        yield Check("cache", False, f"{folder}: {error.strerror}", "can be written", remedy)


def _data() -> Iterable[Check]:
    folder = data_folder()
    if folder.is_dir():
        yield Check("data", True, str(folder.resolve()), "optional")
    else:
        remedy = "For recipes and tests on real data: set STABLERANK_DATA to the folder that holds it."
        yield Check("data", True, f"no folder {folder}", "optional", remedy)


def _privacy() -> Iterable[Check]:
    from huggingface_hub import constants

    silent = bool(constants.HF_HUB_DISABLE_TELEMETRY)
    remedy = "" if silent else "Set HF_HUB_DISABLE_TELEMETRY=1 in the environment."
    yield Check("usage reports", silent, "off" if silent else "sent to the hub", "off", remedy)


def _zoo() -> Iterable[Check]:
    for entry in ENTRIES.values():
        try:
            yield _embedded(entry) if entry.source is None else _fetched(entry)
        except Exception as error:
            remedy = f"Reinstall {PACKAGE}: its embedded models are damaged or missing."
            yield Check(SCHEME + entry.name, False, str(error).splitlines()[0], "loads and runs", remedy)


def _embedded(entry: ZooEntry) -> Check:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stablerank.zoo.resolve import resolve

    folder = resolve(SCHEME + entry.name)
    with redirect_stderr(io.StringIO()):  # progress bars
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits_NTV = model(**tokenizer("1+1=?", return_tensors="pt")).logits
    ok = bool(logits_NTV.isfinite().all())
    remedy = "" if ok else f"Reinstall {PACKAGE}."
    found = f"{model.num_parameters():,} parameters" if ok else "logits are not finite"
    return Check(SCHEME + entry.name, ok, found, "loads and runs", remedy)


def _fetched(entry: ZooEntry) -> Check:
    folder = folder_of(entry)
    if not folder.exists():
        return Check(SCHEME + entry.name, True, "not fetched", "optional", f"`stablerank zoo fetch {entry.name}`.")
    fault = damage(folder)
    remedy = f"Run `stablerank zoo fetch {entry.name}`: it replaces the copy." if fault else ""
    return Check(SCHEME + entry.name, fault is None, fault or f"whole, in {folder}", "whole", remedy)


def _train_step() -> Iterable[Check]:
    """One GRPO step of a random two-layer Qwen3 through TRL, on the device a run would use."""
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()),  # the trainer prints its log rows
        redirect_stderr(io.StringIO()),
    ):
        trainer = _tiny_trainer(folder)
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        ready = time.perf_counter()
        trainer.train()
        done = time.perf_counter()
        after = [parameter.detach() for parameter in trainer.model.parameters()]
    moved = any(bool((now != then).any()) for now, then in zip(after, before, strict=True))
    ok = moved and all(bool(now.isfinite().all()) for now in after)
    state = f"{done - ready:.1f} s on {after[0].device.type}, {ready - start:.1f} s to import and build"
    remedy = "" if ok else "Reinstall torch, transformers and trl at the versions wanted above."
    yield Check("train step", ok, state if ok else "the weights did not move", "weights move, stay finite", remedy)


def _tiny_trainer(folder: str) -> Any:
    import torch
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = _letter_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    arguments = GRPOConfig(
        output_dir=folder,
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=_device_type(torch) == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        model=Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads, **ends)),
        reward_funcs=_code_point_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "abc"}] * 4),
        processing_class=tokenizer,
    )


def _code_point_reward(completions: list[str], **_: Any) -> list[float]:
    """A number that differs between random completions, so that the group has an advantage to learn from."""
    return [float(sum(map(ord, text)) % 97) for text in completions]


def _letter_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<eos>", "<unk>", *map(chr, range(ord("a"), ord("z") + 1))]
    core = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


_GROUPS: dict[str, Callable[[], Iterable[Check]]] = {
    "installation": _installation,
    "device": _device,
    "bfloat16": _bfloat16,
    "cache": _cache,
    "data": _data,
    "usage reports": _privacy,
    "zoo": _zoo,
    "train step": _train_step,
}


def _print_table() -> list[Check]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # The stream of now: the train step redirects standard output for a while, and the spinner must not follow it.
    console, found = Console(file=sys.stdout), []
    table = Table("", title="stablerank doctor")
    for heading in ("check", "found", "wanted"):
        table.add_column(heading, overflow="fold")
    with console.status("Checking; the last check trains one step"):
        for check in checks():
            found.append(check)
            # Text, not str: rich would read the brackets of `stablerank[wandb]` as markup.
            mark = Text("ok", "green") if check.ok else Text("FAILED", "bold red")
            table.add_row(mark, *map(Text, (check.name, check.found, check.wanted)))
    console.print(table)
    for check in found:
        if check.remedy:
            console.print(Text(f"{check.name}: {check.remedy}", "dim" if check.ok else "bold red"))
    return found
