"""Does PoLAR's Riemannian descent fit a low-rank target exponentially faster than gradient descent on LoRA's factors?

``python benchmarks/testbed_factorisation.py`` counts iterations to falling tolerances over condition numbers,
over-parameterisations and seeds (about four minutes on one core), fits their growth and judges the claim by the rules
below;
``results/testbed_factorisation.json``. Each method has its own step size: the one of `STEPS` that is quickest to the
smallest tolerance at the smallest condition number, on exploratory seeds; one step size then serves every condition
number, for no method is told it.

Growth is fitted as a power ``iterations ~ x^p`` by least squares in logarithms over all seeds, with the t interval of
p; p near 0 means at most logarithmic growth. A method that is "exponentially faster" in x has an upper end of p below
`FLAT` where its rival has a lower end above it.
"""

import argparse
import json
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from common import ROOT, print_table, write_results
from scipy import stats

from stablerank.testbeds.figures import save_panels
from stablerank.testbeds.low_rank_factorisation import Descent, Problem, iterations, lora, polar

METHODS: dict[str, Descent] = {"LoRA-GD": lora, "PoLAR": polar}
STEPS = (0.1, 0.3, 0.6, 1.0, 1.4)
CONDITIONS = (2.0, 4.0, 8.0, 16.0)
RANKS = (6, 12)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EXPLORATORY, SEEDS = (0, 1), (100, 101, 102, 103, 104)
FLAT = 0.25
BUDGET = 20_000


def tuned(descent: Descent, rank: int) -> float:
    """The quickest step size at the smallest condition number."""

    def cost(step: float) -> float:
        problem = Problem(CONDITIONS[0], rank)
        counts = [iterations(descent, problem, seed, step, TOLERANCES, 3000)[-1] for seed in EXPLORATORY]
        return sum(BUDGET if count is None else count for count in counts)

    return min(STEPS, key=cost)


def power(x: list[float], counts: list[float]) -> dict[str, Any]:
    """The exponent p of ``counts ~ x^p`` with its 95 % interval."""
    if len(set(x)) < 3:
        return {"exponent": None, "low": None, "high": None, "points": len(x)}
    fit = stats.linregress(np.log(x), np.log(np.maximum(counts, 1)))
    half = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    return {
        "exponent": float(fit.slope),
        "low": float(fit.slope - half),
        "high": float(fit.slope + half),
        "points": len(x),
    }


def growth(counts: list[dict[str, Any]], method: str, rank: int) -> dict[str, dict[str, Any]]:
    """Of iterations to the last tolerance in kappa, and of iterations in 1 / tolerance at the largest kappa."""
    arm = [row for row in counts if row["method"] == method and row["rank"] == rank]
    ends = [(row["condition"], row["iterations"][-1]) for row in arm if row["iterations"][-1] is not None]
    hard = [row for row in arm if row["condition"] == CONDITIONS[-1]]
    late = [(1 / t, n) for row in hard for t, n in zip(TOLERANCES, row["iterations"], strict=True) if n is not None]
    late = [(x, n) for x, n in late if x >= 1 / TOLERANCES[2]]
    return {
        "condition": power([x for x, _ in ends], [n for _, n in ends]),
        "accuracy": power([x for x, _ in late], [n for _, n in late]),
        "unreached": {"runs": sum(row["iterations"][-1] is None for row in arm), "of": len(arm)},
    }


def verdict(fits: dict[str, Any], axis: str) -> str:
    """``confirmed``, ``falsified`` or ``inconclusive``: is PoLAR flat in x where LoRA-GD is a power of x?"""
    polars = [fits[f"PoLAR, rank {rank}"][axis] for rank in RANKS]
    loras = [fits[f"LoRA-GD, rank {rank}"][axis] for rank in RANKS]
    if any(fit["exponent"] is None for fit in [*polars, *loras]):
        return "inconclusive"
    if all(fit["high"] < FLAT for fit in polars) and all(fit["low"] > FLAT for fit in loras):
        return "confirmed"
    is_polar_steep, is_lora_flat = any(fit["low"] > FLAT for fit in polars), any(fit["high"] < FLAT for fit in loras)
    return "falsified" if is_polar_steep or is_lora_flat else "inconclusive"


def counted(steps: dict[str, float], seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Iterations of every cell."""
    return [
        {
            "method": method,
            "rank": rank,
            "condition": condition,
            "seed": seed,
            "iterations": iterations(
                descent, Problem(condition, rank), seed, steps[f"{method}, rank {rank}"], TOLERANCES, BUDGET
            ),
        }
        for (method, descent), rank, condition, seed in product(METHODS.items(), RANKS, CONDITIONS, seeds)
    ]


def figure(counts: list[dict[str, Any]]) -> None:
    """Iterations to the last tolerance against the condition number, means over seeds."""
    panels: dict[str, Any] = {f"rank {rank}": {} for rank in RANKS}
    for method, rank in product(METHODS, RANKS):
        rows = [row for row in counts if row["method"] == method and row["rank"] == rank]
        means = [
            np.mean([row["iterations"][-1] or np.nan for row in rows if row["condition"] == condition])
            for condition in CONDITIONS
        ]
        panels[f"rank {rank}"][method] = CONDITIONS, means
    save_panels(panels, "condition number", ROOT / "docs" / "spectral-factorisation.png", log_y=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    seeds = SEEDS[: parser.parse_args().seeds]
    steps = {f"{m}, rank {r}": tuned(d, r) for (m, d), r in product(METHODS.items(), RANKS)}
    print("step sizes", json.dumps(steps))
    counts = counted(steps, seeds)
    fits = {f"{m}, rank {r}": growth(counts, m, r) for m, r in product(METHODS, RANKS)}
    judged = {axis: verdict(fits, axis) for axis in ("condition", "accuracy")}
    rows = [
        [name, axis, *(f"{fit[axis][key] or 0:.2f}" for key in ("exponent", "low", "high")), str(fit["unreached"])]
        for name, fit in fits.items()
        for axis in ("condition", "accuracy")
    ]
    print_table("Exponents of growth", ["arm", "in", "p", "low", "high", "unreached"], rows)
    print(judged)
    if len(seeds) == len(SEEDS):
        figure(counts)
        settings = {
            "problem": vars(replace(Problem(1.0, 1))),
            "steps": steps,
            "tolerances": TOLERANCES,
            "budget": BUDGET,
            "flat": FLAT,
            "seeds": seeds,
        }
        write_results("testbed_factorisation", settings, {"counts": counts, "fits": fits, "verdicts": judged})


if __name__ == "__main__":
    main()
