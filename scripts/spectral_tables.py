"""The tables of docs/spectral-updates.md, from what the benchmarks of testbeds, steps, routing and cost write."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from tables import load, table


def relu() -> str:
    runs = load("testbed_relu")["runs"]
    rows = [
        [
            name,
            f"{max(run['half'] for run in arm):.4f}",
            ", ".join(f"{run['whole']:.3f}" for run in arm),
            f"{100 * max(run['rise'] for run in arm):+.2f} %",
            f"{min(run['margin_ratio'] for run in arm):.4f}",
        ]
        for name, arm in runs.items()
    ]
    return table(
        "world | larger half, largest of seeds | the whole, each seed | its rise over the last decade "
        "| margin ratio, smallest of seeds",
        rows,
    )


def relu_verdicts() -> str:
    return _held("testbed_relu")


def factorisation() -> str:
    found = load("testbed_factorisation")
    rows = []
    for name, fit in found["fits"].items():
        method, _, rank = name.partition(", rank ")
        arm = [row for row in found["counts"] if row["method"] == method and row["rank"] == int(rank)]
        conditions = sorted({row["condition"] for row in arm})
        means = [fmean(row["iterations"][-1] for row in arm if row["condition"] == c) for c in conditions]
        exponents = [
            f"{fit[axis]['exponent']:.2f} ({fit[axis]['low']:.2f} to {fit[axis]['high']:.2f})"
            for axis in ("condition", "accuracy")
        ]
        rows.append([name, ", ".join(f"{mean:.0f}" for mean in means), *exponents])
    title = ", ".join(f"{condition:g}" for condition in conditions)
    return table(f"arm | iterations at condition {title} | exponent in condition | in 1 / tolerance", rows)


def factorisation_verdicts() -> str:
    judged = load("testbed_factorisation")["verdicts"]
    return table("PoLAR exponentially faster in | verdict", [[axis, outcome] for axis, outcome in judged.items()])


def features() -> str:
    rows = []
    for name, found in load("testbed_features")["arms"].items():
        for side in ("nuclear_rank", "stable_rank"):
            means = ", ".join(f"{fmean(column):.1f}" for column in found[side].values())
            rows.append([name, side, means, _power(found["growth"][side])])
    widths = ", ".join(found["stable_rank"])
    return table(f"features | side | at width {widths} | exponent", rows)


def features_verdicts() -> str:
    return _held("testbed_features")


def cost() -> str:
    found = load("condition_cost")
    named = {
        "CPU time, with : without": "ratio_with_to_without",
        "share clocked inside the run": "share_inside",
        "training steps that a measurement costs": "steps_a_measurement_costs",
    }
    rows = [[name, *(f"{found[key][part]:.3f}" for part in ("value", "low", "high"))] for name, key in named.items()]
    pairs = len(found["cpu_seconds_with"])
    return table(f"measure ({pairs} interleaved pairs) | value | 95 % low | 95 % high", rows)


def initial_chains() -> str:
    chains = load("testbed_init")["chains"]
    rows = []
    for name, found in chains.items():
        first = [f"{fmean(layers[0] for layers in runs):.1f}" for runs in found["ranks"].values()]
        *_, widest = found["ranks"].values()
        last = f"{fmean(layers[-1] for layers in widest):.1f}"
        rows.append([name, ", ".join(first), last, _power(found["in_width"]), _power(found["in_layer"])])
    widths = ", ".join(found["ranks"])
    return table(
        f"activation | first layer, width {widths} | last layer, widest | exponent in width | exponent in layer", rows
    )


def initial_models() -> str:
    models = load("testbed_init")["models"]
    rows = []
    for name, found in models.items():
        for role, fit in found["in_width"].items():
            means = [f"{fmean(fmean(run[role]) for run in runs):.1f}" for runs in found["ranks"].values()]
            rows.append([name, role.replace("_", " "), ", ".join(means), _power(fit)])
    widths = ", ".join(found["ranks"])
    return table(f"model | input | width {widths} | exponent in width", rows)


def initial_verdicts() -> str:
    return _held("testbed_init")


def one_step() -> str:
    rows = [
        [
            world,
            str(found["cases"]),
            *(_share(found[key]) for key in ("condition_says_spectral", "spectral_better", "named")),
            f"{100 * found['best_constant']:.0f} %",
            f"{found['strong_misses']} of {found['strong_cases']}",
            _interval({part: max(-1.0, min(1.0, value)) for part, value in found["correlation"].items()}),
        ]
        for world, found in load("one_step")["judged"].items()
    ]
    return table(
        "world | cases | condition says spectral | spectral is better | condition is right | best constant answer "
        "| ratio above 2, yet Euclidean better | rank correlation of the ratios",
        rows,
    )


def one_step_verdicts() -> str:
    return _held("one_step")


def spiked() -> str:
    sides = {
        "first": "nr, before the first step",
        "window_start": "nr, window begins",
        "window_end": "nr, window ends",
        "stable_rank": "st of the features",
    }
    rows = [
        [
            kind,
            title,
            ", ".join(f"{fmean(column):.1f}" for column in found[side].values()),
            _power(found["growth"][side]),
        ]
        for kind, found in load("testbed_spiked")["arms"].items()
        for side, title in sides.items()
    ]
    *_, found = load("testbed_spiked")["arms"].values()
    return table(f"features | side | dimension {', '.join(found['stable_rank'])} | exponent", rows)


def spiked_verdicts() -> str:
    return _held("testbed_spiked")


def sparse() -> str:
    rows = [
        [
            *arm["arm"].split(" | "),
            ", ".join(f"{multiplier:g}" for multiplier in arm["multipliers"]),
            f"{100 * fmean(arm['spectral_share']):.0f} %",
            *(
                ", ".join("exploded" if loss is None else f"{loss:.2g}" for loss in arm[key])
                for key in ("train", "test")
            ),
        ]
        for arm in load("testbed_sparse")["arms"]
    ]
    return table("network | spectral steps at | multipliers | spectral steps | training loss | test loss", rows)


def sparse_verdicts() -> str:
    judged = _verdicts("testbed_sparse")
    return table("claim | verdict", [[claim, outcome] for claim, outcome in judged.items()])


def nanogpt() -> str:
    found = load("spectral_nanogpt")
    rows = [
        [
            family,
            arm,
            f"{found['taken'][family][arm]:.0f}",
            f"{fmean(losses):.4f}",
            _interval(found["gains"][family][arm], digits=4),
        ]
        for family, of in found["losses"].items()
        for arm, losses in of.items()
    ]
    return table("model | Muon on | matrices | test loss, nats a byte | gain over AdamW", rows)


def nanogpt_blocks() -> str:
    rows = []
    for family, kinds in load("spectral_nanogpt")["ratios"].items():
        for kind, sides in kinds.items():
            path = [f"{sides['nr'][step]:.1f} / {sides['st'][step]:.1f}" for step in sides["nr"]]
            rows.append([family, kind, *path, f"{sides['median_ratio']:.2f}"])
            steps = list(sides["nr"])
    return table(" | ".join(["model", "block", *(f"step {step}" for step in steps), "median ratio"]), rows)


def nanogpt_verdicts() -> str:
    judged = load("spectral_nanogpt")["verdicts"]
    return table("claim | verdict", [[claim, outcome] for claim, outcome in judged.items()])


def _means(columns: Iterable[list[float]]) -> str:
    return ", ".join(f"{fmean(column):.1f}" for column in columns)


def _loss(loss: float | None) -> str:
    return "exploded" if loss is None else f"{loss:.2g}"


def _held(name: str) -> str:
    judged = _verdicts(name)
    return table("claim, all seeds | held", [[claim, "yes" if held else "no"] for claim, held in judged.items()])


def _verdicts(name: str) -> Any:
    """Raises FileNotFoundError where some arms are still to come."""
    judged = load(name)["verdicts"]
    if not judged:
        raise FileNotFoundError(name)
    return judged


def _power(fit: dict[str, float]) -> str:
    return f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"


def _share(found: dict[str, float]) -> str:
    value, low, high = (100 * found[part] for part in ("value", "low", "high"))
    return f"{value:.0f} % ({max(low, 0):.0f} to {min(high, 100):.0f})"


def _interval(found: dict[str, float], digits: int = 2) -> str:
    value, low, high = (f"{found[part]:+.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
