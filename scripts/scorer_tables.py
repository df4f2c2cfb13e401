"""The tables of docs/scorers.md."""

from tables import load, table


def scorer_cost() -> str:
    """What scores add to the plain forward pass, and the bar for stable rank alone."""
    rows = []
    for cell in load("scorer_cost")["cells"]:
        for arm, added in cell["added"].items():
            interval = f"{_percent(added['low'])} to {_percent(added['high'])}"
            bar = f"at most {100 * cell['goal']:.0f} %" if arm == "stable rank" else ""
            rows.append([f"`{cell['model']}`", cell["dtype"], arm, _percent(added["value"]), interval, bar])
    return table("model | dtype | scores | added to the pass | 95 % interval | bar", rows)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
