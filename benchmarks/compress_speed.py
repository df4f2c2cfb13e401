"""How small and how quick is a compressed adapter? `python benchmarks/compress_speed.py`.

A rank-8 adapter of the shapes of an 8B Llama (q, k, v, up and down of 32 layers, the 14.2 million values of METHODS.md
4.3), normal random factors, by each method: the file against its account and against fp16, time to compress, and the
speed of decoding in bytes of fp16 output, on one thread, best of three. Fails where the file is not what the account
says, five bits take more than 34 % of fp16, or decoding is under 150 MB/s.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_results
from safetensors.torch import save_file

from stablerank.compression.compress import compress
from stablerank.compression.container import read_container
from stablerank.compression.spec import CompressionSpec

LAYERS, RANK, REPEATS = 32, 8, 3
WIDTHS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "mlp.up_proj": (4096, 14336),
    "mlp.down_proj": (14336, 4096),
}
LARGEST_SHARE, LEAST_SPEED = 0.34, 150.0
SPECS = [
    CompressionSpec(),
    CompressionSpec(entropy=False),
    *(CompressionSpec(bits=bits) for bits in (1, 2, 3, 4, 8)),
    CompressionSpec(bits=4, group="row"),
    CompressionSpec("affine", 5),
    CompressionSpec("affine", 4, 64),
    CompressionSpec("symmetric", 5),
    CompressionSpec("nf4", group=64),
    CompressionSpec("fp16"),
]


def adapter(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, (inputs, outputs) in WIDTHS.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator).mul(0.02).half()
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator).mul(0.01).half()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 16}))


def measured(folder: Path, work: Path) -> Iterator[dict[str, Any]]:
    for number, spec in enumerate(SPECS):
        file = work / str(number)
        started = time.perf_counter()
        done = compress(folder, file, spec, measure=False)
        seconds = time.perf_counter() - started
        reading = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            read_container(file)
            reading.append(time.perf_counter() - started)
        size = file.stat().st_size
        yield {
            "method": spec.method,
            "bits": spec.bits,
            "group": spec.group,
            "entropy": spec.entropy,
            "file_bytes": size,
            "account_bytes": done.account.file,
            "codebook_bytes": done.account.codebooks,
            "fp16_bytes": done.account.fp16,
            "share": size / done.account.fp16,
            "compress_seconds": seconds,
            "decode_mb_per_second": 2e-6 * done.account.values / min(reading),
        }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        adapter(Path(temporary) / "adapter")
        found = list(measured(Path(temporary) / "adapter", Path(temporary)))
    settings = {"layers": LAYERS, "rank": RANK, "widths": WIDTHS, "repeats": REPEATS}
    write_results("compress_speed", settings, {"rows": found})
    columns = ("method", "bits", "group", "zstd", "bytes", "of fp16", "compress", "decode")
    rows = [
        (
            row["method"],
            str(row["bits"]),
            str(row["group"]),
            "yes" if row["entropy"] else "no",
            f"{row['file_bytes']:,}",
            f"{100 * row['share']:.2f} %",
            f"{row['compress_seconds']:.1f} s",
            f"{row['decode_mb_per_second']:.0f} MB/s",
        )
        for row in found
    ]
    print_table("compressed adapters", columns, rows)
    five = max(row["share"] for row in found if row["bits"] == 5)
    slowest = min(row["decode_mb_per_second"] for row in found)
    exact = all(row["file_bytes"] == row["account_bytes"] for row in found)
    if not exact or five > LARGEST_SHARE or slowest < LEAST_SPEED:
        raise SystemExit(f"account exact: {exact}; five bits at {five:.3f} of fp16; slowest {slowest:.0f} MB/s")


if __name__ == "__main__":
    main()
