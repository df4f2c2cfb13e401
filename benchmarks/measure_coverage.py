"""Do the bounds of the certified solver hold? `OMP_NUM_THREADS=1 python benchmarks/measure_coverage.py`.

Four counts against numpy's fp64 SVD of the stored values.

- Misses of the a-posteriori upper bound at delta = 0.01: Lanczos runs of 1 to 6 steps on random matrices with sides of
  24 to 160, in fp64 and fp32; the bound is the least x that the certificate shows to exceed lambda_1. Clopper-Pearson
  intervals by block width and by spectrum. "lonely top" (one value above equal ones) attains the bound after one step:
  there the misses must come near delta, elsewhere they may be fewer.
- Misses of the lower bound, which always holds: none allowed.
- The public function at delta = 1e-6 and 0.01: value within rtol, truth inside the interval.
- Rounding: what fp32 did to the Lanczos relation, over what the certificate allows it.

Controls that must miss: start blocks orthogonal to the top singular vector, and an epsilon meant for delta = 0.1.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from common import print_table, write_results
from scipy.optimize import brentq
from scipy.stats import binomtest

from stablerank.spectral.certificate import least_overlap, rounding_allowance, shortfall
from stablerank.spectral.certified import stable_rank_certified
from stablerank.spectral.lanczos import BlockLanczos, random_start
from stablerank.spectral.operators import Dense

Array = np.ndarray
Generator = np.random.Generator

DELTA, WRONG_DELTA, RTOL = 0.01, 0.1, 1e-3
WIDTHS = (1, 2, 4, 8)
DTYPES = (torch.float64, torch.float32)


def rotated(rng: Generator, values: Array, rows: int, columns: int) -> Array:
    """These singular values between random orthonormal frames."""
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (rows, columns))
    return (left * values) @ right.T


def above_ones(rng: Generator, top: Array, rows: int, columns: int) -> Array:
    return rotated(rng, np.concatenate((top, np.ones(min(rows, columns) - len(top)))), rows, columns)


def powers(rng: Generator, exponent: float, rows: int, columns: int) -> Array:
    return rotated(rng, np.arange(1, min(rows, columns) + 1) ** -exponent, rows, columns)


def spiked(rng: Generator, rows: int, columns: int) -> Array:
    spike = rotated(rng, np.array([1.0, 0.7]), rows, columns)
    return rng.standard_normal((rows, columns)) + 3 * math.sqrt(rows) * spike


SPECTRA: dict[str, Callable[[Generator, int, int], Array]] = {
    "lonely top": lambda rng, m, n: above_ones(rng, np.array([1.5]), m, n),
    "two near-equal tops": lambda rng, m, n: above_ones(rng, np.array([1.5, 1.5 - 1e-4]), m, n),
    "clustered top": lambda rng, m, n: above_ones(rng, 2 + 1e-5 * np.arange(6), m, n),
    "flat": lambda rng, m, n: above_ones(rng, np.empty(0), m, n),
    "gaussian": lambda rng, m, n: rng.standard_normal((m, n)),
    "all positive": lambda rng, m, n: rng.uniform(size=(m, n)),
    "power law": lambda rng, m, n: powers(rng, 1.0, m, n),
    "slow power law": lambda rng, m, n: powers(rng, 0.3, m, n),
    "spiked": spiked,
    "rank deficient": lambda rng, m, n: rotated(rng, np.arange(5.0, 0, -1), m, n),
}


class Run:
    """A Lanczos run and what its certificate says."""

    def __init__(self, matrix: torch.Tensor, start: torch.Tensor, steps: int) -> None:
        self.lanczos = BlockLanczos(Dense(matrix), start, steps)
        for _ in range(steps):
            self.lanczos.step()
        self.tridiagonal, defect = self.lanczos.tridiagonal()
        self.theta = torch.linalg.eigvalsh(self.tridiagonal)[-1].item()
        self.eta = max(rounding_allowance(tuple(matrix.shape), matrix.dtype) * self.theta, 8 * defect)

    def upper_bound(self, epsilon: float) -> float:
        """The least x shown to exceed lambda_1, to 1e-9 of the logarithm of its distance from the Ritz value."""

        def logarithm(y: float) -> float:
            x = self.theta * (1 + math.exp(y))
            found = shortfall(x, self.lanczos, self.tridiagonal, epsilon=epsilon, eta=self.eta)
            return math.log(min(max(found, 1e-300), 1e300))

        lowest, highest = -27.0, 30.0
        y = lowest if logarithm(lowest) < 0 else brentq(logarithm, lowest, highest, rtol=1e-9)
        return self.theta * (1 + math.exp(y))


def top_eigenvalue(matrix: torch.Tensor) -> float:
    return float(np.linalg.norm(matrix.double().numpy(), 2) ** 2)


def draw(rng: Generator, spectrum: str, trial: int, low: int, high: int) -> torch.Tensor:
    rows, columns = rng.integers(low, high + 1, size=2)
    return torch.from_numpy(SPECTRA[spectrum](rng, rows, columns)).to(DTYPES[trial // len(SPECTRA) % 2])


def bound_trials(trials: int) -> Iterator[dict[str, Any]]:
    """One record a trial: width, spectrum, and which bounds missed."""
    for width in WIDTHS:
        rng = np.random.default_rng(width)
        for trial in range(trials // len(WIDTHS)):
            spectrum = list(SPECTRA)[trial % len(SPECTRA)]
            matrix = draw(rng, spectrum, trial, 24, 160)
            size = min(matrix.shape)
            steps = int(rng.integers(1, min(6, size // width - 1) + 1))
            # The sharpest case is one step from the one spectrum that attains the bound.
            steps = 1 if spectrum == "lonely top" else steps
            run = Run(matrix, random_start(width, size, seed=trial, like=matrix), steps)
            truth = top_eigenvalue(matrix)
            bounds = {delta: run.upper_bound(least_overlap(width, size, delta)) for delta in (DELTA, WRONG_DELTA)}
            yield {
                "width": width,
                "spectrum": spectrum,
                "upper": bounds[DELTA] < truth,
                "upper_wrong_epsilon": bounds[WRONG_DELTA] < truth,
                "lower": run.theta - run.eta > truth,
            }


def orthogonal_trials(trials: int) -> Iterator[bool]:
    """Whether the upper bound missed from start blocks that know the matrix."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        width = WIDTHS[trial % len(WIDTHS)]
        rows, columns = rng.integers(60, 161, size=2)
        matrix = spiked(rng, rows, columns)
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        top = right[0] if rows >= columns else left[:, 0]
        block = rng.standard_normal((width, len(top)))
        start = np.linalg.qr((block - np.outer(block @ top, top)).T)[0].T.copy()
        run = Run(torch.from_numpy(matrix), torch.from_numpy(start), 6)
        yield run.upper_bound(least_overlap(width, len(top), DELTA)) < top_eigenvalue(torch.from_numpy(matrix))


def public_trials(trials: int, delta: float) -> Iterator[dict[str, Any]]:
    """The public function on matrices large enough for its Lanczos route."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        spectrum = list(SPECTRA)[trial % len(SPECTRA)]
        matrix = draw(rng, spectrum, trial, 97, 240)
        values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        truth = float((values**2).sum() / values[0] ** 2)
        estimate = stable_rank_certified(Dense(matrix), rtol=RTOL, delta=delta)
        slack = 1e-13 * truth
        yield {
            "status": estimate.status,
            "error": abs(estimate.value / truth - 1),
            "outside": not estimate.lower - slack <= truth <= estimate.upper + slack,
        }


def rounding_ratio(spectrum: str, shape: tuple[int, int], width: int) -> float:
    """``||x_1^T (M V - V T - V_next L^T E_S^T)|| / eta`` of an fp32 run of 8 steps, evaluated in fp64."""
    matrix = torch.from_numpy(SPECTRA[spectrum](np.random.default_rng(1), *shape)).float()
    run = Run(matrix, random_start(width, min(shape), seed=0, like=matrix), 8)
    basis = run.lanczos._basis_NK[: 9 * width].double().numpy()
    left, sigma, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    overlap = basis @ (right[0] if shape[0] >= shape[1] else left[:, 0])
    error = sigma[0] ** 2 * overlap[: 8 * width] - run.tridiagonal.numpy() @ overlap[: 8 * width]
    error[-width:] -= run.lanczos.coupling[-1].numpy() @ overlap[8 * width :]
    return float(np.linalg.norm(error)) / run.eta


def counted(misses: list[bool]) -> dict[str, Any]:
    """Misses, their rate and its 95 % Clopper-Pearson interval."""
    interval = binomtest(sum(misses), len(misses)).proportion_ci(method="exact")
    return {
        "trials": len(misses),
        "misses": sum(misses),
        "rate": sum(misses) / len(misses),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def grouped(records: list[dict[str, Any]], outcome: str) -> dict[str, dict[str, Any]]:
    """Counts over all trials, by width, and by spectrum."""
    names = ["all", *(f"width {width}" for width in WIDTHS), *SPECTRA]
    groups: dict[str, list[bool]] = {name: [] for name in names}
    for record in records:
        for group in ("all", f"width {record['width']}", record["spectrum"]):
            groups[group].append(bool(record[outcome]))
    return {group: counted(misses) for group, misses in groups.items()}


def public_summary(trials: int, delta: float) -> dict[str, Any]:
    records = list(public_trials(trials, delta))
    certified = [record for record in records if record["status"] == "certified"]
    return {
        "trials": trials,
        "certified": len(certified),
        "exact": sum(record["status"] == "exact" for record in records),
        "above_rtol": sum(record["error"] > RTOL for record in records),
        "outside_interval": sum(record["outside"] for record in records),
        "largest_error": max(record["error"] for record in records),
    }


def show_counts(title: str, counts: dict[str, dict[str, Any]]) -> None:
    rows = [
        (group, f"{c['trials']}", f"{c['misses']}", f"{c['rate']:.4f}", f"{c['low']:.4f} to {c['high']:.4f}")
        for group, c in counts.items()
    ]
    print_table(title, ("group", "trials", "misses", "rate", "95 % interval"), rows)


def verdicts(results: dict[str, Any]) -> dict[str, bool]:
    """What must hold, controls included."""
    upper, wrong = results["upper"], results["wrong_epsilon_control"]
    return {
        "upper bound: every interval reaches down to delta": all(count["low"] <= DELTA for count in upper.values()),
        "upper bound: attained where it can be": upper["lonely top"]["high"] >= DELTA / 2,
        "lower bound never missed": results["lower"]["misses"] == 0,
        "rtol met and truth inside": all(
            found["above_rtol"] == found["outside_interval"] == 0 for found in results["public"].values()
        ),
        "rounding within its allowance": max(results["rounding"].values()) < 1,
        "control: a wrong epsilon is noticed": wrong["lonely top"]["low"] > DELTA,
        "control: a start that knows the matrix misses": results["orthogonal_start_control"]["low"] > 0.5,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    records = list(bound_trials(arguments.trials))
    results: dict[str, Any] = {
        "upper": grouped(records, "upper"),
        "lower": grouped(records, "lower")["all"],
        "wrong_epsilon_control": grouped(records, "upper_wrong_epsilon"),
        "orthogonal_start_control": counted(list(orthogonal_trials(arguments.controls))),
        "public": {f"{delta:g}": public_summary(arguments.public, delta) for delta in (1e-6, DELTA)},
        "rounding": {
            f"{spectrum}, {rows} x {columns}, width {width}": rounding_ratio(spectrum, (rows, columns), width)
            for spectrum in SPECTRA
            for rows, columns, width in ((2000, 600, 8), (600, 2000, 8), (2000, 600, 1))
        },
    }
    return results | {"verdicts": verdicts(results)}


def show(results: dict[str, Any]) -> None:
    show_counts(f"misses of the upper bound at delta = {DELTA}", results["upper"])
    controls = {
        "epsilon of delta = 0.1, lonely top": results["wrong_epsilon_control"]["lonely top"],
        "start orthogonal to the top": results["orthogonal_start_control"],
        "lower bound (not a control)": results["lower"],
    }
    show_counts("controls, and the bound that always holds", controls)
    rows = [(f"delta = {delta}", *(f"{found[key]:g}" for key in found)) for delta, found in results["public"].items()]
    print_table("stable_rank_certified at rtol = 1e-3", ("", *next(iter(results["public"].values()))), rows)
    rows = [(name, f"{ratio:.3f}") for name, ratio in results["rounding"].items()]
    print_table("rounding error in fp32 over its allowance", ("matrix", "ratio"), rows)
    print_table("verdicts", ("what must hold", ""), [(name, str(held)) for name, held in results["verdicts"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12000, help="Lanczos runs whose bounds are counted")
    parser.add_argument("--controls", type=int, default=200, help="runs from starts that know the matrix")
    parser.add_argument("--public", type=int, default=2000, help="calls of the public function a delta")
    arguments = parser.parse_args()
    results = measure(arguments)
    show(results)
    write_results("measure_coverage", vars(arguments), results)
    if not all(results["verdicts"].values()):
        raise SystemExit("a bound or a control did not hold: see the verdicts")


if __name__ == "__main__":
    main()
