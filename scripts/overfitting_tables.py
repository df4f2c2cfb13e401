"""Tables of docs/overfitting.md that come from benchmarks."""

from typing import Any

from tables import load, table

PARTS = ("judged", "shifted")
READS = {
    "value": "{}",
    "ratio": "{} over its first value",
    "fall": "fall from its largest",
    "rise": "rise from its least",
}


def detector(objective: str) -> str:
    """What each rule lost, with the part it was chosen on beside those that judge."""
    found = load("overfitting_detector")
    parts = [_part(found, part, objective) for part in PARTS]
    rules = found["rules"][objective]
    rows = []
    for line in zip(*(part["rows"] for part in parts), strict=True):
        name = line[0]["chooser"]
        rule = rules.get(name)
        rows.append(
            [
                *(f"`{name}`" if rule else name, _said(rule) if rule else "", f"{rule['regret']:.2f}" if rule else ""),
                *(_interval(row["regret"]) for row in line),
                *("" if name == "step" else _interval(row["over"]["step"], "+") for row in line),
            ]
        )
    return table("rule | stops where | chosen | judged | shifted | judged, less step | shifted, less step", rows)


def one_checkpoint() -> str:
    """How well the last value of a signal ranks overfitted runs above others."""
    found = load("overfitting_detector")
    asked = [(part, objective) for objective in found["rules"] for part in PARTS]
    columns = [{row["signal"]: row for row in _part(found, *one)["one_checkpoint"]} for one in asked]
    signals = dict.fromkeys(signal for column in columns for signal in column)
    rows = [[f"`{signal}`", *(_auc(column.get(signal)) for column in columns)] for signal in signals]
    return table(" | ".join(["last value of", *(f"{objective}, {part}" for part, objective in asked)]), rows)


def directions(claim: str) -> str:
    rows = [
        [
            row["measure"],
            "" if row["k"] is None else str(row["k"]),
            row["arm"],
            _interval(row["estimate"], "+", 3),
            _null(row),
        ]
        for row in load("update_directions")["rows"]
        if row["claim"].split()[0] == claim
    ]
    return table("measure | K | of | estimate (95 %) | random", rows)


def gradient_lags(objective: str) -> str:
    """Steps by which a gradient quantity moves before another."""
    rows = [
        [f"`{row['gradient']}`", f"`{row['other']}`", _interval({**row, "value": row["lead"]}, "+", 1)]
        for row in load("gradient_panel")[objective]["lags"]
    ]
    return table("gradient quantity | before | steps (95 %)", rows)


def gradient_course(objective: str) -> str:
    """Means over seeds at some checkpoints."""
    runs = load("gradient_panel")[objective]["runs"]
    columns = [name for name in runs[0][0] if name != "step"]
    rows = [
        [f"{points[0]['step']}", *(f"{sum(point[name] for point in points) / len(points):.3g}" for name in columns)]
        for points in zip(*runs, strict=True)
    ]
    return table(" | ".join(["step", *(f"`{name}`" for name in columns)]), rows)


def rank_one_gradients() -> str:
    """Means over seeds with Student's interval."""
    measures = {"held_out_rise": "+", "rank_at_best": "", "rank_at_end": "", "trend_after": "+"}
    rows = [
        [
            f"{row['objective']}, {row['arm']}",
            *(_interval(found, measures[name]) if found else "" for name, found in row["measures"].items()),
        ]
        for row in load("rank_one_gradients")["rows"]
    ]
    head = "gradients | rise of the held-out loss | rank of update at the best | at the end | trend after"
    return table(head, rows)


def _part(found: dict[str, Any], part: str, objective: str) -> dict[str, Any]:
    return next(one for one in found["parts"] if (one["part"], one["objective"]) == (part, objective))


def _said(rule: dict[str, Any]) -> str:
    held = "" if rule["patience"] == 1 else f", {rule['patience']} times"
    return f"{READS[rule['reading']].format('value')} {rule['direction']} {rule['threshold']:.3g}{held}"


def _null(row: dict[str, Any]) -> str:
    found = "" if row["null"] is None else f"{row['null']:.3f}"
    return f"{found} (ten bases: at most {row['tau']:.3f})" if "tau" in row else found


def _auc(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['auc']:.2f} (p = {row['p']:.2g})"


def _interval(found: dict[str, float], sign: str = "", digits: int = 2) -> str:
    return "{:{f}} ({:{f}} to {:{f}})".format(*(found[key] for key in ("value", "low", "high")), f=f"{sign}.{digits}f")
