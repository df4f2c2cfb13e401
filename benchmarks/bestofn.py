"""What scorers choose from pools of answers, beside every control: `python benchmarks/bestofn.py [POOL ...]`.

Four pools: answers of the embedded student to validation problems (N = 16), read by the student itself; the recorded
GSM8K solutions (N = 4), read by SmolLM2; SmolLM2's own answers to `chain_sum` and `gcd` of reasoning-gym (N = 16),
sampled as `recipes/smollm2-gym.yaml` says. Temperature 0.7 and top-p 0.9 are the paper's (arXiv 2512.02807). Problems
are those of the validation split; no setting was chosen by looking at them.

Answers and scores land in the work folder chunk by chunk; after a stop the same command goes on. Results are written
pool by pool. SmolLM2's weights are rounded to 4 bits (see `stablerank zoo list`).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, print_table, with_kept, write_results

from stablerank.choosing import BestOfN, Reading, best_of_n
from stablerank.evaluating import evaluate
from stablerank.training.recipe import load_recipe

STUDENT, SMOLLM2 = "zoo:arith-student", "zoo:smollm2-135m-instruct"
SCORERS = ("stable_rank", "stable_rank:scope=response", "mean_logprob", "self_certainty", "effective_rank")
SAMPLING: dict[str, Any] = {"k": (1,), "samples": 16, "temperature": 0.7, "top_p": 0.9, "split": "validation"}
GYM = "recipes/smollm2-gym.yaml"
GCD = ("data.task=gcd", "data.config={max_value: 50}")
COMPARED = ("random", "shortest", "longest", "majority")
Progress = Callable[[int, int, str], None]


def student(work: Path, problems: int | None, dtype: str) -> BestOfN:
    pool = work / "student-answers"
    evaluate(STUDENT, task="arithmetic", problems=problems or 300, out=pool, progress=told, **SAMPLING)
    return chosen(pool, work / "student", Reading(STUDENT, template="bare"), (1, 4, 8, 16))


def gsm8k(work: Path, problems: int | None, dtype: str) -> BestOfN:
    return chosen("gsm8k_solutions", work / "gsm8k", Reading(SMOLLM2, dtype=dtype), (1, 2, 4), problems)


def chain_sum(work: Path, problems: int | None, dtype: str) -> BestOfN:
    return own_answers("chain_sum", (), work, problems, dtype)


def gcd(work: Path, problems: int | None, dtype: str) -> BestOfN:
    return own_answers("gcd", GCD, work, problems, dtype)


def own_answers(name: str, overrides: tuple[str, ...], work: Path, problems: int | None, dtype: str) -> BestOfN:
    """SmolLM2's answers to a gym task, read by SmolLM2."""
    recipe, pool = load_recipe(ROOT / GYM, overrides), work / f"{name}-answers"
    evaluate(SMOLLM2, recipe=recipe, problems=problems or 150, out=pool, progress=told, **SAMPLING)
    return chosen(pool, work / name, Reading(SMOLLM2, dtype=dtype), (1, 4, 8, 16))


def chosen(pool: Path | str, out: Path, reading: Reading, n: tuple[int, ...], problems: int | None = None) -> BestOfN:
    return best_of_n(pool, SCORERS, reading=reading, n=n, problems=problems, out=out, progress=told)


def told(done: int, total: int, what: str) -> None:
    print(f"\r{what}: {done} of {total}  ", end="" if done < total else "\n", flush=True)


POOLS = {"student": student, "gsm8k": gsm8k, "chain_sum": chain_sum, "gcd": gcd}


def plain(name: str, found: BestOfN) -> dict[str, Any]:
    """What a table needs, without paths of this machine and hashes."""
    dropped = ("pool", "content", "files", "packages", "draw", "at_most")
    return {"pool": name, **{key: value for key, value in found.results().items() if key not in dropped}}


def shown(found: dict[str, Any]) -> None:
    largest = found["n"][-1]
    rows = [
        [
            line["chooser"] if line["kind"] == "scorer" else f"({line['chooser']})",
            interval(line["accuracy"]),
            *(interval(line["over"][name], "+") if name in line["over"] else "" for name in COMPARED),
            "" if line["length"] is None else f"{line['length']:.1f}",
        ]
        for line in found["lines"]
        if line["n"] == largest
    ]
    columns = ("chooser", "accuracy", *(f"over {name}" for name in COMPARED), found["length_unit"])
    print_table(f"{found['pool']}, N = {largest}; {found['verdict']}", columns, rows)


def interval(value: dict[str, float], sign: str = "") -> str:
    """In per cent, or percentage points."""
    return "{:{sign}.1f} ({:{sign}.1f} to {:{sign}.1f})".format(
        *(100 * value[key] for key in ("value", "low", "high")), sign=sign
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", default=list(POOLS), metavar="POOL", help=f"of {', '.join(POOLS)}")
    parser.add_argument("--problems", type=int, help="at most so many of each pool, for a trial")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of SmolLM2 as it scores")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bestofn")
    arguments = parser.parse_args()
    settings = {"scorers": SCORERS, "sampling": SAMPLING, "recipe": GYM, "gcd": GCD, "dtype": arguments.dtype}
    for name in arguments.pools:
        found = plain(name, POOLS[name](arguments.work.resolve(), arguments.problems, arguments.dtype))
        shown(found)
        if arguments.problems is None:
            pools = with_kept("bestofn", settings, "pools", [found], key="pool", order=[*POOLS])
            write_results("bestofn", settings, {"pools": pools})


if __name__ == "__main__":
    main()
