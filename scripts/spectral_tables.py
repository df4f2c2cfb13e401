"""The tables of docs/spectral-updates.md, from what `benchmarks/testbed_*.py` write."""

from statistics import fmean

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
    judged = load("testbed_relu")["verdicts"]
    return table("claim, all seeds | held", [[claim, "yes" if held else "no"] for claim, held in judged.items()])


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
            fit = found["growth"][side]
            rows.append([name, side, means, f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"])
    widths = ", ".join(found["stable_rank"])
    return table(f"features | side | at width {widths} | exponent", rows)


def features_verdicts() -> str:
    judged = load("testbed_features")["verdicts"]
    return table("claim, all seeds | held", [[claim, "yes" if held else "no"] for claim, held in judged.items()])
