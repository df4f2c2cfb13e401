"""The tables about adapters, from what `benchmarks/adapters_*.py` write.

Each function takes the members whose rows are wanted, by the first word of the row's name; none means all. A cell about
several seeds is their mean with the range.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from tables import load, table

Found = dict[str, Any]
OBJECTIVES = {"grpo": "GRPO", "clm": "CLM"}
PROPERTIES = {
    "policy at the start is the untouched model": "policy",
    "reference at the start is the untouched model": "reference",
    "switched off after training it is the untouched model": "off",
    "switched on again it is the trained one": "on",
    "gradients flow where they should and only there": "gradients",
    "frozen parameters stay as they were": "frozen",
    "merged equals unmerged": "merge",
    "unmerged again the base is the old one": "unmerge",
    "the optimiser's state resumes": "resume",
    "a fresh process reloads it": "reload",
    "stock PEFT reloads the native folder": "stock, native",
    "stock PEFT loads the plain export": "stock, export",
}
"""Short headings for the properties of tests/adapters/test_contract.py."""


def wanted(name: str, names: tuple[str, ...]) -> bool:
    return not names or name.replace(",", " ").split()[0] in names


def spread(values: Iterable[float | None], shown: Callable[[float], str], unit: str = "") -> str:
    """Mean and range; the mean alone where no digit that is shown differs."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = shown(min(known)), shown(max(known))
    return f"{shown(fmean(known))}{unit}" + (f" ({low} to {high})" if low != high else "")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


# --- training -----------------------------------------------------------------------------------------------------


def runs_by_member(runs: list[Found], names: tuple[str, ...] = ()) -> dict[str, dict[str, list[Found]]]:
    """The runs of each member and objective, in the order of the file."""
    groups: dict[str, dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if wanted(run["member"], names):
            groups[run["member"]][run["objective"]].append(run)
    return groups


def adapters_training(*names: str) -> str:
    runs = load("adapters_training")["runs"]
    seeds = len({run["seed"] for run in runs})
    rows = [["untouched model", "", *untouched(runs, "grpo"), *untouched(runs, "clm"), ""]]
    for member, by_objective in runs_by_member(runs, names).items():
        both = [run for found in by_objective.values() for run in found]
        diverged = sum(run["diverged"] for run in both)
        cells = [cell for objective in OBJECTIVES for cell in rate_and_score(by_objective[objective])]
        rows.append([member, trainable_of(both), *cells, f"{diverged} of {len(both)}"])
    return table(
        f"member | trains | GRPO, rate | pass@1 after ({seeds} seeds) | CLM, rate | pass@1 after ({seeds} seeds) "
        "| runs that diverged",
        rows,
    )


def untouched(runs: list[Found], objective: str) -> list[str]:
    before = {run["pass_at_1_before"]["value"] for run in runs if run["objective"] == objective}
    return ["", spread(before, percent, " %")]


def rate_and_score(runs: list[Found]) -> list[str]:
    if not runs:
        return ["", ""]
    return [f"{runs[0]['rate']:g}", spread((run["pass_at_1_after"]["value"] for run in runs), percent, " %")]


def trainable_of(runs: list[Found]) -> str:
    counts = [run["parameters"] for run in runs if "parameters" in run]
    return f"{counts[0]['trainable']:,}" if counts else ""


def adapters_tuning(*names: str) -> str:
    rows = []
    for member, by_objective in runs_by_member(load("adapters_tuning")["runs"], names).items():
        for objective, found in by_objective.items():
            tried = sorted(found, key=lambda run: run["rate"])
            scores = [f"{percent(run['pass_at_1_after']['value'])} % at {run['rate']:g}" for run in tried]
            rows.append([member, OBJECTIVES[objective], ", ".join(scores)])
    return table("member | objective | pass@1 on validation after training, by learning rate", rows)


# --- geometry -----------------------------------------------------------------------------------------------------


def adapters_geometry(*names: str) -> str:
    rows = []
    for member, by_objective in runs_by_member(load("adapters_training")["runs"], names).items():
        for objective, runs in by_objective.items():
            if any(run["geometry"] for run in runs):
                rows.append([member, OBJECTIVES[objective], *geometry_cells(runs)])
    return table(
        "member | objective | head energy | null | two-sided | null | first product: head energy | two-sided | NSS "
        "| relative norm | stable rank | null",
        rows,
    )


def geometry_cells(runs: list[Found]) -> list[str]:
    cells = []
    for kind, metric, shown, has_null in (
        ("update", "head_energy", "{:.3f}".format, True),
        ("update", "head_energy_two_sided", "{:.3f}".format, True),
        ("initial", "head_energy", "{:.3f}".format, False),
        ("initial", "head_energy_two_sided", "{:.3f}".format, False),
        ("update", "nss", "{:.2g}".format, False),
        ("update", "relative_norm", "{:.2g}".format, False),
        ("update", "stable_rank", "{:.2f}".format, True),
    ):
        last = [last_reading(run, kind, metric) for run in runs]
        cells.append(spread((reading.get("value") for reading in last), shown))
        if has_null:
            nulls = [reading["null"] for reading in last if reading.get("null") is not None]
            cells.append(shown(fmean(nulls)) if nulls else "")
    return cells


def last_reading(run: Found, kind: str, metric: str) -> Found:
    readings = [row for row in run["geometry"] if (row["kind"], row["metric"]) == (kind, metric)]
    return max(readings, key=lambda row: row["step"], default={})


# --- cost ---------------------------------------------------------------------------------------------------------


def whole_step(found: Found) -> float:
    return found["seconds"]["step"] + found["seconds"]["optimiser"]


def forward(found: Found) -> float:
    seconds = found["seconds"]
    return seconds["step"] - seconds["sampling"] - seconds["backward"]


def part(name: str) -> Callable[[Found], float]:
    return lambda found: found["seconds"][name]


def trainable(found: Found) -> float:
    """What really trains: a mask keeps a share of the entries."""
    return found["trainable"] * (found["kept_share"] or 1)


def beside(arms: dict[str, Found], member: str, value: Callable[[Found], float]) -> str:
    """A member's value as a ratio to full fine-tuning's and to LoRA's."""
    if not {member, "full", "LoRA"} <= set(arms):
        return ""
    return " / ".join(ratio(value(arms[member]) / value(arms[other])) for other in ("full", "LoRA"))


def adapters_cost(*names: str) -> str:
    members = load("adapters_cost")["members"]
    rows = []
    for member, found in members["grpo"].items():
        if wanted(member, names):
            steps = [step_cell(members[objective], member) for objective in OBJECTIVES]
            peaks = [beside(members[objective], member, lambda one: one["peak_bytes"]) for objective in OBJECTIVES]
            sizes = [
                beside(members["grpo"], member, lambda one, key=key: one[key])
                for key in ("optimiser_bytes", "checkpoint_bytes")
            ]
            trains = f"{100 * trainable(found) / found['total']:.2f} %"
            rows.append([member, trains, f"{found['start_seconds']:.1f} s", *steps, *peaks, *sizes])
    return table(
        "member | trains | start | GRPO step | CLM step | peak memory, GRPO | peak memory, CLM | optimiser state "
        "| checkpoint",
        rows,
    )


def step_cell(arms: dict[str, Found], member: str) -> str:
    return f"{whole_step(arms[member]):.2f} s ({beside(arms, member, whole_step)})" if member in arms else ""


def adapters_cost_parts(*names: str) -> str:
    members = load("adapters_cost")["members"]
    parts = {"sampling": part("sampling"), "forward": forward, "backward": part("backward")}
    parts["optimiser"] = part("optimiser")
    asked = [("grpo", name) for name in parts] + [("clm", name) for name in parts if name != "sampling"]
    rows = [
        [member, *(beside(members[objective], member, parts[name]) for objective, name in asked)]
        for member in members["grpo"]
        if wanted(member, names)
    ]
    return table(" | ".join(["member", *(f"{OBJECTIVES[objective]} {name}" for objective, name in asked)]), rows)


def adapters_published() -> str:
    results = load("adapters_cost")
    measures = {"time": whole_step, "GPU memory": lambda found: found["peak_bytes"], "trainable": trainable}
    rows = []
    for title, published in results["published"].items():
        member, what = title.split(" : full, ")
        value = next(value for start, value in measures.items() if what.startswith(start))
        ours = [published_cell(results["members"][objective], member, value) for objective in OBJECTIVES]
        rows.append([f"{member}, {what}", ratio(published), *ours])
    return table("ratio to full fine-tuning | published | ours, GRPO | ours, CLM", rows)


def published_cell(arms: dict[str, Found], member: str, value: Callable[[Found], float]) -> str:
    return ratio(value(arms[member]) / value(arms["full"])) if {member, "full"} <= set(arms) else ""


def adapters_step(*names: str) -> str:
    rows = [
        [
            name,
            f"{found['seconds']:.1f} s",
            "{value:.2f} ({low:.2f} to {high:.2f})".format(**found["seconds_ratio"]),
            f"{found['peak_bytes'] / 1e9:.2f} GB",
            f"{found['peak_bytes_ratio']:.2f}",
        ]
        for name, found in load("adapters_step").items()
        if wanted(name, names)
    ]
    return table("adapter | forward and backward | to LoRA (95 %) | peak memory | to LoRA", rows)


# --- initialisers -------------------------------------------------------------------------------------------------


def adapters_init(*names: str) -> str:
    seconds = load("adapters_init")["seconds"]
    plain, exact, randomised = (seconds[name] for name in ("plain LoRA", "PEFT pissa", "PEFT pissa_niter_16"))
    rows = [
        [name, f"{taken:.2f} s", f"{taken - plain:+.2f} s", f"{exact / taken:.1f}x", f"{randomised / taken:.1f}x"]
        for name, taken in seconds.items()
        if wanted(name, names)
    ]
    return table("start | time | beyond plain LoRA | faster than PEFT's `pissa` | than `pissa_niter_16`", rows)


def adapters_init_energy() -> str:
    missed = load("adapters_init")["energy missed by PiSSA"]
    return table(
        "energy of the exact head that is missed | share",
        [[name, f"{100 * value:.4f} %"] for name, value in missed.items()],
    )


def adapters_masks() -> str:
    results = load("adapters_init")
    modules = {**results["GeoRA masks"], "published, Qwen3-8B": results["published"]}
    rows = [
        [name, *(f"{found[key]:.4f}" if key in found else "" for key in ("union", "jaccard", "euclidean"))]
        for name, found in modules.items()
    ]
    return table("modules | density of the union | Jaccard index of the masks | kept by the Euclidean mask", rows)


def adapters_start(*names: str) -> str:
    results = load("adapters_start")
    rows = []
    for name, found in results["starts"].items():
        if not wanted(name, names):
            continue
        published = results["published"].get(name, {})
        rows.append(
            [
                name,
                *(start_cell(found[metric]) for metric in ("head_energy", "head_energy_two_sided")),
                str(published.get("s_head", "")),
                *(start_cell(found[metric]) for metric in ("relative_norm", "nss")),
                str(published.get("nss", "")),
            ]
        )
    header = (
        "start | head energy | null | two-sided | null | published S_Head | norm relative to W | NSS of the residual"
    )
    return table(f"{header} | published NSS", [split(row) for row in rows])


def start_cell(found: dict[str, float | None]) -> tuple[str, str | None]:
    """Mean with range over the matrices, and the null's mean."""
    null = None if found["null"] is None else f"{found['null']:.3f}"
    return f"{found['mean']:.3f} ({found['least']:.3f} to {found['most']:.3f})", null


def split(row: list[str | tuple[str, str | None]]) -> list[str]:
    """Cells with a null become two."""
    parts = [[cell] if isinstance(cell, str) else [part for part in cell if part is not None] for cell in row]
    return [cell for part in parts for cell in part]


# --- contract -----------------------------------------------------------------------------------------------------


def adapters_contract(*names: str) -> str:
    results = load("adapters_contract")
    cells: dict[str, dict[str, list[float | str]]] = defaultdict(lambda: defaultdict(list))
    for row in results["rows"]:
        if wanted(row["member"], names):
            cells[row["member"]][row["property"]].append(row["found"])
    titles = list(PROPERTIES)
    rows = [[member, *(contract_cell(found[title]) for title in titles)] for member, found in cells.items()]
    failure = (
        f"\nA cell does not hold what the test declares: {', '.join(results['failed'])}.\n" if results["failed"] else ""
    )
    return table(" | ".join(["member", *PROPERTIES.values()]), rows) + failure


def contract_cell(found: list[float | str]) -> str:
    """Errors in the order of the file, fp32 and bf16; one where they are equal."""
    texts = [
        f"{one:.2g}" if not isinstance(one, str) else "-" if "trains the model itself" in one else "refuses"
        for one in found
    ]
    return " / ".join(dict.fromkeys(texts))
