"""The tables of docs/collapse-chain.md."""

from typing import Any

from tables import load, table


def links() -> str:
    rows = [
        [row["link"], str(row["runs"]), str(row["recorded"]), _span(row["steps"])]
        for row in load("collapse_chain")["links"]
    ]
    return table("link | runs with it | recorded in | step, median (first to last)", rows)


def events() -> str:
    rows = [[row["event"], str(row["runs"]), _span(row["steps"])] for row in load("collapse_chain")["events"]]
    return table("event | runs | step, mean (first to last)", rows)


def lags() -> str:
    rows = [
        [row["first"], row["second"], str(row["runs"]), _lag(row)]
        for row in load("collapse_chain")["lags"]
        if row["runs"]
    ]
    return table("from | to | runs with both | lag in steps, median (95 %)", rows)


def order() -> str:
    rows = [
        [name, *(str(row[key]) for key in ("kept", "tied", "broken")), _p(row["p_value"]), str(row["whole"])]
        for name, row in load("collapse_chain")["order"].items()
    ]
    return table("rules | order kept | tied | broken | p of as many by chance | runs with every link", rows)


def pairs() -> str:
    counts, chances = ("runs", "before", "after"), ("p_value", "holm")
    rows = [
        [row["first"], row["second"], *(str(row[key]) for key in counts), *(_p(row[key]) for key in chances)]
        for row in load("collapse_chain")["pairs"]
        if row["runs"]
    ]
    return table("first | second | runs | before | after | p | p, Holm", rows)


def rules() -> str:
    rows = []
    for row in load("collapse_chain")["rules"]:
        low, middle, high = row["errors"]
        false = [f"{100 * row['false'][key]:.1f}" for key in ("value", "low", "high")]
        case = [row["shape"], f"{100 * row['noise']:.0f} %", f"{row['correlation']:g}", f"{100 * row['missed']:.0f} %"]
        rows.append([*case, f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{false[0]} % ({false[1]} to {false[2]})"])
    return table("shape | noise | its correlation | missed | error in steps, median (5 % to 95 %) | false onsets", rows)


def _span(steps: list[float | None]) -> str:
    if None in steps:
        return ""
    middle, low, high = steps
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _lag(row: dict[str, Any]) -> str:
    if row["median"] is None:
        return ""
    interval = "" if row["low"] is None else f" ({row['low']:.0f} to {row['high']:.0f})"
    return f"{row['median']:.0f}{interval}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
