"""SIGKILL a run again and again, resume it, compare it with an unbroken one: `python benchmarks/kill_resume.py`.

The recipe runs once unbroken, which also gives the pace. Then it runs in another folder and its process is killed,
without warning, at seeded random moments; each time `stablerank train --resume` takes it up. Three aims take turns:

- ``any``: any moment since the process started, so often while it still imports;
- ``progress``: a random time after the run folder first changed, so in evaluation, training or closing;
- ``checkpoint``: within the milliseconds in which a checkpoint folder exists without its ``complete.json``.

A moment is drawn over two checkpoint intervals (or what work remains), so that the kills spread over the whole run
instead of crowding at its end. A chain that finishes with kills left starts another lap in a new folder. At the end
every lap must equal the unbroken run: metrics and evaluations byte for byte, geometry and rollouts row for row, the
trained weights bit for bit, the summary but for times and memory. Exit code 0 for PASS, 1 for FAIL.

Times depend on the machine, so the moments of two calls with one seed are alike, not equal; the results file records
where each kill really fell.
"""

import argparse
import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import DEMO, launch, print_table, stablerank, tail, write_results
from safetensors.torch import load_file

from stablerank.runs.folder import COMPLETE, RunFolder
from stablerank.runs.tables import ShardedTable

POLL = 0.001
AIMS = ("any", "progress", "any", "progress", "checkpoint")
STAGES = ("start-up", "evaluation", "training", "checkpoint writing", "closing")
OWN_TO_A_RUN = ("train_seconds", "telemetry_seconds", "peak_memory_bytes")
SLOWEST = 4.0
"""A child that takes this many times longer than the unbroken run hangs."""


class Failure(Exception):
    """The benchmark's verdict is FAIL, and why."""


# --- a child and where it stands ---------------------------------------------------------------------------------


@dataclass
class Pace:
    """Seconds since process start of the unbroken run; ``writing``: from a checkpoint's folder to its marker."""

    start_up: float = 0.0
    at_step: dict[int, float] = field(default_factory=dict)
    writing: list[float] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)
    end: float = 0.0

    def remaining(self, step: int) -> float:
        """Work after the checkpoint at ``step``, start-up aside; 0 stands for no checkpoint."""
        return self.end - self.at_step.get(step, self.start_up)

    def interval(self) -> float:
        """Seconds between two checkpoints."""
        gaps = [later - sooner for sooner, later in pairwise([self.start_up, *self.checkpoints])]
        return max(gaps, default=self.end - self.start_up)


@dataclass
class Child:
    """One process on a run folder, and how the folder looked when it started."""

    folder: RunFolder
    process: "subprocess.Popen[bytes]"
    log: Path
    limit: float
    born: float
    touched: int
    checkpoints: set[tuple[str, int]]

    def age(self) -> float:
        return time.monotonic() - self.born

    def is_running(self) -> bool:
        if self.age() > self.limit:
            self.process.kill()
            raise Failure(f"a process hung for {self.age():.0f} s\n{tail(self.log)}")
        return self.process.poll() is None

    def has_progressed(self) -> bool:
        """A start writes the manifest and a resume cuts the tables: both change the folder itself."""
        return touched(self.folder) != self.touched

    def is_writing_checkpoint(self) -> bool:
        new = checkpoints(self.folder) - self.checkpoints
        return any(not (self.folder.checkpoints_path / name / COMPLETE).exists() for name, _ in new)

    def finish(self) -> None:
        while self.is_running():
            time.sleep(0.05)
        if self.process.returncode != 0:
            raise Failure(f"a process ended with exit code {self.process.returncode}\n{tail(self.log)}")


def touched(folder: RunFolder) -> int:
    return folder.path.stat().st_mtime_ns if folder.path.exists() else 0


def checkpoints(folder: RunFolder) -> set[tuple[str, int]]:
    """Name and last change of each checkpoint folder; rewritten debris of an earlier kill counts as new."""
    found = set()
    for place in folder.checkpoints_path.glob("checkpoint-*"):
        try:
            found.add((place.name, place.stat().st_mtime_ns))
        except FileNotFoundError:  # rotated away between the two calls
            continue
    return found


def begin(folder: RunFolder, arguments: argparse.Namespace, limit: float) -> Child:
    """Start the run, or take it up if a manifest is there."""
    new = ["train", arguments.recipe, *arguments.set, f"output={folder.path}"]
    command = ["train", "--resume", str(folder.path)] if folder.manifest_path.exists() else new
    log = folder.path.with_suffix(".log")
    before = touched(folder), checkpoints(folder)
    return Child(folder, launch(stablerank(*command), log), log, limit, time.monotonic(), *before)


def last_step(folder: RunFolder) -> int:
    return max((row["step"] for row in folder.metrics.rows()), default=0)


def retained_step(folder: RunFolder) -> int:
    """Where a resume would start."""
    return max((step for step, _ in folder.complete_checkpoints()), default=0)


def stage_at_death(child: Child) -> str:
    """What the dead child was doing, read from its folder; the set-up of the trainer counts as training."""
    folder = child.folder
    if not child.has_progressed() or not folder.manifest_path.exists():
        return "start-up"
    if child.is_writing_checkpoint():
        return "checkpoint writing"
    recipe, evaluated = folder.manifest()["recipe"], folder.evaluations.rows()
    phases = {row["phase"] for row in evaluated}
    if "after" in phases:
        return "closing"
    step = last_step(folder)
    is_trained = retained_step(folder) == recipe["trainer"]["max_steps"]
    # The geometry of a step is on disk before its point of the curve is, and the point before its metrics.
    measured = any(f"-{step + 1:08d}-" in shard.name for shard in folder.geometry.shards())
    every = recipe["evaluation"]["every"]
    is_due = bool(every) and (step + 1) % every == 0 and all(row["step"] != step + 1 for row in evaluated)
    return "evaluation" if "before" not in phases or is_trained or (measured and is_due) else "training"


# --- unbroken, then killed ---------------------------------------------------------------------------------------


def unbroken(folder: RunFolder, arguments: argparse.Namespace) -> Pace:
    """Run once without a kill and note when what happened."""
    child, pace, writing = begin(folder, arguments, arguments.longest), Pace(), dict[str, float]()
    while child.is_running():
        now = child.age()
        if not pace.start_up and child.has_progressed():
            pace.start_up = now
        pace.at_step.setdefault(last_step(folder), now)
        for name, _ in checkpoints(folder):
            started = writing.setdefault(name, now)
            if started and (folder.checkpoints_path / name / COMPLETE).exists():
                pace.writing.append(now - started)
                pace.checkpoints.append(now)
                writing[name] = 0.0
        time.sleep(5 * POLL)
    child.finish()
    pace.at_step.pop(0, None)
    pace.end = child.age()
    return pace


def strike(child: Child, aim: str, pace: Pace, rng: random.Random) -> bool:
    """Kill the child at a moment of the aim; False when it finished before that."""
    reach = min(2 * pace.interval(), pace.remaining(retained_step(child.folder)))
    triggers: dict[str, tuple[Callable[[], bool], float]] = {
        "any": (lambda: True, pace.start_up + reach),
        "progress": (child.has_progressed, reach),
        "checkpoint": (child.is_writing_checkpoint, min(pace.writing)),
    }
    has_come, span = triggers[aim]
    delay = rng.uniform(0, span)
    while child.is_running() and not has_come():
        time.sleep(POLL)
    until = time.monotonic() + delay
    while child.is_running() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 50 * POLL))
    child.process.kill()
    return child.process.wait() == -signal.SIGKILL


def kill_chain(work: Path, pace: Pace, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[RunFolder]]:
    """Every kill, and the finished folder of every lap."""
    rng, limit = random.Random(arguments.seed), SLOWEST * pace.end + 60
    aims = rng.sample([AIMS[i % len(AIMS)] for i in range(arguments.kills)], arguments.kills)
    kills: list[dict[str, Any]] = []
    laps = [RunFolder(work / "killed-1")]
    for _ in range(4 * arguments.kills + 4):
        child = begin(laps[-1], arguments, limit)
        aim = aims[len(kills)] if len(kills) < len(aims) else ""
        if aim == "checkpoint" and retained_step(child.folder) == max(pace.at_step):
            aim = "progress"  # no checkpoint is left to write
        if aim and strike(child, aim, pace, rng):
            kills.append(record(child, aim, len(laps), len(kills) + 1))
        else:
            child.finish()
            if len(kills) == len(aims):
                return kills, laps
            laps.append(RunFolder(work / f"killed-{len(laps) + 1}"))
    raise Failure(f"only {len(kills)} of {len(aims)} kills came about in {len(laps)} laps")


def record(child: Child, aim: str, lap: int, number: int) -> dict[str, Any]:
    folder = child.folder
    kill = {
        "kill": number,
        "lap": lap,
        "aim": aim,
        "seconds": round(child.age(), 2),
        "stage": stage_at_death(child),
        "step": last_step(folder),
        "resumes_from": retained_step(folder),
    }
    print(" ".join(f"{key}={value}" for key, value in kill.items()), flush=True)
    return kill


# --- comparison --------------------------------------------------------------------------------------------------


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """What differs between two finished runs that should be equal; nothing, one hopes."""
    checks = {
        "metrics.jsonl": one.metrics.path.read_bytes() == other.metrics.path.read_bytes(),
        "evaluations.jsonl": one.evaluations.path.read_bytes() == other.evaluations.path.read_bytes(),
        "steps of timings.jsonl": steps(one) == steps(other),
        "geometry": table(one.geometry) == table(other.geometry),
        "rollouts": table(one.rollouts) == table(other.rollouts),
        "weights of model/": weights_are_equal(one.model_path, other.model_path),
        "summary.json": lasting(one.summary()) == lasting(other.summary()),
    }
    return [name for name, is_equal in checks.items() if not is_equal]


def steps(folder: RunFolder) -> list[int]:
    return [row["step"] for row in folder.timings.rows()]


def table(shards: ShardedTable) -> list[str]:
    """Every row as text (NaN equals NaN), sorted, without the name of the run."""
    return sorted(json.dumps({k: v for k, v in row.items() if k != "run"}) for row in shards.rows())


def weights_are_equal(one: Path, other: Path) -> bool:
    names = [[file.name for file in sorted(place.glob("*.safetensors"))] for place in (one, other)]
    if names[0] != names[1] or not names[0]:
        return False
    pairs = [(load_file(one / name), load_file(other / name)) for name in names[0]]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def lasting(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in OWN_TO_A_RUN}


# --- the benchmark -----------------------------------------------------------------------------------------------


def run(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    reference = RunFolder(work / "unbroken")
    pace = unbroken(reference, arguments)
    print(
        f"unbroken: {pace.end:.0f} s, start-up {pace.start_up:.0f} s, {len(pace.checkpoints)} checkpoints, "
        f"each written in about {1000 * min(pace.writing):.0f} ms",
        flush=True,
    )
    kills, laps = kill_chain(work, pace, arguments)
    found = {lap.path.name: differences(reference, lap) for lap in laps}
    return {
        "passed": not any(found.values()),
        "kills_by_stage": dict(Counter(kill["stage"] for kill in kills)),
        "differences": found,
        "unbroken_seconds": round(pace.end, 1),
        "start_up_seconds": round(pace.start_up, 1),
        "checkpoint_writing_seconds": [round(seconds, 3) for seconds in pace.writing],
        "kills": kills,
    }


def show(results: dict[str, Any]) -> None:
    kills = results["kills"]
    rows = [
        (stage, str(len(at)), f"{len(at) / len(kills):.0%}", ", ".join(str(kill["step"]) for kill in at))
        for stage in STAGES
        if (at := [kill for kill in kills if kill["stage"] == stage])
    ]
    print_table(f"{len(kills)} kills, {len(results['differences'])} laps", ("stage", "kills", "share", "at step"), rows)
    for lap, found in results["differences"].items():
        print(f"{lap}: {'differs in ' + ', '.join(found) if found else 'equal to the unbroken run'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--recipe", default=DEMO)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides of all runs")
    parser.add_argument("--longest", type=float, default=1800, help="seconds after which the unbroken run hangs")
    parser.add_argument("--work", type=Path, help="keep the run folders here; a temporary folder otherwise")
    parser.add_argument("--name", default="kill_resume", help="name of the results file")
    arguments = parser.parse_args()

    settings = {key: value for key, value in vars(arguments).items() if key not in ("work", "name")}
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        if work.exists() and any(work.iterdir()):
            parser.error(f"--work {work} is not empty; choose another folder")
        try:
            results = run(work, arguments)
        except Failure as failure:
            print(str(failure))
            reason = str(failure).replace(str(work), "WORK").splitlines()
            results = {"passed": False, "failure": reason[0], "last_words": reason[-1]}
        else:
            show(results)
    write_results(arguments.name, settings, results)
    print("PASS" if results["passed"] else "FAIL")
    raise SystemExit(0 if results["passed"] else 1)


if __name__ == "__main__":
    main()
