"""How long a user waits for `import stablerank` and `stablerank --help`: `python benchmarks/import_time.py`.

Wall time of fresh processes, interleaved so that a slow minute of the machine hits all of them; the first round warms
the file cache and is not counted.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from common import ROOT, bootstrap_interval, print_table, stablerank, write_results

GOAL_SECONDS = {"import stablerank": 1.0, "stablerank --help": 1.0}
BARE = "python -c pass"


def commands() -> dict[str, list[str]]:
    return {
        BARE: [sys.executable, "-c", "pass"],
        "import stablerank": [sys.executable, "-c", "import stablerank"],
        "stablerank --help": stablerank("--help"),
        "import torch": [sys.executable, "-c", "import torch"],
        "import trl": [sys.executable, "-c", "from trl import GRPOTrainer"],
    }


def seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(repeats: int) -> dict[str, list[float]]:
    rounds = [{name: seconds(command) for name, command in commands().items()} for _ in range(repeats + 1)]
    return {name: [one[name] for one in rounds[1:]] for name in commands()}


def median_with_interval(times: Sequence[float], bare: float) -> dict[str, float]:
    low, high = bootstrap_interval(np.median, times)
    median = float(np.median(times))
    return {"seconds": median, "low": low, "high": high, "times_bare_python": median / bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="counted processes of each kind")
    arguments = parser.parse_args()

    times = measure(arguments.repeats)
    bare = float(np.median(times[BARE]))
    results = {
        name: {**median_with_interval(taken, bare), "goal": GOAL_SECONDS.get(name)} for name, taken in times.items()
    }
    rows = [
        (
            name,
            f"{r['seconds']:.2f} s",
            f"{r['low']:.2f} to {r['high']:.2f}",
            f"{r['times_bare_python']:.1f}x",
            f"{r['goal']:.0f} s" if r["goal"] else "",
        )
        for name, r in results.items()
    ]
    title = f"wall time of a fresh process, median of {arguments.repeats}"
    print_table(title, ("process", "median", "95 % interval", "to bare python", "goal"), rows)
    write_results("import_time", vars(arguments), {"wall_seconds": times, "medians": results})


if __name__ == "__main__":
    main()
