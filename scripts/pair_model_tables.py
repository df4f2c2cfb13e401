"""The table of docs/scorers-judges.md about the learned reward model."""

from typing import Any

from tables import load, table


def pair_model() -> str:
    found = load("pair_model")["accuracy"]
    rows = [
        ["all", "this model", *_cells(found["all_model"])],
        ["all", "the longer one", *_cells(found["all_longer"])],
        ["of equally long texts", "this model", *_cells(found["matched_model"])],
    ]
    return table("pairs | preferred by | accuracy (95 %) | problems", rows)


def _cells(interval: dict[str, Any]) -> list[str]:
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return [f"{value:.1f} % ({low:.1f} to {high:.1f})", str(interval["problems"])]
