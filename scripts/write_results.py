"""Fill the tables of the docs from `benchmarks/results/*.json`: `python scripts/write_results.py [--check]`.

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; no number in it is typed by hand. With `--check`
nothing is written, and a table that differs from its results file fails (part of `make docs`).
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def table(header: str, rows: list[list[str]]) -> str:
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(interval: dict[str, float]) -> str:
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def points(interval: dict[str, float]) -> str:
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def demo_seeds() -> str:
    rows = [
        [
            str(run["seed"]),
            percent(run["pass_at_1_before"]),
            percent(run["pass_at_1_after"]),
            points(run["pass_at_1_gain"]),
            f"{run['train_seconds']:.0f} s",
            f"{run['peak_memory_bytes'] / 1e9:.2f} GB",
        ]
        for run in load("demo_seeds")["runs"]
    ]
    return table("seed | pass@1 before | after | gain | training | peak memory", rows)


def demo_tuning() -> str:
    rows = [
        [
            run["setting"],
            *(f"{100 * run['curve'][step]:.0f} %" for step in ("10", "20", "30")),
            percent(run["pass_at_1_after"]),
            f"{run['mean_stable_rank']:.2f}",
        ]
        for run in load("demo_tuning")["runs"]
    ]
    return table("setting | step 10 | step 20 | step 30 | after 60 | mean stable rank", rows)


def telemetry_cost() -> str:
    results = load("telemetry_cost")
    named = {"wall time, with : without": "ratio_with_to_without", "share clocked inside the run": "share_inside"}
    rows = [[name, *(f"{results[key][part]:.4f}" for part in ("value", "low", "high"))] for name, key in named.items()]
    pairs = len(results["train_seconds_with"])
    return table(f"measure ({pairs} interleaved pairs) | value | 95 % low | 95 % high", rows)


def kill_resume() -> str:
    rows = []
    for title, name in {"demo": "kill_resume", "demo, num_iterations=2": "kill_resume_two_iterations"}.items():
        results = load(name)
        stages = [kill["stage"] for kill in results["kills"]]
        where = ", ".join(f"{stages.count(stage)} {stage}" for stage in dict.fromkeys(stages))
        rows.append([title, str(len(stages)), where, "equal" if results["passed"] else "differ"])
    return table("run | kills | where | tables against the unbroken run", rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "demo_seeds": demo_seeds,
    "demo_tuning": demo_tuning,
    "telemetry_cost": telemetry_cost,
    "kill_resume": kill_resume,
}


def filled(text: str) -> str:
    return BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    stale = [path for path in DOCS if filled(path.read_text()) != path.read_text()]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'stale, run scripts/write_results.py' if is_check else 'filled'}")
        if not is_check:
            path.write_text(filled(path.read_text()))
    return int(bool(stale) and is_check)


if __name__ == "__main__":
    sys.exit(main())
