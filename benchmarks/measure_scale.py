"""A checkpoint larger than memory should hold: `python benchmarks/measure_scale.py [--gigabytes 8] [--keep FOLDER]`.

Writes a synthetic sharded bf16 checkpoint with the shapes of an 8-billion-parameter Llama (as many layers as fit),
measures it with the command line in a fresh process, and reports time and peak memory (`ru_maxrss` of that process, so
interpreter and torch are in it). The weights are Gaussian with a planted direction: the hard, flat case for the solver
where the planted direction is weak.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, print_table, stablerank, write_results
from safetensors.torch import save_file

GOAL_BYTES = 1.5e9
HIDDEN, INNER, KEYS, VOCABULARY = 4096, 14336, 1024, 32000
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """One shard a layer and one for the embedding, with an index; returns the bytes of all weights."""
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    total = 0
    layer = -1
    while total < gigabytes * 1e9:
        names = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
        if layer >= 0:
            names = {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
        shard = f"model-{layer + 2:05d}.safetensors"
        tensors = {name: planted(*shape, generator) for name, shape in names.items()}
        save_file(tensors, folder / shard)
        places |= dict.fromkeys(names, shard)
        total += sum(tensor.numel() * 2 for tensor in tensors.values())
        layer += 1
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": HIDDEN}))
    return total


def planted(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    matrix = torch.randn(rows, columns, generator=generator)
    left, right = torch.randn(rows, 1, generator=generator), torch.randn(1, columns, generator=generator)
    strength = 2 * (rows**0.5 + columns**0.5)
    matrix.addmm_(left / left.norm(), right / right.norm() * strength)
    return matrix.mul_(0.02).bfloat16()


def written(folder: Path, gigabytes: float) -> int:
    """In a process of its own: a child's `ru_maxrss` starts at what its parent held when it forked."""
    code = "import sys; from pathlib import Path; from measure_scale import write_checkpoint as write; "
    code += "print(write(Path(sys.argv[1]), float(sys.argv[2])))"
    command = [sys.executable, "-c", code, str(folder), str(gigabytes)]
    return int(subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout)


def measured(folder: Path, out: Path, jobs: int) -> dict[str, Any]:
    started = time.perf_counter()
    command = stablerank("measure", str(folder), "--out", str(out), "--jobs", str(jobs))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"measuring with {jobs} jobs failed")
    meta = json.loads((out / "measure.json").read_text())
    return {
        "jobs": jobs,
        "seconds": time.perf_counter() - started,
        "measuring_seconds": meta["seconds"],
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "matrices": meta["matrices"],
        "problems": len(meta["problems"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--keep", type=Path, help="write the checkpoint here and leave it")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    try:
        total = written(folder, arguments.gigabytes)
        print(f"{total / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} shards", flush=True)
        with tempfile.TemporaryDirectory() as out:
            runs = [measured(folder, Path(out) / str(jobs), jobs) for jobs in arguments.jobs]
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    rows = [
        [str(run["jobs"]), f"{run['seconds']:.0f}", f"{run['peak_bytes'] / 1e9:.2f}", str(run["matrices"])]
        for run in runs
    ]
    print_table(f"{total / 1e9:.2f} GB, bf16", ["jobs", "seconds", "peak memory, GB", "matrices"], rows)
    write_results("measure_scale", {"bytes": total, "goal_bytes": GOAL_BYTES}, {"runs": runs})


if __name__ == "__main__":
    main()
