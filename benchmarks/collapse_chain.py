"""In which order do the links of a collapse come? `python benchmarks/collapse_chain.py [SETTING ...]`

Reads the traces of runs in ``benchmarks/results/traces`` (all settings without names), takes those that collapsed, and
finds the onset of each link by the locked rules of `stablerank.dynamics.chain`: who has which link, lags, order and its
test, and the same order under rules half and twice as strict. Beside it, what the rules themselves are worth: their
errors on simulated signals with a known change, and false onsets on stationary noise. No training, no model.
"""

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from common import print_table, write_results
from scipy.signal import lfilter
from scipy.stats import binomtest
from traces import Trace, traces

from stablerank.dynamics.chain import (
    ANSWER,
    FALL,
    LINKS,
    SPIKE,
    Chain,
    Link,
    chain_of,
    collapse_step,
    lags,
    precedence,
    s4_events,
    told,
)
from stablerank.dynamics.onsets import Falls, Rule, onset

STRICTNESS = {"half": 0.5, "locked": 1.0, "twice": 2.0}
SIMULATIONS = 400
STEP_S = np.arange(1, 101)
Array = np.ndarray[Any, Any]


# --- recorded runs -----------------------------------------------------------------------------------------------


def run_row(trace: Trace, chain: Chain) -> dict[str, Any]:
    return {
        "setting": trace.setting,
        "seed": trace.seed,
        "kind": chain.kind,
        "order": chain.order,
        "onsets": {name: asdict(one) for name, one in chain.onsets.items()},
        "absent": chain.absent,
        "unrecorded": chain.unrecorded,
        "length": {key: finite(value) for key, value in asdict(chain.length).items()},
        "events": s4_events(trace.signals, trace.curve),
        "told": told(chain),
    }


def link_rows(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """How many runs have each link, and when: median, first and last step by which it was there."""
    rows = []
    for link in LINKS:
        steps = [chain.onsets[link.name].upper for chain in chains if link.name in chain.onsets]
        recorded = sum(link.name not in chain.unrecorded for chain in chains)
        spread = [float(of(steps)) for of in (np.median, min, max)] if steps else [None] * 3
        rows.append({"link": link.name, "runs": len(steps), "recorded": recorded, "steps": spread})
    return rows


def event_rows(found: Sequence[dict[str, int]]) -> list[dict[str, Any]]:
    """S4's three events, as S4 tells them: mean, first and last step."""
    names = dict.fromkeys(name for events in found for name in events)
    steps = {name: [events[name] for events in found if name in events] for name in names}
    return [
        {"event": name, "runs": len(at), "steps": [float(np.mean(at)), min(at), max(at)]} for name, at in steps.items()
    ]


def order_row(chains: Sequence[Chain]) -> dict[str, Any]:
    order = precedence(chains)
    pairs = [{**asdict(pair), "share": pair.share} for pair in order.pairs]
    counts = {name: getattr(order, name) for name in ("kept", "tied", "broken", "p_value")}
    whole = [chain for chain in chains if chain.whole]
    return {**counts, "whole": len(whole), "whole_kept": sum(one.order == "kept" for one in whole), "pairs": pairs}


def stricter(factor: float) -> tuple[Link, ...]:
    """The links under rules that ask for ``factor`` times the change; the collapse stays what it is."""
    return tuple(link if link is FALL else replace(link, rule=scaled(link.rule, factor)) for link in LINKS)


def scaled(rule: Rule, factor: float) -> Rule:
    deviations = factor * rule.deviations
    if isinstance(rule, Falls):
        return replace(rule, level=rule.level**factor, deviations=deviations)
    return replace(rule, share=factor * rule.share, change=factor * rule.change, deviations=deviations)


# --- simulated signals -------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[Rule, Callable[[int], Array]]] = {
    "jump to twice": (SPIKE.rule, lambda change: np.where(change <= STEP_S, 2.0, 1.0)),
    "ramp to three times in 20 steps": (SPIKE.rule, lambda change: np.interp(STEP_S, [change, change + 20], [1, 3])),
    "drop to 0.4": (ANSWER.rule, lambda change: np.where(change <= STEP_S, 0.4, 1.0)),
}


def rule_rows() -> list[dict[str, Any]]:
    cases = [(shape, noise, rho) for shape in SHAPES for noise in (0.1, 0.3) for rho in (0.0, 0.5, 0.8)]
    return [rule_row(*case, np.random.default_rng(place)) for place, case in enumerate(cases)]


def rule_row(shape: str, noise: float, correlation: float, rng: np.random.Generator) -> dict[str, Any]:
    """Errors (onset less true change) of signals that change once, and onsets of signals that do not."""
    rule, values = SHAPES[shape]
    changes = rng.integers(15, 75, SIMULATIONS)
    found = [onset(STEP_S, values(at) * noisy(noise, correlation, rng), rule) for at in changes]
    errors = [one.upper - int(at) for one, at in zip(found, changes, strict=True) if one is not None]
    false = sum(onset(STEP_S, noisy(noise, correlation, rng), rule) is not None for _ in range(SIMULATIONS))
    interval = binomtest(false, SIMULATIONS).proportion_ci(method="wilson")
    return {
        "shape": shape,
        "noise": noise,
        "correlation": correlation,
        "missed": 1 - len(errors) / SIMULATIONS,
        "errors": np.percentile(errors, [5, 50, 95]).tolist(),
        "false": {"value": false / SIMULATIONS, "low": interval.low, "high": interval.high},
    }


def noisy(deviation: float, correlation: float, rng: np.random.Generator) -> Array:
    """One, and stationary Gaussian noise about it."""
    innovations = deviation * np.sqrt(1 - correlation**2) * rng.normal(size=STEP_S.size + 50)
    return 1 + lfilter([1], [1, -correlation], innovations)[50:]


# --- tables ------------------------------------------------------------------------------------------------------


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def spread(steps: Sequence[float | None]) -> str:
    middle, first, last = steps
    return "" if middle is None else f"{middle:.0f} ({first:.0f} to {last:.0f})"


def print_runs(results: dict[str, Any]) -> None:
    print_table(
        "links of the collapsed runs: median step (first to last)",
        ("link", "runs", "recorded", "step"),
        [[row["link"], str(row["runs"]), str(row["recorded"]), spread(row["steps"])] for row in results["links"]],
    )
    print_table(
        "S4's events: mean step (first to last)",
        ("event", "runs", "step"),
        [[row["event"], str(row["runs"]), spread(row["steps"])] for row in results["events"]],
    )
    print_table(
        "steps from link to link: median (95 %)",
        ("from", "to", "runs", "lag"),
        [[row["first"], row["second"], str(row["runs"]), lag(row)] for row in results["lags"]],
    )


def print_order(results: dict[str, Any]) -> None:
    print_table(
        "who comes first",
        ("first", "second", "runs", "before", "after", "p", "Holm"),
        [
            [*(str(row[key]) for key in ("first", "second", "runs", "before", "after")), *p_values(row)]
            for row in results["pairs"]
            if row["before"] >= row["after"]
        ],
    )
    print_table(
        "runs by order, rules as strict",
        ("rules", "kept", "tied", "broken", "p", "whole", "whole and kept"),
        [
            [name, *(f"{row[key]:.4g}" for key in ("kept", "tied", "broken", "p_value", "whole", "whole_kept"))]
            for name, row in results["order"].items()
        ],
    )


def print_rules(results: dict[str, Any]) -> None:
    print_table(
        "the rules on simulated signals: error in steps (5 % to 95 %), onsets of stationary noise",
        ("change", "noise", "lag-1 correlation", "missed", "error", "false"),
        [
            [
                row["shape"],
                *(f"{row[key]:.2g}" for key in ("noise", "correlation", "missed")),
                "{1:.0f} ({0:.0f} to {2:.0f})".format(*row["errors"]),
                "{value:.3f} ({low:.3f} to {high:.3f})".format(**row["false"]),
            ]
            for row in results["rules"]
        ],
    )


def lag(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['median']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"


def p_values(row: dict[str, Any]) -> list[str]:
    return [f"{row[key]:.2g}" for key in ("p_value", "holm")]


def analysed(every: Sequence[Trace]) -> dict[str, Any]:
    collapsed = [trace for trace in every if collapse_step(trace.curve) is not None]
    chains = [chain_of(trace.signals, trace.curve) for trace in collapsed]
    runs = [run_row(trace, chain) for trace, chain in zip(collapsed, chains, strict=True)]
    strictness = {
        name: order_row([chain_of(trace.signals, trace.curve, stricter(factor)) for trace in collapsed])
        for name, factor in STRICTNESS.items()
    }
    return {
        "recorded": len(every),
        "runs": runs,
        "links": link_rows(chains),
        "events": event_rows([run["events"] for run in runs]),
        "lags": [{key: finite(value) for key, value in asdict(one).items()} for one in lags(chains)],
        "pairs": strictness["locked"]["pairs"],
        "order": {name: {k: v for k, v in row.items() if k != "pairs"} for name, row in strictness.items()},
        "rules": rule_rows(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="all recorded ones without names")
    arguments = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage in every call
    results = analysed(list(traces(*arguments.settings)))
    for run in results["runs"]:
        print(f"{run['setting']} {run['seed']}: {run['told']}")
    for show in (print_runs, print_order, print_rules):
        show(results)
    locked = {link.name: {"signal": link.signal, **asdict(link.rule)} for link in LINKS}
    write_results("collapse_chain", {"settings": arguments.settings, "rules": locked}, results)


if __name__ == "__main__":
    main()
