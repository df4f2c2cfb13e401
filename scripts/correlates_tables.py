"""The tables of docs/correlates.md."""

import math
from typing import Any

from tables import load, table

from stablerank.evaluation.correlates.published import PUBLISHED

LEVELS = ("sample", "paired")
LISTED = (("pearson", False), ("spearman", False), ("pearson", True), ("spearman", True))

FEWEST_SHOWN = 10
"""Answers below which an edit has no interval."""


def correlates(scope: str = "response") -> str:
    """The published numbers beside ours, all sets together."""
    levels = _levels(scope)
    rows = []
    for each in PUBLISHED:
        found = _by_kind(levels[each.level], each.metric)
        raw, given = found[each.coefficient, False], found[each.coefficient, True]
        rows.append(
            [
                *(f"`{each.metric}`", f"{each.level}, {each.coefficient}", f"{each.value:+.3f}"),
                *(_correlation(raw), _correlation(given), _agrees(each.value, raw), _agrees(each.value, given)),
            ]
        )
    header = "metric | level | published | here | given length | sign | sign given length"
    return table(header, rows)


def correlates_all(level: str = "sample", scope: str = "response") -> str:
    """Every metric at one level, all sets together."""
    rows = []
    for metric in load("correlates_smollm2")["metrics"]:
        found = _by_kind(_levels(scope)[level], metric["name"])
        rows.append([f"`{metric['name']}`", metric["origin"], *(_correlation(found[kind]) for kind in LISTED)])
    return table("metric | formula | Pearson | Spearman | Pearson given length | Spearman given length", rows)


def interventions(scope: str = "response") -> str:
    """Every edit on every set, in standard deviations of the untouched answers' scores."""
    rows = []
    for name, of_set in load("interventions_smollm2")["sets"].items():
        found = of_set["scorers"][_stable_rank(scope)]
        for each in found["effects"]:
            rows.append(
                [
                    *(name, f"`{each['name']}`", {-1: "down", 0: "none", 1: "up"}[each["claim"]]),
                    *(_scaled(each[part], found["spread"]) for part in ("change", "length_part", "beyond")),
                    *(f"{each['answers']} ({each['outside']})", each["verdict"]),
                ]
            )
    return table("set | edit | claim | change | length part | beyond length | answers (left out) | verdict", rows)


def mechanisms() -> str:
    """The verdict on each mechanism, one column a set, for both scopes."""
    sets = load("interventions_smollm2")["sets"]
    scopes = ("response", "all")
    names = list(next(iter(sets.values()))["scorers"][_stable_rank("response")]["mechanisms"])
    rows = [
        [name, scope, *(of_set["scorers"][_stable_rank(scope)]["mechanisms"][name] for of_set in sets.values())]
        for name in names
        for scope in scopes
    ]
    return table(" | ".join(["mechanism", "scope", *sets]), rows)


def interventions_beside() -> str:
    """What is beyond length, of stable rank and of the mean log-probability of the same answers, in their own units."""
    scorers = (_stable_rank("response"), _stable_rank("all"), "mean_logprob")
    rows = []
    for name, of_set in load("interventions_smollm2")["sets"].items():
        for edits in zip(*(of_set["scorers"][scorer]["effects"] for scorer in scorers), strict=True):
            spreads = (of_set["scorers"][scorer]["spread"] for scorer in scorers)
            cells = [_scaled(each["beyond"], spread) for each, spread in zip(edits, spreads, strict=True)]
            if edits[0]["answers"] >= FEWEST_SHOWN:
                rows.append([name, f"`{edits[0]['name']}`", *cells])
    return table("set | edit | stable rank, response | stable rank, all | mean log-prob", rows)


def layer_sweep(scope: str = "response") -> str:
    rows = []
    for model in load("layer_sweep")["models"]:
        for row in _whole(model["rows"], scope):
            place = model["blocks"] if row["layer"] == "before_norm" else int(row["layer"])
            source = ", ".join(theirs for theirs, ours in model["marked"].items() if str(ours) == row["layer"])
            depth = f"{place / model['blocks']:.2f}"
            rows.append([f"`{model['model']}`", row["set"], row["layer"], depth, source, *_accuracy(row)])
    return table("model | set | layer | relative depth | source's layer | accuracy | length-matched | ties", rows)


def window_sweep(scope: str = "response") -> str:
    rows = [
        [row["set"], row["part"], str(row["window"]), *_accuracy(row), f"{row['pairs']} ({row['undefined']})"]
        for row in load("window_sweep")["rows"]
        if row["scope"] == scope
    ]
    return table("set | subset | window | accuracy | length-matched | ties | pairs (without a score)", rows)


def template_sweep() -> str:
    rows = [
        [row["set"], f"`{row['template']}`", row["scope"], *_accuracy(row)]
        for row in sorted(load("template_sweep")["rows"], key=lambda row: (row["set"], row["scope"]))
        if row["part"] == "all"
    ]
    return table("set | template | scope | accuracy | length-matched | ties", rows)


def _levels(scope: str) -> dict[str, Any]:
    return load("correlates_smollm2")["sets"]["all"]["scorers"][_stable_rank(scope)]


def _stable_rank(scope: str) -> str:
    return f"stable_rank:scope={scope}"


def _by_kind(rows: list[dict[str, Any]], metric: str) -> dict[tuple[str, bool], dict[str, Any]]:
    return {(row["coefficient"], row["given_length"]): row for row in rows if row["metric"] == metric}


def _correlation(row: dict[str, Any]) -> str:
    """The value with its interval; a star where p < 0.05 after Holm over the metrics."""
    star = "*" if row["p_holm"] < 0.05 else ""
    return _bounded(row["interval"], 1.0, "+.2f") + star


def _agrees(published: float, row: dict[str, Any]) -> str:
    if published == 0 or not row["p_holm"] < 0.05:
        return "open"
    return "same" if published * row["interval"]["value"] > 0 else "other"


def _scaled(interval: dict[str, float], spread: float) -> str:
    return _bounded(interval, spread, "+.2f")


def _bounded(interval: dict[str, float], unit: float, form: str) -> str:
    if math.isnan(interval["value"]):
        return "not defined"
    value, low, high = (format(interval[key] / unit, form) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if math.isfinite(interval["low"]) else f"{value} (no interval)"


def _whole(rows: list[dict[str, Any]], scope: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == "all" and row["scope"] == scope]


def _accuracy(row: dict[str, Any]) -> list[str]:
    ties = f"{row['tie_rate']:.3f}"
    return [*(_bounded(row[key], 0.01, ".1f") for key in ("accuracy", "matched")), ties]
