"""Where the SVD-type initialisers start on SmolLM2's real weights: `python benchmarks/adapters_start.py`.

GeoRA's paper gives S_Head <= 0.02 for GeoRA and 0.98 for PiSSA, and NSS 0.092 and 0.395, without saying of which
matrix. Here both are taken of the *initial product* s B0 A0 on all 210 matrices: its head energy (one- and two-sided,
the leading 16 directions of W), its norm relative to W, and the shift of the singular values from W to the residual
W - s B0 A0. The null is random factors of the same rank. `adapters_training.py` has the same of trained updates.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from common import print_table, write_results
from transformers import AutoModelForCausalLM

from stablerank.adapters.prepare import prepare_adapter
from stablerank.adapters.specs import AdapterSpec, GeoraSpec, MiloraSpec, OloraSpec, PissaSpec
from stablerank.probes.updates import base_heads, first_products, measure_updates
from stablerank.spectral.nss import nss
from stablerank.spectral.operators import Factored
from stablerank.zoo.resolve import resolve

MODEL, RANK = "zoo:smollm2-135m-instruct", 16
STARTS: dict[str, AdapterSpec] = {
    "PiSSA": PissaSpec(r=RANK),
    "MiLoRA": MiloraSpec(r=RANK),
    "OLoRA": OloraSpec(r=RANK),
    "GeoRA": GeoraSpec(r=RANK),
    "GeoRA, spectral mask alone": GeoraSpec(r=RANK, euclidean_mask=False),
    "GeoRA, Euclidean mask alone": GeoraSpec(r=RANK, spectral_mask=False),
    "GeoRA, tail": GeoraSpec(r=RANK, component="tail"),
    "GeoRA, random": GeoraSpec(r=RANK, component="random"),
}
PUBLISHED = {"PiSSA": {"s_head": 0.98, "nss": 0.395}, "GeoRA": {"s_head": 0.02, "nss": 0.092}}
METRICS = ("head_energy", "head_energy_two_sided", "relative_norm")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    heads, spectra, found = None, {}, {}
    for name, spec in STARTS.items():
        started = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=torch.float32)
        products = first_products(prepare_adapter(model, spec))
        if heads is None:
            heads = base_heads(products, RANK)
            spectra = {product.name: torch.linalg.svdvals(product.weight()) for product in products}
        rows = measure_updates(products, run=name, seed=0, step=0, kind="initial", heads=heads)
        shifts = [
            nss(torch.linalg.svdvals(product.weight() - dense(product.operator)), spectra[product.name])
            for product in products
        ]
        found[name] = {metric: spread([row for row in rows if row.metric == metric]) for metric in METRICS}
        found[name]["nss"] = {"mean": statistics.fmean(shifts), "least": min(shifts), "most": max(shifts), "null": None}
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    columns = ("start", *METRICS, "nss", "published S_Head", "published NSS")
    print_table(
        "means over 210 matrices (least to most), and the null", columns, [shown(*item) for item in found.items()]
    )
    write_results("adapters_start", {"model": MODEL, "rank": RANK}, {"starts": found, "published": PUBLISHED})


def dense(product: Factored) -> torch.Tensor:
    # These shifts are a tenth or more of the spectrum: fp32, from the matrix, resolves them.
    return product.scale * (product.b_OR @ product.a_RI)


def spread(rows: list[Any]) -> dict[str, float | None]:
    values, nulls = [row.value for row in rows], [row.null for row in rows if row.null == row.null]
    return {
        "mean": statistics.fmean(values),
        "least": min(values),
        "most": max(values),
        "null": statistics.fmean(nulls) if nulls else None,
    }


def shown(name: str, found: dict[str, dict[str, float | None]]) -> tuple[str, ...]:
    def cell(metric: str) -> str:
        value = found[metric]
        null = f", null {value['null']:.3f}" if value["null"] is not None else ""
        return f"{value['mean']:.3f} ({value['least']:.3f} to {value['most']:.3f}){null}"

    published = PUBLISHED.get(name, {})
    return (
        name,
        *(cell(metric) for metric in (*METRICS, "nss")),
        str(published.get("s_head", "")),
        str(published.get("nss", "")),
    )


if __name__ == "__main__":
    main()
