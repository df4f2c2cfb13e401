"""The tables of docs/scorers-judges.md that hold stable rank against judges that are the model itself."""

from typing import Any

from tables import load, table

Row = dict[str, Any]


def self_judge_gap(machine: str = "") -> str:
    """Every self-score and control, and stable rank less it."""
    rows = [
        [
            *(_model(one), one["set"], row["score"], f"{row['pairs']} of {one['pairs']}"),
            *(_percent(row["accuracy"]), _share(row["ties"]), _percent(row["matched"])),
            *(_gap(row["gaps"], scope) for scope in ("response", "all")),
        ]
        for one in _sets(machine)
        for row in one["rows"]
    ]
    return table(
        "model | pairs from | score | pairs scored | accuracy (95 %) | ties | at matched length (95 %) "
        "| stable rank (response) less it, points | stable rank (all) less it, points",
        rows,
    )


def self_judge_left_out(machine: str = "") -> str:
    """Judges that a model could not be, and why."""
    rows = [
        [_model(one), one["set"], name, str(one["context"]), _sentence(why)]
        for one in _sets(machine)
        for name, why in one["left_out"].items()
    ]
    return table("model | pairs from | judge | context, tokens | why not", rows)


def _sets(machine: str) -> list[Row]:
    found: list[Row] = load("self_judge_gap" + (f"_{machine}" if machine else ""))["sets"]
    return sorted(found, key=lambda one: one["parameters"])


def _model(one: Row) -> str:
    size = one["parameters"]
    return f"`{one['model']}`, {size / 1e9:.1f} B" if size >= 1e9 else f"`{one['model']}`, {size / 1e6:.3g} M"


def _sentence(why: str) -> str:
    return why.replace("|", "\\|").removesuffix(".")


def _gap(gaps: dict[str, Row], scope: str) -> str:
    if not gaps:
        return ""
    matched = _points(gaps[scope]["matched"])
    return f"{_points(gaps[scope]['plain'])}; matched {matched or 'not defined'}"


def _points(interval: Row) -> str:
    if None in (interval["value"], interval["low"]):
        return ""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _percent(interval: Row) -> str:
    if None in (interval["value"], interval["low"]):
        return "not defined"
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
