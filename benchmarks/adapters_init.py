"""What the initialisers cost and how right they are on SmolLM2's 210 matrices: `python benchmarks/adapters_init.py`.

One process, one thread, r = 16, every linear layer: the time of PEFT's `get_peft_model` on a freshly loaded model.
PEFT's own initialisers and ours run in turn and the least of several rounds counts. "cold" is an empty cache of first
factors, "cached" a second start. A start costs PEFT time whatever the initialiser (plain LoRA), and no cache saves
that: the last column is without it.

Beside the times: the energy that PiSSA's first product misses against the exact one, the worst of all matrices; and how
dense GeoRA's masks are, per module type, beside the numbers published for Qwen3-8B (union 0.3545, Jaccard 0.128).
"""

import gc
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import print_table, write_results
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from stablerank.adapters.inits.geora import geora_masks
from stablerank.adapters.specs import GeoraSpec, MiloraSpec, OloraSpec, PissaSpec
from stablerank.spectral.energy_certificate import subspace_energy
from stablerank.spectral.top_subspace import leading_triplets
from stablerank.zoo.resolve import resolve

MODEL = "zoo:smollm2-135m-instruct"
RANK, RHO = 16, 0.2
ROUNDS = 2
PUBLISHED = {"union": 0.3545, "jaccard": 0.128}
OURS = {
    "PiSSA": PissaSpec(kind="pissa", r=RANK),
    "GeoRA": GeoraSpec(kind="geora", r=RANK, rho=RHO),
    "MiLoRA": MiloraSpec(kind="milora", r=RANK),
    "OLoRA": OloraSpec(kind="olora", r=RANK),
}
PEFTS = {"plain LoRA": True, "PEFT pissa_niter_16": "pissa_niter_16", "PEFT pissa": "pissa", "PEFT olora": "olora"}


def model(folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def seconds(folder: str, config: LoraConfig) -> float:
    base = model(folder)
    gc.collect()
    gc.disable()  # as timeit does: a collection costs as much as plain LoRA
    started = time.perf_counter()
    get_peft_model(base, config)
    taken = time.perf_counter() - started
    gc.enable()
    return taken


def peft_config(init: bool | str) -> LoraConfig:
    return LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=init
    )


def times(folder: str, cache: Path) -> dict[str, float]:
    """Least seconds of each start over the rounds."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for name, init in PEFTS.items():
            found[name].append(seconds(folder, peft_config(init)))
        for name, spec in OURS.items():
            shutil.rmtree(cache, ignore_errors=True)
            found[f"{name}, cold"].append(seconds(folder, spec.peft_config()))
            found[f"{name}, cached"].append(seconds(folder, spec.peft_config()))
    return {name: min(taken) for name, taken in found.items()}


def weights(folder: str) -> dict[str, torch.Tensor]:
    return {name: w.detach() for name, w in model(folder).named_parameters() if w.ndim == 2 and "embed" not in name}


def energies(matrices: dict[str, torch.Tensor]) -> dict[str, float]:
    """Energy that the randomised head misses against numpy's spectrum, and what the certificate says of the worst."""
    missed = {}
    for name, weight in matrices.items():
        values = np.linalg.svd(weight.double().numpy(), compute_uv=False)[:RANK]
        v_IR = torch.linalg.qr(leading_triplets(weight, RANK).v_IR.double()).Q
        missed[name] = 1 - (weight.double() @ v_IR).square().sum().item() / np.square(values).sum()
    worst = max(missed, key=missed.__getitem__)
    shown = subspace_energy(matrices[worst], leading_triplets(matrices[worst], RANK).v_IR, rtol=2e-3).missed_at_most
    return {"mean": float(np.mean(list(missed.values()))), "worst": missed[worst], "worst, certified": shown}


def masks(matrices: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Density of the union and Jaccard index of GeoRA's two masks, means per module type."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, weight in matrices.items():
        spectral, euclidean = geora_masks(weight, RANK, RHO)
        both, either = (spectral & euclidean).sum().item(), (spectral | euclidean).sum().item()
        numbers = either / weight.numel(), both / either, euclidean.float().mean().item()
        found[name.split(".")[-2]].append(numbers)
        found["all"].append(numbers)
    return {
        kind: dict(zip(("union", "jaccard", "euclidean"), np.mean(rows, axis=0).tolist(), strict=True))
        for kind, rows in found.items()
    }


def report(taken: dict[str, float], missed: dict[str, float], densities: dict[str, dict[str, float]]) -> None:
    plain, exact, randomised = (taken[name] for name in ("plain LoRA", "PEFT pissa", "PEFT pissa_niter_16"))
    rows = [
        [name, f"{s:.2f}", f"{exact / s:.2f}", f"{randomised / s:.2f}", f"{s - plain:.2f}"] for name, s in taken.items()
    ]
    print_table("get_peft_model", ["start", "seconds", "x faster than pissa", "than niter_16", "less plain"], rows)
    print_table("energy missed", list(missed), [[f"{value:.1e}" for value in missed.values()]])
    rows = [[kind, *(f"{value:.4f}" for value in row.values())] for kind, row in densities.items()]
    rows.append(["published, Qwen3-8B", *(f"{value:.4f}" for value in PUBLISHED.values()), "0.2000"])
    print_table("GeoRA's masks", ["modules", "union", "Jaccard", "Euclidean"], rows)


def main() -> None:
    torch.set_num_threads(1)
    folder = str(resolve(MODEL))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["STABLERANK_CACHE"] = cache
        results: dict[str, Any] = {"seconds": times(folder, Path(cache) / "factors")}
    matrices = weights(folder)
    results |= {"energy missed by PiSSA": energies(matrices), "GeoRA masks": masks(matrices), "published": PUBLISHED}
    report(results["seconds"], results["energy missed by PiSSA"], results["GeoRA masks"])
    write_results("adapters_init", {"rank": RANK, "rho": RHO, "rounds": ROUNDS, "threads": 1}, results)


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    main()
