"""What quality does each byte of an adapter buy? `python benchmarks/rate_distortion.py [--tune] [--task NAME]`.

``--tune`` first: rate of LoRA and DoRA, rate and omega of SineLoRA at each rank, one exploratory seed, validation, by
the held-out loss at five bits of k-means. Then, without it: three fresh seeds of LoRA, DoRA and SineLoRA at those
settings, and LoRA cut to a lower rank, by every method and number of bits, scored once on the test split. Methods and
adapters are compared by the Bjontegaard delta a seed, with Student's interval over seeds (quality is minus the loss,
or minus the logarithm of an update's error), and the claim "SineLoRA of rank 8 at five bits is as good as LoRA in
full precision" by the paired difference of the losses. Work goes on where it stopped. The figure is drawn once every
run is there.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, print_table, write_results
from rate_distortion_plot import draw
from rate_distortion_runs import TASKS, Arm, Task, point, trained

from stablerank.compression.spec import CompressionSpec
from stablerank.evaluation.rate_distortion import Curve, SeedMean, delta_rate, seed_mean

SEEDS, TUNING_SEED = (601, 602, 603), 11
CUT_TO = 2
SINE_STEP = 0.02
"""Rate times omega of SineLoRA, which the step on its update is proportional to; tried by the task's factors."""
PUBLISHED = CompressionSpec("kmeans", 5)
FULL = CompressionSpec("fp16")
SPECS = [
    FULL,
    *(CompressionSpec("kmeans", bits) for bits in range(1, 9)),
    *(CompressionSpec("affine", bits) for bits in range(1, 9)),
    CompressionSpec("nf4", group=64),
]
Point = dict[str, Any]
QUALITIES: dict[str, Callable[[Point], float]] = {
    "loss": lambda point: -point["loss"],
    "error": lambda point: -math.log10(point["median_error"]),
}


def candidates(task: Task) -> Iterator[Arm]:
    for rank in task.ranks:
        yield from (Arm(kind, rank, rate) for kind in ("lora", "dora") for rate in task.rates)
        yield from (Arm("sinelora", rank, SINE_STEP / omega * by, omega) for omega in task.omegas for by in task.by)


def tune(task: Task, work: Path) -> dict[str, Any]:
    """Every setting tried, and the best of each kind and rank."""
    tried = []
    for arm in candidates(task):
        folder = trained(task, arm, TUNING_SEED, work)
        full, five = (point(task, folder, spec, "validation", TUNING_SEED) for spec in (FULL, PUBLISHED))
        tried.append({**vars(arm), "full": full, "five_bits": five})
        print(f"{task.name} {arm.name(TUNING_SEED)}: {full['loss']:.4f}, at five bits {five['loss']:.4f}", flush=True)
        found = {"tried": tried, "chosen": chosen(task, tried)}
        write_results(f"rate_distortion_tuning_{task.name}", settings(task), found)
    return found


def chosen(task: Task, tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of a kind and rank by the loss at five bits; of an omega, whether the grid goes on at both sides."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for one in tried:
        key = one["kind"], one["rank"]
        if math.isfinite(one["five_bits"]["loss"]) and (
            key not in best or one["five_bits"]["loss"] < best[key]["five_bits"]["loss"]
        ):
            best[key] = one
    return [
        {
            **{name: one[name] for name in ("kind", "rank", "rate", "omega")},
            "interior": task.omegas[0] < one["omega"] < task.omegas[-1],
        }
        for one in best.values()
    ]


def measured(task: Task, arms: list[Arm], work: Path, seeds: Sequence[int] = SEEDS) -> Iterator[Point]:
    for seed in seeds:
        for arm in arms:
            cuts = [None, CUT_TO] if arm.kind == "lora" and arm.rank > CUT_TO else [None]
            folder = trained(task, arm, seed, work)
            for cut in cuts:
                for spec in SPECS:
                    spec_cut = CompressionSpec(spec.method, spec.bits, spec.group, cut)
                    yield {**vars(arm), "seed": seed, **point(task, folder, spec_cut, "test", seed)}
            print(f"{task.name} {arm.name(seed)}: done", flush=True)


def series(one: Point) -> str:
    cut = f" cut to {one['cut']}" if one["cut"] else ""
    return f"{one['kind']} r={one['rank']}{cut} {one['method']}"


def curve(points: list[Point], name: str, seed: int, quality: str) -> Curve:
    found = [one for one in points if series(one) == name and one["seed"] == seed]
    return Curve(tuple(one["bytes"] for one in found), tuple(QUALITIES[quality](one) for one in found))


def delta(points: list[Point], anchor: str, test: str, quality: str) -> dict[str, Any]:
    """Bytes of one series over those of another at equal quality, less one, with what it rests on by seed."""
    found = [
        delta_rate(curve(points, anchor, seed, quality), curve(points, test, seed, quality)) for seed in seeds(points)
    ]
    return {
        "anchor": anchor,
        "test": test,
        "rate": interval(seed_mean([each.value for each in found])),
        "status": [each.status for each in found],
        "overlap": [each.overlap for each in found],
        "dropped": [each.dropped for each in found],
    }


def deltas(points: list[Point]) -> list[dict[str, Any]]:
    """At equal held-out loss: each series of several bits against LoRA of rank 8 by k-means."""
    names = [name for name in dict.fromkeys(map(series, points)) if not name.endswith(("nf4", "fp16"))]
    return [delta(points, "lora r=8 kmeans", name, "loss") for name in names]


def error_deltas(task: Task, points: list[Point]) -> list[dict[str, Any]]:
    """At equal error of an update: even levels against k-means of the same adapter, and other adapters against LoRA."""
    rows = []
    for rank in task.ranks:
        own = [(f"{kind} r={rank} kmeans", f"{kind} r={rank} affine") for kind in ("lora", "dora", "sinelora")]
        others = [(f"lora r={rank} kmeans", f"{kind} r={rank} kmeans") for kind in ("dora", "sinelora")]
        rows += [delta(points, anchor, test, "error") for anchor, test in (*own, *others)]
    return rows


def claims(task: Task, points: list[Point]) -> list[dict[str, Any]]:
    """Loss of SineLoRA at five bits less that of LoRA in full precision, a rank; the control is LoRA at five bits."""
    rows = []
    for rank in task.ranks:
        for kind in ("sinelora", "lora"):
            tests = [loss(points, seed, kind, rank, PUBLISHED) for seed in seeds(points)]
            anchors = [loss(points, seed, "lora", rank, FULL) for seed in seeds(points)]
            found = seed_mean([test - anchor for test, anchor in zip(tests, anchors, strict=True)])
            rows.append(
                {"rank": rank, "test": f"{kind} at 5 bits", "difference": interval(found), "verdict": verdict(found)}
            )
    return rows


def loss(points: list[Point], seed: int, kind: str, rank: int, spec: CompressionSpec) -> float:
    key = (seed, kind, rank, None, spec.method, spec.bits)
    names = ("seed", "kind", "rank", "cut", "method", "bits")
    (found,) = [one for one in points if tuple(one[name] for name in names) == key]
    return float(found["loss"])


def verdict(difference: SeedMean) -> str:
    """A lower loss is better."""
    if difference.high <= 0:
        return "confirmed"
    return "falsified" if difference.low > 0 else "inconclusive"


def interval(mean: SeedMean) -> dict[str, Any]:
    return {name: value if math.isfinite(value) else None for name, value in vars(mean).items()}


def seeds(points: list[Point]) -> list[int]:
    return list(dict.fromkeys(one["seed"] for one in points))


def settings(task: Task) -> dict[str, Any]:
    return {
        **vars(task),
        "dtype": str(task.dtype),
        "seeds": SEEDS,
        "tuning_seed": TUNING_SEED,
        "cut": CUT_TO,
        "sine_step": SINE_STEP,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="arithmetic")
    parser.add_argument("--tune", action="store_true", help="try rates and frequencies on validation and stop")
    parser.add_argument(
        "--seed", type=int, choices=SEEDS, help="measure one alone, to share the work of the last stage"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "rate-distortion")
    arguments = parser.parse_args()

    task, work = TASKS[arguments.task], arguments.work.resolve()
    tuned = tune(task, work)
    if arguments.tune:
        rows = [(one["kind"], str(one["rank"]), f"{one['rate']:.2g}", f"{one['omega']:g}") for one in tuned["chosen"]]
        print_table("chosen on validation", ("kind", "rank", "rate", "omega"), rows)
        return
    arms = [Arm(one["kind"], one["rank"], one["rate"], one["omega"]) for one in tuned["chosen"]]
    if arguments.seed:
        print(f"{len(list(measured(task, arms, work, (arguments.seed,))))} points")
        return
    points: list[Point] = []
    for one in measured(task, arms, work):
        points.append(one)
        if len(points) % len(SPECS) == 0:
            write_results(f"rate_distortion_{task.name}", settings(task), {"points": points})
    results = {
        "points": points,
        "deltas": deltas(points),
        "error_deltas": error_deltas(task, points),
        "claims": claims(task, points),
    }
    write_results(f"rate_distortion_{task.name}", settings(task), results)
    draw(results, tuned, ROOT / "docs" / f"compression-{task.name}.png")
    if not all(one["within_bounds"] for one in points):
        raise SystemExit("a stable rank left its bounds")
    shown = [(row["test"], str(row["rate"]["value"]), str(row["status"])) for row in results["deltas"]]
    print_table("bytes at equal loss, less one", ("series", "delta", "status"), shown)


if __name__ == "__main__":
    main()
