"""Can spectra tell when to stop? Rules chosen on some runs and judged on others.

    python benchmarks/overfitting_runs.py              records the runs
    python benchmarks/overfitting_detector.py choose   writes src/stablerank/dynamics/stop_rules.json
    python benchmarks/overfitting_detector.py judge    writes benchmarks/results/overfitting_detector.json

A rule reads one signal (dynamics/stopping.py). For each signal and objective the reading, side, threshold and patience
with the least mean regret over the runs of the part ``chosen``; of equals the first, so the simpler one. Regret is read
on the half of the validation texts that no rule sees. ``judged`` are fresh seeds of the same settings, ``shifted``
other texts, some settings of each. Beside the rules: never to stop; and the checkpoint of the lowest held-out loss,
which a run must be finished, and all its checkpoints kept, to know.

A spectral rule *helps* where its regret is below that of every rule that needs no held-out answers either (`PLAIN`),
each difference with its 95 % interval below zero. Intervals resample settings: seeds of one are alike.

``one checkpoint``: can the last value of a signal tell runs that have overfitted (regret of never stopping at least
`OVERFITTED`) from those that have not? Area under the ROC curve; 0.5 says nothing.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any

import numpy as np
from common import print_table, write_results
from overfitting_runs import recorded
from scipy.stats import mannwhitneyu

from stablerank.dynamics.overfitting_signals import RANKS, SIGNALS
from stablerank.dynamics.stopping import RULES, Direction, Reading, StopRule, readings, recorded_rules, regret, rule_of
from stablerank.runs.atomic import write_json

Readings = tuple[tuple[Reading, Direction], ...]
OBJECTIVES = ("clm", "dpo")
RANK: Readings = (("ratio", "below"), ("ratio", "above"), ("fall", "above"), ("rise", "above"))
READINGS: dict[str, Readings] = {
    "step": (("value", "above"),),
    "held_out": (("rise", "above"),),
    "train": (("ratio", "below"),),
    "kl": (("value", "above"),),
    "grad_norm": RANK,
    "update_rank": RANK,
    "update_norm": (("ratio", "above"),),
    "effect_rank": RANK,
    "effect_norm": (("value", "above"),),
}
"""Only what can mean the same on another model: no plain losses, ranks or norms."""
PATIENCE = (1, 2, 3)
THRESHOLDS = 60
"""At most so many of each reading, evenly spread over what was read."""
OVERFITTED = 0.25
DRAWS = 4000
PLAIN = ("never", "step", "train", "grad_norm", "update_norm", "kl")
"""What a practitioner has without held-out answers, and without a spectrum."""
OTHERS = ("never", "step", "held_out")
"""Compared with in print."""
Run = Mapping[str, Any]


def runs_of(part: str, objective: str) -> list[Run]:
    return [run for run in recorded().values() if run["part"] == part and run["setting"].startswith(objective)]


def regret_of(rule: StopRule, run: Run) -> float:
    return regret([row["judge"] for row in run["rows"]], rule.stops_at(run["rows"]))


def never(run: Run) -> float:
    return regret([row["judge"] for row in run["rows"]], None)


def best_checkpoint(run: Run) -> float:
    """Keep every checkpoint, and take that of the lowest held-out loss on the half that rules see."""
    return regret([row["judge"] for row in run["rows"]], int(np.argmin([row["held_out"] for row in run["rows"]])))


# --- choose -------------------------------------------------------------------------------------------------------


def candidates(signal: str, runs: Sequence[Run]) -> Iterable[StopRule]:
    for reading, side in READINGS[signal]:
        read = np.concatenate([readings(signal, reading, run["rows"]) for run in runs])
        known = np.unique(read[np.isfinite(read)])
        middles = (known[1:] + known[:-1]) / 2
        places = np.unique(np.linspace(0, len(middles) - 1, THRESHOLDS).astype(int)) if len(middles) else []
        for patience in PATIENCE:
            yield from (StopRule(signal, reading, side, float(f"{middles[at]:.5g}"), patience) for at in places)


def chosen(signal: str, runs: Sequence[Run]) -> StopRule:
    found = [(float(np.nanmean([regret_of(rule, run) for run in runs])), rule) for rule in candidates(signal, runs)]
    return min(found, key=lambda one: one[0])[1]


def choose() -> None:
    rules: dict[str, Any] = {}
    for objective in OBJECTIVES:
        runs = runs_of("chosen", objective)
        rules[objective] = {}
        for signal in SIGNALS:
            rule = chosen(signal, runs)
            lost = float(np.nanmean([regret_of(rule, run) for run in runs]))
            rules[objective][signal] = {
                **{"reading": rule.reading, "direction": rule.direction, "threshold": rule.threshold},
                **{"patience": rule.patience, "regret": round(lost, 4)},
            }
            print(objective, signal, rules[objective][signal], flush=True)
    names = sorted(name for name, run in recorded().items() if run["part"] == "chosen")
    note = "chosen by benchmarks/overfitting_detector.py on benchmarks/results/overfitting_traces.json"
    write_json(RULES, {"origin": {"note": note, "date": str(date.today()), "runs": names}, "rules": rules})


# --- judge --------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float], settings: Sequence[str]) -> dict[str, float]:
    """Mean and its percentile bootstrap, settings resampled whole."""
    known = [(setting, value) for setting, value in zip(settings, values, strict=True) if np.isfinite(value)]
    by_setting = [[value for setting, value in known if setting == name] for name in dict.fromkeys(settings)]
    sums, counts = np.array([sum(one) for one in by_setting]), np.array([len(one) for one in by_setting])
    draw_DS = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means_D = sums[draw_DS].sum(1) / counts[draw_DS].sum(1)
    low, high = np.quantile(means_D, (0.025, 0.975))
    return {"value": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def judged(part: str, objective: str) -> dict[str, Any]:
    runs = runs_of(part, objective)
    settings = [run["setting"] for run in runs]
    choosers: dict[str, Callable[[Run], float]] = {"never": never, "best checkpoint": best_checkpoint}
    choosers |= {signal: partial(regret_of, rule_of(objective, signal)) for signal in SIGNALS}
    lost = {name: [of(run) for run in runs] for name, of in choosers.items()}
    rows = []
    for name, values in lost.items():
        over = {
            other: interval([a - b for a, b in zip(values, lost[other], strict=True)], settings)
            for other in (*PLAIN, "held_out")
            if other != name
        }
        stops = None if name not in SIGNALS else [rule_of(objective, name).stops_at(run["rows"]) for run in runs]
        rows.append(
            {
                **{"chooser": name, "regret": interval(values, settings), "over": over},
                "stopped": None if stops is None else sum(stop is not None for stop in stops),
            }
        )
    helps = {
        row["chooser"]: all(row["over"][other]["high"] < 0 for other in PLAIN)
        for row in rows
        if row["chooser"] in RANKS
    }
    return {
        **{"part": part, "objective": objective, "runs": len(runs), "settings": len(set(settings))},
        **{"overfitted": sum(never(run) >= OVERFITTED for run in runs), "rows": rows, "helps": helps},
        "one_checkpoint": one_checkpoint(runs),
    }


def one_checkpoint(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How well the last value of each signal ranks overfitted runs above others."""
    labels = np.array([never(run) >= OVERFITTED for run in runs])
    found = []
    for signal in SIGNALS[1:]:
        last = np.array([np.nan if run["rows"][-1][signal] is None else run["rows"][-1][signal] for run in runs])
        yes, no = last[labels & np.isfinite(last)], last[~labels & np.isfinite(last)]
        if len(yes) and len(no):
            test = mannwhitneyu(yes, no)
            found.append(
                {"signal": signal, "auc": float(test.statistic / (len(yes) * len(no))), "p": float(test.pvalue)}
            )
    return found


def judge() -> None:
    found = [judged(part, objective) for part in ("judged", "shifted") for objective in OBJECTIVES]
    for one in found:
        rows = [
            [
                *(row["chooser"], shown(row["regret"])),
                *(shown(row["over"][other], "+") if other in row["over"] else "" for other in OTHERS),
                "" if row["stopped"] is None else str(row["stopped"]),
            ]
            for row in one["rows"]
        ]
        counts = f"{one['runs']} runs, {one['overfitted']} overfitted"
        title = f"{one['objective']}, {one['part']}: {counts}; helps: {one['helps']}"
        print_table(title, ("rule", "regret", *(f"over {other}" for other in OTHERS), "stopped"), rows)
        print({row["signal"]: (round(row["auc"], 2), round(row["p"], 3)) for row in one["one_checkpoint"]})
    results = {"rules": recorded_rules()["rules"], "parts": found}
    write_results("overfitting_detector", {"overfitted": OVERFITTED, "draws": DRAWS}, results)


def shown(value: Mapping[str, float], sign: str = "") -> str:
    return "{:{s}.3f} ({:{s}.3f} to {:{s}.3f})".format(*(value[key] for key in ("value", "low", "high")), s=sign)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("choose", "judge"))
    {"choose": choose, "judge": judge}[parser.parse_args().stage]()


if __name__ == "__main__":
    main()
