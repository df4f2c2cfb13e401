"""Do DPO and language modelling write elsewhere? `python benchmarks/gradient_panel.py` first, whose runs this reads.

Three claims of the source (METHODS.md 8), on the last checkpoint of each run, for every matrix, K = 1 and 5:

- *elsewhere*: updates of the two objectives overlap less, and their profiles over the singular directions of the weight
  differ more, than those of two seeds of one objective do. Never two runs of one seed: they begin with the same A, and
  would overlap for that alone.
- *off the principal directions*: DPO has more of its energy outside the weight's leading right directions.
- *neighbours agree*: the updates of one module overlap from layer to layer more than random subspaces.

The bonus is also held against ``tau``: the largest mean bonus of ten random orthonormal bases in place of the weight's.

A number is the mean over matrices. Intervals are a jackknife over seeds with Student's t, because pairs of seeds share
seeds: there are as many independent things as seeds. Every claim is judged by its interval alone.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from common import ROOT, print_table, write_results
from gradient_panel import ARMS
from peft import PeftModel
from scipy.stats import t as student
from transformers import AutoModelForCausalLM

from stablerank.probes.directions import SIDES, adjacent, bonus, distance, leading, overlap, profile
from stablerank.probes.updates import adapter_updates
from stablerank.spectral.subspaces import head_energy, singular_subspaces
from stablerank.training.recipe import load_recipe
from stablerank.zoo.resolve import resolve

KS = (1, 5)
BASES = 10
CLM, DPO = "clm", "dpo"
Statistic = Callable[[Sequence[int]], float]


class Run:
    """What is kept of one run: by K and matrix its directions, shares and the profile."""

    def __init__(self, arm: str, checkpoint: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(resolve(load_recipe(ROOT / ARMS[arm]).model.path))
        model: Any = PeftModel.from_pretrained(base, checkpoint)
        updates = adapter_updates(model)
        weights = {update.name: update.weight() for update in updates}
        self.directions = {k: {one.name: one for one in leading(updates, k)} for k in KS}
        self.profiles = {one.name: profile(one.operator, weights[one.name]) for one in updates}
        self.outside = {k: fmean(1 - head_energy(u.operator, _head(weights[u.name], k)) for u in updates) for k in KS}
        self.bonus = {k: fmean(bonus(self.directions[k][u.name], weights[u.name]) for u in updates) for k in KS}
        self.random_bonus = {k: [self._random_bonus(k, draw) for draw in range(BASES)] for k in KS}
        self.floors = {k: {side: _floor(self.directions[k].values(), side) for side in SIDES} for k in KS}
        self.adjacent = {
            k: {side: fmean(adjacent([*self.directions[k].values()], side).values()) for side in SIDES} for k in KS
        }

    def _random_bonus(self, k: int, draw: int) -> float:
        """The bonus with a random basis for each weight, the same for every run."""
        generator = torch.Generator().manual_seed(draw)
        found = []
        for one in self.directions[k].values():
            size = len(one.v_IK)
            basis_IK = torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=torch.float64)).Q
            found.append(overlap(one.v_IK, basis_IK) * size / k)
        return fmean(found)


def _head(weight_OI: torch.Tensor, k: int) -> torch.Tensor:
    return singular_subspaces(weight_OI, k).v_IK


def _floor(directions: Any, side: Any) -> float:
    """The mean overlap of random subspaces of these sizes."""
    return fmean(one.side(side).shape[1] / one.side(side).shape[0] for one in directions)


def overlaps(one: Run, other: Run, k: int, side: Any) -> float:
    a, b = one.directions[k], other.directions[k]
    return fmean(overlap(a[name].side(side), b[name].side(side)) for name in a)


def distances(one: Run, other: Run) -> float:
    return fmean(distance(one.profiles[name], other.profiles[name]) for name in one.profiles)


# --- statistics of some seeds -------------------------------------------------------------------------------------


def between(values: Mapping[tuple[str, int, str, int], float], one: str, other: str) -> Statistic:
    """Mean over pairs of unlike seeds."""
    return lambda seeds: fmean(values[one, a, other, b] for a, b in permutations(seeds, 2))


def difference(values: Mapping[tuple[str, int, str, int], float]) -> Statistic:
    """DPO with CLM, less the mean of each with itself."""
    mixed, clm, dpo = (between(values, *arms) for arms in ((CLM, DPO), (CLM, CLM), (DPO, DPO)))
    return lambda seeds: mixed(seeds) - (clm(seeds) + dpo(seeds)) / 2


def jackknife(statistic: Statistic, seeds: Sequence[int]) -> dict[str, float]:
    left_out = [statistic([seed for seed in seeds if seed != one]) for one in seeds]
    count, value = len(seeds), statistic(seeds)
    error = np.sqrt((count - 1) / count * np.square(np.array(left_out) - np.mean(left_out)).sum())
    reach = float(student.ppf(0.975, count - 1) * error)
    return {"value": value, "low": value - reach, "high": value + reach}


def measured(runs: Mapping[tuple[str, int], Run], seeds: Sequence[int]) -> list[dict[str, Any]]:
    pairs = [(a, b) for a, b in product(runs, repeat=2) if a[1] != b[1]]
    rows = []

    def told(claim: str, name: str, k: int | None, arm: str, statistic: Statistic, null: float | None) -> None:
        found = jackknife(statistic, seeds)
        rows.append({"claim": claim, "measure": name, "k": k, "arm": arm, "estimate": found, "null": null})
        if name == "bonus" and arm in ARMS and k is not None:
            bases = zip(*(runs[arm, seed].random_bonus[k] for seed in seeds), strict=True)
            rows[-1]["tau"] = max(map(fmean, bases))

    def pairwise(claim: str, name: str, k: int | None, of: Callable[[Run, Run], float], null: float | None) -> None:
        values = {(*a, *b): of(runs[a], runs[b]) for a, b in pairs}
        for arms in ((CLM, CLM), (DPO, DPO), (CLM, DPO)):
            told(claim, name, k, " with ".join(arms), between(values, *arms), null)
        told(claim, name, k, "difference", difference(values), 0.0)

    def single(claim: str, name: str, k: int, of: Callable[[Run], float], null: float) -> None:
        for arm in (CLM, DPO):
            told(claim, name, k, arm, lambda some, arm=arm: fmean(of(runs[arm, seed]) for seed in some), null)
        told(claim, name, k, "difference", lambda some: fmean(of(runs[DPO, s]) - of(runs[CLM, s]) for s in some), 0.0)

    floors = next(iter(runs.values())).floors
    for k in KS:
        for side in SIDES:
            pairwise(
                "elsewhere",
                f"overlap, {side}",
                k,
                lambda a, b, k=k, side=side: overlaps(a, b, k, side),
                floors[k][side],
            )
    pairwise("elsewhere", "distance of profiles", None, distances, None)
    for k in KS:
        single("off principal", "energy outside", k, lambda run, k=k: run.outside[k], 1 - floors[k]["right"])
        single("off principal", "bonus", k, lambda run, k=k: run.bonus[k], 1.0)
        for side in SIDES:
            single(
                "neighbours", f"overlap, {side}", k, lambda run, k=k, side=side: run.adjacent[k][side], floors[k][side]
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[921, 922, 923, 924, 925])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gradient-panel", help="where the run folders are")
    arguments = parser.parse_args()
    place = arguments.work.resolve()
    runs = {
        (arm, seed): Run(
            arm, place / f"{arm}-{seed}-{arguments.steps}" / "checkpoints" / f"checkpoint-{arguments.steps}"
        )
        for arm in ARMS
        for seed in arguments.seeds
    }
    rows = measured(runs, arguments.seeds)
    lines = [
        [
            *(row["measure"], row["arm"], str(row["k"] or "")),
            "{value:+.4f} ({low:+.4f} to {high:+.4f})".format(**row["estimate"]),
            "" if row["null"] is None else f"{row['null']:.4f}",
        ]
        for row in rows
    ]
    print_table("directions of updates", ("measure", "of", "K", "estimate (interval)", "random"), lines)
    write_results("update_directions", {"seeds": arguments.seeds, "steps": arguments.steps}, {"rows": rows})


if __name__ == "__main__":
    main()
