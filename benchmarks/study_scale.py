"""A study of ten thousand cells: how long `status` and `verdict` take: `python benchmarks/study_scale.py`.

The study is synthetic: 500 arms with 20 seeds, 20 units a cell, and 25 hypotheses with a kill rule each, locked and
sealed as a real one is, so that everything is read, verified and judged. Both commands also run as a user runs them,
start-up included. Exit code 0 when each takes less than the limit.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import ROOT, print_table, stablerank, write_results

from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import lock
from stablerank.studies.plan import Cell, load_plan
from stablerank.studies.sealing import seal
from stablerank.studies.status import status
from stablerank.studies.verdict import verdict

MATRICES = 20


def write_study(folder: Path, arms: int, seeds: int, hypotheses: int) -> StudyFolder:
    """Every arm's stable rank grows with its number, so each hypothesis over neighbours far apart can be decided."""
    names = [f"arm{i:04d}" for i in range(arms)]
    contrast = {"kind": "difference", "column": "stable_rank"}
    claims = {
        f"claim{i}": {
            "claim": "The later arm has the higher stable rank.",
            "rule": {**contrast, "arm": names[-1 - i], "against": names[i]},
            "kill": {**contrast, "arm": names[-1 - i], "against": names[i], "direction": "less"},
        }
        for i in range(hypotheses)
    }
    plan = {
        "question": "How long does a verdict on ten thousand cells take?",
        "mode": "exploratory",
        "seeds": list(range(seeds)),
        "arms": {name: {"kind": "measure", "spec": "zoo:arith-student"} for name in names},
        "hypotheses": claims,
        "traps": {"backwards": {**contrast, "arm": names[0], "against": names[-1]}},
        "controls": {"positive": {**contrast, "arm": names[0]}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return StudyFolder(folder)


def write_synthetic_results(study: StudyFolder, sha256: str | None) -> int:
    """Seal a result for every cell; returns their number."""
    study.results_path.mkdir()
    generator, cells = np.random.default_rng(0), load_plan(study.plan_path).cells()
    for cell in cells:
        study.result_path(cell.id).write_text(json.dumps(seal(synthetic(cell, sha256, generator))))
    return len(cells)


def synthetic(cell: Cell, sha256: str | None, generator: np.random.Generator) -> dict[str, Any]:
    ranks = 5 + int(cell.arm[3:]) / 100 + generator.normal(0, 0.5, MATRICES)
    return {
        "cell": cell.id,
        "arm": cell.arm,
        "seed": cell.seed,
        "kind": cell.kind,
        "study_sha256": sha256,
        "exploratory": True,
        "status": "done",
        "error": None,
        "seconds": 1.0,
        "values": {"median_stable_rank": float(np.median(ranks)), "matrices": float(MATRICES)},
        "units": {"stable_rank": {f"matrix{i}": float(rank) for i, rank in enumerate(ranks)}},
        "provenance": {},
    }


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(round(time.perf_counter() - started, 3))
    return found


def command(verb: str, study: StudyFolder) -> Callable[[], Any]:
    arguments = stablerank("study", verb, str(study.path))
    return lambda: subprocess.run(arguments, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--hypotheses", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=5.0, help="seconds that a command may take")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder), arguments.arms, arguments.seeds, arguments.hypotheses)
        cells = write_synthetic_results(study, lock(study.path).sha256)
        timed = {
            "status()": seconds(lambda: status(study.path), arguments.repeats),
            "verdict()": seconds(lambda: verdict(study.path), arguments.repeats),
            "stablerank study status": seconds(command("status", study), arguments.repeats),
            "stablerank study verdict": seconds(command("verdict", study), arguments.repeats),
        }
    rows = [(name, f"{min(times):.2f}", f"{max(times):.2f}") for name, times in timed.items()]
    print_table(f"{cells} cells", ("", "fastest s", "slowest s"), rows)
    passed = max(max(times) for times in timed.values()) < arguments.limit
    write_results("study_scale", vars(arguments), {"passed": passed, "cells": cells, "seconds": timed})
    print("PASS" if passed else "FAIL")
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
