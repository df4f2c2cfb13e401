"""Does every member train? `python benchmarks/adapters_training.py [--tune]`.

Every member of `adapters_members.py`, on the embedded student, by GRPO (the demo recipe, shortened) and by CLM (a
plain TRL script), three fresh seeds each, scored once on the test split. ``--tune 0.3 1 3`` tries learning rates around
each member's default on validation with one exploratory seed. A finished run in the work folder is read, not repeated;
the results file is written after every run.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_members import MEMBERS
from common import DEMO, ROOT, launch, print_table, tail, train, write_results

from stablerank.runs.folder import RunFolder
from stablerank.runs.tables import ShardedTable

SEEDS = (501, 502, 503)
TUNING_SEED = 11
STEPS = 30
PROBLEMS = {"validation": 300, "test": 600}
SETTINGS = {"steps": {"grpo": STEPS, "clm": 60}, "problems": PROBLEMS}
DIVERGED = -0.05
"""A change of pass@1 below which a run counts as diverged."""


@dataclass(frozen=True)
class Task:
    objective: str
    member: str
    rate: float
    seed: int
    split: str

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.member}-{self.rate:g}-{self.seed}-{self.split}"


def tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    names = [name for name in MEMBERS if not arguments.members or name in arguments.members]
    for objective in arguments.objectives:
        for name in names:
            rate = getattr(MEMBERS[name], objective)
            if arguments.tune:
                yield from (Task(objective, name, rate * by, TUNING_SEED, "validation") for by in arguments.tune)
            else:
                yield from (Task(objective, name, rate, seed, "test") for seed in SEEDS)


def tried(work: Path) -> list[Task]:
    """Every finished validation run in the work folder: what was tried is told, kept or not."""
    names = (re.fullmatch(r"(grpo|clm)-(\w+)-(.+)-(\d+)-(validation)", folder.name) for folder in work.iterdir())
    return [
        Task(found[1], found[2], float(found[3]), int(found[4]), found[5])
        for found in sorted(filter(None, names), key=lambda found: (list(MEMBERS).index(found[2]), float(found[3])))
        if (work / found[0] / "summary.json").exists()
    ]


def run(task: Task, work: Path) -> dict[str, Any]:
    folder = work / task.name
    found = grpo(task, folder) if task.objective == "grpo" else clm(task, folder)
    gain = found["pass_at_1_after"]["value"] - found["pass_at_1_before"]["value"]
    result = {**vars(task), **found, "gain": gain, "diverged": not found["finite"] or gain < DIVERGED}
    print(f"{task.name}: {found['pass_at_1_after']['value']:.3f} ({gain:+.3f})", flush=True)
    return result


def grpo(task: Task, folder: Path) -> dict[str, Any]:
    overrides = [
        MEMBERS[task.member].override,
        f"optimiser.learning_rate={task.rate}",
        f"seed={task.seed}",
        f"trainer.max_steps={STEPS}",
        "trainer.per_device_train_batch_size=64",
        f"evaluation.problems={PROBLEMS[task.split]}",
        f"evaluation.split={task.split}",
        "evaluation.every=0",
        "geometry.against_base=true",
        "geometry.nss=true",
    ]
    done = RunFolder(folder)
    summary = done.summary() if (folder / "summary.json").exists() else train(folder, DEMO, overrides)
    losses = [row["loss"] for row in done.metrics.rows()]
    keys = ("pass_at_1_before", "pass_at_1_after", "train_seconds", "steps")
    return {
        **{key: summary[key] for key in keys},
        "finite": all(abs(loss) < float("inf") for loss in losses),
        "parameters": done.manifest()["parameters"],
        "geometry": geometry(done.geometry.rows()),
    }


def clm(task: Task, folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name("adapters_clm.py")), str(folder), task.member]
        command += ["--seed", str(task.seed), "--rate", str(task.rate), "--split", task.split]
        command += ["--problems", str(PROBLEMS[task.split])]
        log = folder / "log.txt"
        if launch(command, log).wait() != 0:
            raise SystemExit(f"{task.name} failed:\n{tail(log)}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return {**summary, "geometry": geometry(ShardedTable(folder / "geometry").rows())}


def geometry(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the matrices: one row a step, kind and metric, with the mean null; profiles at the ends alone."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    ends = {0, max((row["step"] for row in rows), default=0)}
    for row in rows:
        if row["metric"].startswith("alignment_") and row["step"] not in ends:
            continue
        groups.setdefault((row["step"], row["kind"], row["metric"]), []).append(row)
    return [
        {"step": step, "kind": kind, "metric": metric, "matrices": len(found), **means(found)}
        for (step, kind, metric), found in sorted(groups.items())
    ]


def means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    def mean(column: str) -> float | None:
        values = [row[column] for row in rows if row[column] is not None and row[column] == row[column]]
        return sum(values) / len(values) if values else None

    return {"value": mean("value"), "null": mean("null")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", nargs="+", type=float, help="factors of the default rate, tried on validation")
    parser.add_argument("--members", nargs="*", default=[], choices=MEMBERS)
    parser.add_argument("--objectives", nargs="*", default=["grpo", "clm"], choices=("grpo", "clm"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "adapters-training")
    arguments = parser.parse_args()

    name = "adapters_tuning" if arguments.tune else "adapters_training"
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(lambda task: run(task, arguments.work.resolve()), list(tasks(arguments))):
            found.append(result)
            write_results(name, SETTINGS, {"runs": found})
    if arguments.tune:
        found = [run(task, arguments.work.resolve()) | {"geometry": []} for task in tried(arguments.work.resolve())]
        write_results(name, SETTINGS, {"runs": found})
    columns = ("run", "rate", "seed", "before", "after", "change", "seconds")
    print_table(name.replace("_", " "), columns, [row(result) for result in found])
    if any(result["diverged"] for result in found) and not arguments.tune:
        raise SystemExit("a member diverged under its default recipe")


def row(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{result['objective']} {result['member']}",
        f"{result['rate']:g}",
        str(result["seed"]),
        f"{result['pass_at_1_before']['value']:.3f}",
        f"{result['pass_at_1_after']['value']:.3f}",
        f"{result['gain']:+.3f}",
        f"{result['train_seconds']:.0f}",
    )


if __name__ == "__main__":
    main()
