"""The tables of docs/bestofn.md."""

from typing import Any

from tables import load, table

POOLS = {
    "student": "embedded student, its own answers",
    "gsm8k": "GSM8K, recorded solutions, read by SmolLM2",
    "chain_sum": "SmolLM2's answers to chain_sum",
    "gcd": "SmolLM2's answers to gcd",
}
COMPARED = ("random", "shortest", "longest", "majority")


def pools() -> str:
    rows = [
        [
            POOLS[row["pool"]],
            f"{row['problems']:,}",
            str(row["n"][-1]),
            f"{row['mean_length']:.0f} {row['length_unit']}",
            _percent(row["gap"]["random"]),
            _percent(row["gap"]["oracle"]),
            "yes" if row["has_headroom"] else "no headroom",
        ]
        for row in load("bestofn")["pools"]
    ]
    return table("pool | problems | N | length of an answer | random | oracle | compared", rows)


def picks(name: str) -> str:
    """Every chooser at the largest N of one pool."""
    pool = next((row for row in load("bestofn")["pools"] if row["pool"] == name), None)
    if pool is None:
        raise FileNotFoundError(f"no results of the pool {name}")
    rows = [
        [
            _named(line),
            _percent(line["accuracy"]),
            *(_points(line["over"].get(control)) for control in COMPARED),
            "" if line["length"] is None else f"{line['length']:.1f}",
        ]
        for line in pool["lines"]
        if line["n"] == pool["n"][-1]
    ]
    header = " | ".join(f"over {control}" for control in COMPARED)
    return table(f"chooser, N = {pool['n'][-1]} | accuracy | {header} | {pool['length_unit']} picked", rows)


def student() -> str:
    return picks("student")


def gsm8k() -> str:
    return picks("gsm8k")


def chain_sum() -> str:
    return picks("chain_sum")


def gcd() -> str:
    return picks("gcd")


def ties() -> str:
    found = load("bestofn")["pools"]
    names = list(dict.fromkeys(name for pool in found for name in pool["tied"]))
    rows = [
        [
            POOLS[pool["pool"]],
            f"{sum(pool['unscored'].values()):,} of {pool['answers']:,}",
            *(f"{100 * pool['tied'][name]:.1f} %" if name in pool["tied"] else "" for name in names),
        ]
        for pool in found
    ]
    return table(f"pool | without a score | {' | '.join(names)}", rows)


def costs() -> str:
    rows = [
        [POOLS[pool["pool"]], cost["scores"], f"{1000 * cost['seconds']:.1f} ms", f"{cost['tokens']:.0f}"]
        for pool in load("bestofn")["pools"]
        for cost in pool["costs"]
    ]
    return table("pool | one pass for | an answer | tokens of it that are read", rows)


def _named(line: dict[str, Any]) -> str:
    return line["chooser"] if line["kind"] == "scorer" else f"({line['chooser']})"


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _points(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value['value']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"
