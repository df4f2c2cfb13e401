"""What a table of geometry rows says, in plain words: each finding with the rule that made it and what it cannot know.

Contract: pure functions of the rows, no files, no random numbers; the same rows give the same findings in the same
order. A number is only used under a status that vouches for it: ``exact``, ``certified`` and ``open`` rows count with
their whole interval (a threshold is passed when every value of the interval passes it), ``estimated`` rows with their
value, and only for metrics that have no interval. Nothing is said when there is nothing to say.

Rows are grouped by module type: matrices of one name in different layers, and the experts of one layer, are one group.
Updates that storage rounding dominates are named once and then left out of every rule about the shape of an update.

Rounding of merged checkpoints: a rank-1 update of relative size 1e-4 read back from bf16 has stable rank 8.8, not 1.
Robust z-score: Iglewicz & Hoaglin (1993). Tail exponents: WeightWatcher (Martin & Mahoney), whose reading is contested.

Left out on purpose: verdicts on the quality of a model, and corrections for testing many matrices; the caveats say so.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from stablerank.runs.geometry_rows import GeometryRow

Severity = Literal["problem", "warning", "note"]
Rows = Sequence[GeometryRow]

CONCENTRATED = 0.5
"""Share of the null's low end below which an update counts as concentrated."""
RANK_ONE = 1.5
"""Stable rank below which a concentrated update is called rank-1-like."""
LEAST_REPRESENTABLE = 0.5
"""Share of an update that its storage must be able to hold."""
FEWEST_LAYERS = 8
"""Layers of one module type that a comparison between layers needs."""
OUTLYING_Z = 3.5
OUTLYING_FACTOR = 1.5
MAD_TO_SIGMA = 1.4826
"""Turns the median absolute deviation of a normal sample into its standard deviation."""
TAIL_RANGE = (2.0, 6.0)
MOST_PLACES = 6
"""Module types that one sentence lists."""

BOUNDED = ("exact", "certified", "open")
"""Statuses whose interval holds the truth."""
VALUED = (*BOUNDED, "estimated")
"""Statuses with a value."""


@dataclass(frozen=True)
class Finding:
    """One sentence about the rows, the rule behind it with its thresholds, and what it does not show."""

    sentence: str
    rule: str
    caveat: str
    severity: Severity


def diagnose(rows: Rows) -> list[Finding]:
    """Every finding of every rule, problems first; empty when there is nothing to say."""
    noisy = {(row.layer, row.module) for row in rows if _is_rounding_noise(row)}
    names = short_names(row.module for row in rows)
    named = [replace(row, module=names[module_type(row.module)]) for row in rows]
    trusted = [new for new, row in zip(named, rows, strict=True) if (row.layer, row.module) not in noisy]
    found = [finding for rule in ON_EVERY_ROW for finding in rule(named)]
    found += [finding for rule in ON_TRUSTED_ROWS for finding in rule(trusted)]
    return sorted(found, key=lambda finding: ("problem", "warning", "note").index(finding.severity))


def module_type(module: str) -> str:
    """The module's path with every number in it replaced by ``*``: all experts of a layer are one type."""
    return re.sub(r"(?<![^.\[])\d+(?![^.\]])", "*", module)


def short_names(modules: Iterable[str]) -> dict[str, str]:
    """For each module type the shortest end of its path that no other type shares: ``self_attn.q_proj``: ``q_proj``."""
    types = list(dict.fromkeys(map(module_type, modules)))
    ends: dict[str, set[str]] = {}
    for name in types:
        for end in _suffixes(name):
            ends.setdefault(end, set()).add(name)
    return {name: next(end for end in _suffixes(name) if ends[end] == {name} or end == name) for name in types}


def layer_ranges(layers: Iterable[int]) -> str:
    """Layers as people write them: ``3-7, 9``."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def three_digits(value: float) -> str:
    """Three significant digits, and every digit of the whole part: ``1.00``, ``13.4``, ``4096``."""
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def non_finite(rows: Rows) -> list[Finding]:
    """Tensors that hold NaN or infinity."""
    return _listed(
        [row for row in rows if row.status == "non_finite"],
        "NaN or infinite entries: {places}.",
        "Any entry of the matrix is NaN or infinite; nothing is measured on such a matrix.",
        "The entry may have come from the training, the merge or the file: compare it with an earlier checkpoint.",
        "problem",
    )


def unchanged(rows: Rows) -> list[Finding]:
    """Updates that are exactly zero."""
    return _listed(
        [row for row in rows if row.status == "zero" and row.kind == "update"],
        "Did not change at all: {places}.",
        "The update is zero, or too small to be told from zero in the arithmetic of the measurement.",
        "Right for frozen modules and for an adapter before its first step; a surprise anywhere else.",
        "warning",
    )


def all_zero(rows: Rows) -> list[Finding]:
    """Weights that are exactly zero."""
    return _listed(
        [row for row in rows if row.status == "zero" and row.kind == "weight"],
        "All entries are zero: {places}.",
        "The weight is zero, or too small to be told from zero in the arithmetic of the measurement.",
        "Some architectures start output projections at zero; after training it means that nothing passes through.",
        "warning",
    )


def rounding_noise(rows: Rows) -> list[Finding]:
    """Updates smaller than the step of the dtype that their checkpoint is stored in."""
    noisy = [row for row in rows if _is_rounding_noise(row)]
    return _listed(
        noisy,
        "Storage rounding dominates the update (representable fraction {span}), so its other numbers describe "
        "rounding, not training: {places}.",
        f"The representable fraction is below {LEAST_REPRESENTABLE}.",
        "Measure the adapter's factors or checkpoints in fp32 instead; a merged 16-bit checkpoint has lost the "
        "update. Findings about the shape of updates leave these out.",
        "warning",
    )


def not_closed(rows: Rows) -> list[Finding]:
    """Estimates whose interval stayed wider than was asked for."""
    return _listed(
        [row for row in rows if row.status == "open"],
        "The interval holds, but it is wider than asked for: {places}.",
        "The solver ran out of passes before the interval was as narrow as the relative tolerance.",
        "Use both ends of the interval and not the value, or measure again with a larger tolerance.",
        "warning",
    )


def concentrated(rows: Rows) -> list[Finding]:
    """Updates that use far fewer directions than random updates of their structure."""
    rule = (
        f"The stable rank's upper bound is below {CONCENTRATED} times the low end of its null; "
        f"rank-1-like: also below {RANK_ONE}."
    )
    caveat = (
        "Few directions are not a fault by themselves: gradients are low-rank early in training, and a high learning "
        "rate, a small data set and a learnt single feature read alike."
    )
    low = [row for row in _ranks(rows, "update") if row.upper < CONCENTRATED * row.null_low]
    return [
        Finding(
            f"{module} updates {verb} (stable rank {_span(members)}){_in_layers(members)}; "
            f"{_random(members[0])} would give {_null(members)}.",
            rule,
            caveat,
            "note",
        )
        for verb, chosen in (
            ("are rank-1-like", [row for row in low if row.upper < RANK_ONE]),
            ("are concentrated in few directions", [row for row in low if row.upper >= RANK_ONE]),
        )
        for module, members in _by_module(chosen)
    ]


def like_noise(rows: Rows) -> list[Finding]:
    """Updates that the stable rank cannot tell from random ones."""
    return [
        Finding(
            f"{module} updates look like random noise of their structure (stable rank {_span(members)})"
            f"{_in_layers(members)}; {_random(members[0])} would give {_null(members)}.",
            "The whole interval of the stable rank lies inside the central 95 % of its null.",
            "An update that was learnt can have the same number, and of many matrices some always do: one matrix "
            "alone is weak evidence.",
            "note",
        )
        for module, members in _by_module(row for row in _ranks(rows, "update") if _inside_null(row))
    ]


def like_untrained(rows: Rows) -> list[Finding]:
    """Weights that the stable rank cannot tell from a Gaussian matrix."""
    return [
        Finding(
            f"{module} weights look untrained (stable rank {_span(members)}){_in_layers(members)}; "
            f"{_random(members[0])} would give {_null(members)}.",
            "The whole interval of the stable rank lies inside the central 95 % of its null.",
            "One number cannot prove it: a trained matrix without a leading direction reads the same, and an initial "
            "matrix that is not Gaussian (orthogonal, scaled by rows) does not.",
            "note",
        )
        for module, members in _by_module(row for row in _ranks(rows, "weight") if _inside_null(row))
    ]


def standing_out(rows: Rows) -> list[Finding]:
    """Weights unlike the same module in other layers."""
    found = []
    for module, members in _by_module(row for row in _ranks(rows, "weight") if row.layer is not None):
        outlying = _outlying(members)
        if outlying:
            typical = three_digits(median(row.value for row in members))
            found.append(
                Finding(
                    f"{module} weights stand out{_in_layers(outlying)} (stable rank {_span(outlying)}); "
                    f"the median of {len({row.layer for row in members})} layers is {typical}.",
                    f"At least {OUTLYING_Z} robust standard deviations ({MAD_TO_SIGMA} times the median absolute "
                    f"deviation of the logarithm) and a factor of {OUTLYING_FACTOR} from the module type's median, "
                    f"over at least {FEWEST_LAYERS} layers.",
                    "The first and the last layers often differ because of where they are; no trend over depth is "
                    "taken out.",
                    "note",
                )
            )
    return found


def heavy_tails(rows: Rows) -> list[Finding]:
    """Tail exponents outside the range that WeightWatcher calls healthy."""
    low, high = TAIL_RANGE
    fitted = [row for row in rows if row.metric == "tail_exponent" and row.status in VALUED]
    return [
        Finding(
            f"{module} has a tail exponent {word} ({_span(members)}){_in_layers(members)}.",
            f"The power-law exponent fitted to the eigenvalue tail is outside {low:g} to {high:g}.",
            "Contested: WeightWatcher reads below 2 as over-trained and above 6 as under-trained, but users saw the "
            "exponent rise while benchmarks kept improving (WeightWatcher issue 307). A fit has no interval, and a "
            "random matrix gets an exponent too.",
            "note",
        )
        for word, chosen in (
            (f"below {low:g}", [row for row in fitted if _interval(row)[1] < low]),
            (f"above {high:g}", [row for row in fitted if _interval(row)[0] > high]),
        )
        for module, members in _by_module(chosen)
    ]


def principal_directions(rows: Rows) -> list[Finding]:
    """Where updates lie relative to the weight's leading singular directions."""
    measured = [row for row in rows if row.metric == "head_energy" and row.kind == "update" and row.status in VALUED]
    above = [row for row in measured if _interval(row)[0] > row.null_high]
    below = [row for row in measured if _interval(row)[1] < row.null_low]
    inside = [row for row in measured if _inside_null(row)]
    return [
        Finding(
            f"{module} updates {verb} (head energy {_span(members)}){_in_layers(members)}; "
            f"a random update would give {_null(members)}.",
            "The head energy (share of the update's energy in the weight's leading right singular directions), with "
            f"its interval where it has one, lies {where} the central 95 % of its null.",
            "A random update has 1 - k/n of its energy off-principal too, which is 94 to 96 % in common settings: "
            "only what beats that null shows a choice of directions.",
            "note",
        )
        for verb, where, chosen in (
            ("lie in the weight's principal directions", "above", above),
            ("are as off-principal as random ones", "inside", inside),
            ("avoid the weight's principal directions", "below", below),
        )
        for module, members in _by_module(chosen)
    ]


Rule = Callable[[Rows], list[Finding]]

ON_EVERY_ROW: tuple[Rule, ...] = (non_finite, rounding_noise, unchanged, all_zero, not_closed)
ON_TRUSTED_ROWS: tuple[Rule, ...] = (
    concentrated,
    like_noise,
    principal_directions,
    like_untrained,
    standing_out,
    heavy_tails,
)
"""Rules about the shape of a spectrum, which mean nothing on rounding noise."""


def _ranks(rows: Rows, kind: str) -> list[GeometryRow]:
    """Stable ranks with an interval; where the null is 1, as for rank-1 factors, every matrix agrees with it."""
    return [
        row
        for row in rows
        if row.metric == "stable_rank" and row.kind == kind and row.status in BOUNDED and not row.null_high <= 1 + 1e-6
    ]


def _is_rounding_noise(row: GeometryRow) -> bool:
    known = row.metric == "representable_fraction" and row.status in VALUED
    return known and _interval(row)[1] < LEAST_REPRESENTABLE


def _inside_null(row: GeometryRow) -> bool:
    lower, upper = _interval(row)
    return row.null_low <= lower and upper <= row.null_high


def _outlying(members: Rows) -> list[GeometryRow]:
    if len({row.layer for row in members}) < FEWEST_LAYERS:
        return []
    logs = [math.log(row.value) for row in members]
    centre = median(logs)
    sigma = MAD_TO_SIGMA * median(abs(log - centre) for log in logs)
    least = max(OUTLYING_Z * sigma, math.log(OUTLYING_FACTOR))
    return [row for row in members if max(math.log(row.lower) - centre, centre - math.log(row.upper)) >= least]


def _listed(rows: Rows, sentence: str, rule: str, caveat: str, severity: Severity) -> list[Finding]:
    """One finding that lists the places of all ``rows``; none without rows."""
    if not rows:
        return []
    groups = _by_module(rows)
    places = [f"{module}{_in_layers(members)}" for module, members in groups[:MOST_PLACES]]
    more = [f"and {len(groups) - MOST_PLACES} other module types"] if len(groups) > MOST_PLACES else []
    filled = sentence.replace("{span}", _span(rows)).replace("{places}", "; ".join(places + more))
    return [Finding(filled, rule, caveat, severity)]


def _by_module(rows: Iterable[GeometryRow]) -> list[tuple[str, list[GeometryRow]]]:
    groups: dict[str, list[GeometryRow]] = {}
    for row in rows:
        groups.setdefault(row.module, []).append(row)
    return list(groups.items())


def _in_layers(rows: Rows) -> str:
    layers = {row.layer for row in rows if row.layer is not None}
    return f" in layer{'s' if len(layers) > 1 else ''} {layer_ranges(layers)}" if layers else ""


def _suffixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def _interval(row: GeometryRow) -> tuple[float, float]:
    """The interval, or the value twice where there is none."""
    return (row.value, row.value) if math.isnan(row.lower) else (row.lower, row.upper)


def _span(rows: Rows) -> str:
    return _range(min(row.value for row in rows), max(row.value for row in rows))


def _null(rows: Rows) -> str:
    band = _range(min(row.null_low for row in rows), max(row.null_high for row in rows))
    return f"{three_digits(median(row.null for row in rows))} (null {band})"


def _random(row: GeometryRow) -> str:
    structures = {"gaussian_factors": "random factors of the same rank", "gaussian_matrix": "a random matrix"}
    return structures.get(row.null_kind, "random matrices of their structure")


def _range(low: float, high: float) -> str:
    first, last = three_digits(low), three_digits(high)
    return first if first == last else f"{first} to {last}"
