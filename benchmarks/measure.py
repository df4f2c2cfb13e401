"""How fast `stablerank measure` is, and how right: `python benchmarks/measure.py [CASE ...]`.

Every method meets the same tensors in one run, on one thread, and its error is taken against fp64 (the eigenvalues of
the fp64 Gram matrix, good to 1e-10 for the largest). Methods that finish in seconds are timed several times in turn,
and the median counts; the slow ones once. Two floors stand beside them:

- limit: the bytes read from the file into memory once, converted in cache-sized blocks, squared and summed. The fastest
  read that we know how to write; ours does the same and then its passes.
- plain read: what one would write first: safetensors' own `get_tensor`, `.float()`, sum of squares.

Files lie in the page cache: storage is not what is compared. WeightWatcher and diffract-core run in an environment of
their own (`make peers`), without their imports; they are left out where it is missing.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import ROOT, print_table, write_results
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stablerank.probes.checkpoints import weights
from stablerank.probes.evaluate import TOP
from stablerank.probes.measure import Settings, measure_all
from stablerank.probes.sources.folder import open_source
from stablerank.probes.sources.stored import StoredTensor
from stablerank.spectral.certified import DELTA, RTOL, top_of_spectrum
from stablerank.spectral.exact import stable_rank_exact
from stablerank.spectral.gram import gram_matrix
from stablerank.spectral.operators import BLOCK_ENTRIES, Dense, Factored
from stablerank.zoo.resolve import resolve

PEERS = ROOT / ".venv-peers" / "bin" / "python"
SMOLLM2 = "zoo:smollm2-135m-instruct"
QUICK_REPEATS = 7
Ranks = dict[str, float]
Method = Callable[[list[StoredTensor]], Ranks]


@dataclass(frozen=True)
class Timing:
    seconds: float
    worst_error: float | None
    repeats: int


def ours(tensors: list[StoredTensor]) -> Ranks:
    return {tensor.name: certified(tensor) for tensor in tensors}


def certified(tensor: StoredTensor) -> float:
    top = top_of_spectrum(Dense(tensor.read()))
    assert top.status in ("certified", "exact"), (tensor.name, top.status)
    estimate = top.stable_rank()
    assert estimate.value / estimate.lower - 1 <= RTOL * (1 + 1e-9)
    return estimate.value


def limit(tensors: list[StoredTensor]) -> Ranks:
    buffer = torch.empty(BLOCK_ENTRIES)
    for tensor in tensors:
        total, entries = 0.0, tensor.read().flatten()
        for start in range(0, len(entries), BLOCK_ENTRIES):
            part = entries[start : start + BLOCK_ENTRIES]
            block = buffer[: len(part)].copy_(part)
            total += torch.dot(block, block).item()
    return {}


def plain_read(tensors: list[StoredTensor]) -> Ranks:
    for tensor in tensors:
        with safe_open(tensor.file, "pt") as file:
            file.get_tensor(tensor.name).float().square().sum().item()
    return {}


def by_values(values: Callable[[Tensor], Tensor]) -> Method:
    """A method from something that gives singular values of one fp32 matrix, the largest first."""

    def method(tensors: list[StoredTensor]) -> Ranks:
        ranks = {}
        for tensor in tensors:
            matrix = tensor.read().float()
            ranks[tensor.name] = (matrix.square().sum() / values(matrix)[0].square()).item()
        return ranks

    return method


def gram_values(matrix: Tensor) -> Tensor:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    return torch.linalg.eigvalsh(tall.mT @ tall).flip(0).clamp(min=0).sqrt()


def low_rank_values(matrix: Tensor) -> Tensor:
    return torch.svd_lowrank(matrix, q=8, niter=2)[1]


QUICK: dict[str, Method] = {"limit": limit, "plain read": plain_read, "ours, certified": ours}
SLOW: dict[str, Method] = {
    "svd_lowrank(q=8, niter=2)": by_values(low_rank_values),
    "Gram + eigvalsh": by_values(gram_values),
    "svdvals": by_values(torch.linalg.svdvals),
}


def truth(tensors: list[StoredTensor]) -> Ranks:
    ranks = {}
    for tensor in tensors:
        gram_KK, _ = gram_matrix(Dense(tensor.read()))
        ranks[tensor.name] = (gram_KK.trace() / torch.linalg.eigvalsh(gram_KK)[-1]).item()
    return ranks


def clocked(method: Method, tensors: list[StoredTensor]) -> tuple[float, Ranks]:
    started = time.perf_counter()
    ranks = method(tensors)
    return time.perf_counter() - started, ranks


def worst(ranks: Ranks, right: Ranks) -> float | None:
    errors = [abs(ranks[name] / right[name] - 1) for name in right if name in ranks]
    return max(errors) if errors else None


def compare(tensors: list[StoredTensor], slow: dict[str, Method]) -> dict[str, Timing]:
    """Quick methods in turn, so that a drift of the machine meets all of them; slow ones once."""
    right = truth(tensors)
    seconds: dict[str, list[float]] = {name: [] for name in QUICK}
    errors: dict[str, float | None] = {}
    for method in QUICK.values():  # warm caches and workspaces
        method(tensors)
    for _ in range(QUICK_REPEATS):
        for name, method in QUICK.items():
            taken, ranks = clocked(method, tensors)
            seconds[name].append(taken)
            errors[name] = worst(ranks, right)
    timings = {name: Timing(statistics.median(taken), errors[name], QUICK_REPEATS) for name, taken in seconds.items()}
    for name, method in slow.items():
        taken, ranks = clocked(method, tensors)
        timings[name] = Timing(taken, worst(ranks, right), 1)
        print(f"  {name}: {taken:.3g} s", flush=True)
    return timings


def smollm2() -> dict[str, Timing]:
    folder = Path(resolve(SMOLLM2))
    tensors = [tensor for tensor in open_source(folder).tensors if len(tensor.shape) == 2]
    timings = compare(tensors, SLOW)
    right = truth(tensors)
    work, found = weights(folder), []
    taken = []
    for _ in range(3):
        found.clear()
        started = time.perf_counter()
        measure_all(work, Settings("smollm2", TOP, RTOL, DELTA), keep=found.append)
        taken.append(time.perf_counter() - started)
    timings["ours, with norms, nulls and rows"] = Timing(statistics.median(taken), None, 3)
    for tool in ("weightwatcher", "diffract"):
        told = peer(tool, folder)
        if told is not None:
            ranks = {f"{name.removesuffix('.weight')}.weight": rank for name, rank in told["stable_rank"].items()}
            name = f"{tool} {told['version']}"
            timings[name] = Timing(told["seconds"], worst(ranks, right), 1)
            print(f"  {name}: {told['seconds']:.3g} s, {len(set(ranks) & set(right))} matrices in common", flush=True)
    return timings


def peer(tool: str, folder: Path) -> dict[str, Any] | None:
    if not PEERS.exists():
        return None
    command = [str(PEERS), str(Path(__file__).with_name("peer_tools.py")), tool, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0:
        print(f"  {tool} did not run: {done.stderr.strip().splitlines()[-1:]}")
        return None
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def synthetic(rows: int, columns: int, exponent: float | None) -> dict[str, Timing]:
    """One bf16 matrix on disk: a spectrum ``i^-exponent`` between random rotations, or a Gaussian."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "matrix.safetensors"
        save_file({"matrix": planted(rows, columns, exponent).bfloat16()}, file)
        return compare(list(open_source(file).tensors), SLOW)


def planted(rows: int, columns: int, exponent: float | None) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    gaussian = torch.randn(columns, rows, generator=generator)
    if exponent is None:
        return gaussian.mT.contiguous()
    right = torch.linalg.qr(gaussian).Q
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator)).Q
    return (left * torch.arange(1, rows + 1) ** -exponent) @ right.mT


def factored(rows: int, columns: int, rank: int) -> dict[str, Timing]:
    """A low-rank update through its core and as a dense product."""
    generator = torch.Generator().manual_seed(rank)
    b_OR, a_RI = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    taken, value = [], math.nan
    for _ in range(QUICK_REPEATS):
        started = time.perf_counter()
        value = stable_rank_exact(Factored(b_OR, a_RI)).value
        taken.append(time.perf_counter() - started)
    started = time.perf_counter()
    sigma = torch.linalg.svdvals(b_OR @ a_RI)
    dense = time.perf_counter() - started
    rank_dense = (sigma.square().sum() / sigma[0].square()).item()
    return {
        "ours, certified": Timing(statistics.median(taken), abs(value / rank_dense - 1), QUICK_REPEATS),
        "svdvals": Timing(dense, None, 1),
    }


CASES: dict[str, Callable[[], dict[str, Timing]]] = {
    "SmolLM2-135M, 211 matrices": smollm2,
    "4096 x 4096, power law 0.25": lambda: synthetic(4096, 4096, 0.25),
    "4096 x 4096, power law 0.5": lambda: synthetic(4096, 4096, 0.5),
    "4096 x 4096, power law 1": lambda: synthetic(4096, 4096, 1.0),
    "4096 x 4096, Gaussian": lambda: synthetic(4096, 4096, None),
    "4096 x 14336, power law 0.5": lambda: synthetic(4096, 14336, 0.5),
    "4096 x 14336, Gaussian": lambda: synthetic(4096, 14336, None),
    "rank-16 update of 4096 x 14336": lambda: factored(4096, 14336, 16),
}


def report(case: str, timings: dict[str, Timing]) -> None:
    mine = timings["ours, certified"].seconds
    rows = [
        [
            name,
            f"{timing.seconds:.4g}",
            f"{timing.seconds / mine:.3g}",
            f"{timing.seconds / timings['limit'].seconds:.3g}" if "limit" in timings else "",
            "" if timing.worst_error is None else f"{timing.worst_error:.1e}",
        ]
        for name, timing in timings.items()
    ]
    print_table(case, ["method", "seconds", "over ours", "over the limit", "worst relative error"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of: {'; '.join(CASES)} (all)")
    chosen = parser.parse_args().cases or list(CASES)
    torch.set_num_threads(1)
    place = ROOT / "benchmarks" / "results" / "measure.json"
    kept = json.loads(place.read_text())["results"] if place.exists() else {}
    for case in chosen:
        print(case, flush=True)
        timings = CASES[case]()
        report(case, timings)
        kept[case] = {name: vars(timing) for name, timing in timings.items()}
        done = {name: kept[name] for name in CASES if name in kept}
        write_results("measure", {"rtol": RTOL, "delta": DELTA, "threads": 1}, done)


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    main()
