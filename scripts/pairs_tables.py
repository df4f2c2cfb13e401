"""The tables of docs/rewardbench.md."""

from collections.abc import Sequence
from typing import Any

from tables import load, table

Row = dict[str, Any]


def pairs_sets() -> str:
    rows = [
        [
            one["name"],
            part["name"],
            str(part["pairs"]),
            str(part["groups"]),
            f"{100 * part['chosen_longer']:.1f} %",
            f"{one['rows'][0]['matched']['matched']:.0f}" if part["name"] == "all" else "",
        ]
        for one in load("pairs_smollm2")["sets"]
        for part in one["parts"]
    ]
    return table("set | part | pairs | prompts | chosen is longer | pairs matched in length", rows)


def pairs_accuracy(name: str) -> str:
    """One set: every scorer over all its pairs."""
    rows = [
        [
            f"`{row['scorer']}`",
            _percent(row["agreement"]["accuracy"]),
            _share(row["agreement"]["tie_rate"]),
            str(row["agreement"]["undefined"]),
            _percent(row["matched"]["accuracy"]),
            _signed(row["ranks"]["with_length"]),
            _signed(row["ranks"]["given_length"]),
            _signed(row["regression"]["score"]) or row["regression"]["status"],
        ]
        for row in _rows(name)
        if row["part"] == "all"
    ]
    return table(
        "scorer | accuracy (95 %) | ties | undefined | at matched length (95 %) | rho with length "
        "| rho with preference given length | log-odds beside length",
        rows,
    )


def pairs_subsets(name: str) -> str:
    """One set, subset by subset: plain accuracy over matched."""
    found = [row for row in _rows(name) if row["part"] != "all"]
    parts, scorers = (list(dict.fromkeys(row[key] for row in found)) for key in ("part", "scorer"))
    of = {(row["scorer"], row["part"]): row for row in found}
    rows = [[f"`{scorer}`", *(_both(of[scorer, part]) for part in parts)] for scorer in scorers]
    return table(" | ".join(["scorer", *parts]), rows)


def _rows(name: str) -> Sequence[Row]:
    for one in load("pairs_smollm2")["sets"]:
        if one["name"] == name:
            rows: list[Row] = one["rows"]
            return rows
    raise FileNotFoundError(name)  # the benchmark writes set by set


def _both(row: Row) -> str:
    return f"{_percent(row['agreement']['accuracy'])}; matched {_percent(row['matched']['accuracy']) or 'not defined'}"


def _percent(interval: Row) -> str:
    if None in (interval["value"], interval["low"]):
        return "" if interval["value"] is None else f"{100 * interval['value']:.1f} %"
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _signed(interval: Row) -> str:
    if None in (interval["value"], interval["low"]):
        return ""
    return f"{interval['value']:+.2f} ({interval['low']:+.2f} to {interval['high']:+.2f})"
