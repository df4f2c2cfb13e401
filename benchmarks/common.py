"""What the benchmarks share: the child process of a run, the description of a machine, a table, a results file.

A results file names versions, processor, threads and commit beside its numbers, and no path of the machine it was
taken on.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DEMO = "recipes/demo.yaml"
PACKAGES = ("stablerank", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "scipy")


def stablerank(*arguments: str) -> list[str]:
    """The command line of this checkout, in a fresh process."""
    return [sys.executable, "-m", "stablerank", *arguments]


def launch(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a child at the root of the checkout; what it prints goes to the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def train(folder: Path, recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train into ``folder`` (or go on there) in a fresh process and return its summary; stops the script on failure."""
    begun = (folder / "manifest.json").exists()
    start = ["train", recipe, *overrides, f"output={folder}"]
    log = folder.with_suffix(".log")
    if launch(stablerank(*(["train", "--resume", str(folder)] if begun else start)), log).wait() != 0:
        raise SystemExit(f"{' '.join(start)} failed:\n{tail(log)}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def require_recipe(folder: Path, recipe: str, overrides: Sequence[str]) -> None:
    """Stop the script where a run folder holds a run of another recipe; where it was made does not matter."""
    from stablerank.runs.folder import RunFolder
    from stablerank.training.recipe import load_recipe, parse_recipe

    if (folder / "manifest.json").exists():
        wanted = load_recipe(ROOT / recipe, [*overrides, f"output={folder}"])
        # Parsed again, because a setting that is newer than the run has its default there.
        found = parse_recipe({**RunFolder(folder).manifest()["recipe"], "output": wanted.output})
        if found.resolved() != wanted.resolved():
            raise SystemExit(f"{folder} holds a run of another recipe: delete it or choose another --work.")


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a child's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def bootstrap_interval(statistic: Any, *samples: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of ``statistic(*samples, axis)``, several samples resampled as pairs; seeded."""
    result = bootstrap(
        [np.asarray(sample) for sample in samples],
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(result.low), float(result.high)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A small table on stdout: names to the left, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Piped into a file there is no width to fit.
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)


def write_results(name: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write ``benchmarks/results/NAME.json``."""
    whole = {"settings": settings, "results": results, "versions": _versions(), "machine": _machine()}
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"{name}.json"
    place.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"written to {place.relative_to(ROOT)}")


def with_kept(
    name: str, settings: dict[str, Any], part: str, new: Sequence[dict[str, Any]], *, key: str, order: Sequence[str]
) -> list[dict[str, Any]]:
    """``new``, and what the results file has of ``part`` with the same settings, one a ``key``, in this order."""
    place = RESULTS / f"{name}.json"
    before = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {"settings": None}
    old = before["results"][part] if before["settings"] == json.loads(json.dumps(settings)) else []
    found = {one[key]: one for one in [*old, *new]}
    return [found[one] for one in order if one in found]


def _versions() -> dict[str, str]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "src", "recipes") else "")
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"commit": commit, "python": platform.python_version(), **packages}


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": int(os.environ.get("OMP_NUM_THREADS", cores or 1)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
