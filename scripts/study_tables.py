"""Tables of locked studies, from what their folders hold: the verdict, and means of columns by arm."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from tables import ROOT, table

COLUMNS = {
    "best held-out loss at step": "best_step",
    "rise of it after that, nats": "held_out_rise",
    "rank of update, loss at 1/2": "update_rank_at_half",
    "at 1/10": "update_rank_at_tenth",
    "at norm 1": "update_rank_at_norm_1",
    "trend of update after": "update_rank_trend_after",
    "rank of effect at the best": "effect_rank_at_best",
    "at the end": "effect_rank_at_end",
    "trend of effect after": "effect_rank_trend_after",
}


def verdict(name: str, what: str) -> str:
    found = json.loads((ROOT / "studies" / name / "verdict.json").read_text())
    judged = [
        (finding["decision"], finding["claim"], (finding["rule"] or finding["kill"])["outcome"])
        for finding in found["hypotheses"]
    ]
    for kind, held, failed in (("traps", "HOLDS", "fails"), ("controls", "holds", "FAILS")):
        for rule_name, rule in found[kind].items():
            judged.append((f"{kind[:-1]} {held if rule['outcome']['holds'] else failed}", rule_name, rule["outcome"]))
    rows = [[decision, claim, _estimate(outcome)] for decision, claim, outcome in judged]
    return table(f"decision | claim or rule | {what} (interval)", rows)


def _estimate(outcome: dict[str, Any]) -> str:
    """Of a killed claim that of its kill rule, which is what ended it."""
    if outcome["estimate"] is None:
        return "not defined"
    return "{estimate:+.3f} ({low:+.3f} to {high:+.3f})".format(**outcome)


def outcome_reward() -> str:
    return verdict("outcome-reward", "pass@1 gain")


def spectral_worlds() -> str:
    return verdict("spectral-worlds", "estimate")


def overfitting_verdict() -> str:
    return verdict("overfitting-signature", "estimate")


def overfitting_lengths_verdict() -> str:
    return verdict("overfitting-lengths", "estimate")


def overfitting_lengths_arms() -> str:
    columns = ("best held-out loss at step", "rise of it after that, nats")
    chosen = {name: COLUMNS[name] for name in columns}
    return arms("overfitting-lengths", {**chosen, "rank of update at the best": "update_rank_at_best"})


def overfitting_widths_verdict() -> str:
    return verdict("overfitting-widths", "estimate")


def overfitting_widths_arms() -> str:
    columns = (
        "best held-out loss at step",
        "rise of it after that, nats",
        "rank of update, loss at 1/2",
        "trend of update after",
    )
    chosen = {name: COLUMNS[name] for name in columns}
    others = {"before": "update_rank_trend_before", "rank of update at the best": "update_rank_at_best"}
    return arms("overfitting-widths", {**chosen, **others})


def overfitting_arms() -> str:
    return arms("overfitting-signature", COLUMNS)


def arms(name: str, columns: Mapping[str, str]) -> str:
    """Mean over seeds with the standard deviation between them."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "studies" / name / "results").glob("*.json")):
        cell = json.loads(path.read_text())
        cells.setdefault(cell["arm"], []).append(cell["values"])
    if not cells:
        raise FileNotFoundError(f"no result of studies/{name}")
    rows = [
        [f"`{arm}`", *(_spread([v[column] for v in found]) for column in columns.values())]
        for arm, found in cells.items()
    ]
    return table(" | ".join(["arm", *columns]), rows)


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{fmean(known):.2f} ± {stdev(known):.2f}" if len(known) > 1 else f"{known[0]:.2f}"
