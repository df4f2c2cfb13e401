"""The figure of `rate_distortion.py`: loss over bytes, stable rank over bits with its bounds, and over omega."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Point = dict[str, Any]
COLOURS = {"lora": "tab:blue", "dora": "tab:green", "sinelora": "tab:orange"}


def draw(results: dict[str, Any], tuned: dict[str, Any], file: Path) -> None:
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    over_bytes, over_bits, over_omega = figure.subplots(1, 3)
    points = results["points"]
    _losses(over_bytes, points)
    _ranks(over_bits, [one for one in points if one["method"] == "kmeans" and not one["cut"]])
    _omegas(over_omega, [one for one in tuned["tried"] if one["kind"] == "sinelora"])
    figure.savefig(file, dpi=110)


def _losses(axes: Axes, points: Iterable[Point]) -> None:
    for (kind, rank, cut, method), found in _grouped(points, "kind", "rank", "cut", "method").items():
        by_bits = _grouped(found, "bits")
        curve = sorted((_mean(one, "bytes"), _mean(one, "loss")) for one in by_bits.values())
        label = f"{kind} r={rank}" + (f" cut to {cut}" if cut else "") + f" {method}"
        marker = {"kmeans": "o-", "affine": "s--", "nf4": "^", "fp16": "*"}[method]
        axes.plot(*zip(*curve, strict=True), marker, color=COLOURS[kind], alpha=0.4 + rank / 16, label=label, ms=4)
    axes.set(xscale="log", yscale="log", xlabel="bytes of the file", ylabel="held-out loss (nats a token)")
    axes.legend(fontsize=5)


def _ranks(axes: Axes, points: Iterable[Point]) -> None:
    for (kind, rank), found in _grouped(points, "kind", "rank").items():
        by_bits = sorted(_grouped(found, "bits").items())
        bits = [key[0] for key, _ in by_bits]
        axes.plot(bits, [_mean(one, "stable_rank_after") for _, one in by_bits], "o-", color=COLOURS[kind], ms=4)
        known = [(key[0], one) for key, one in by_bits if all(row["upper"] is not None for row in one)]
        low, high = ([_mean(one, name) for _, one in known] for name in ("lower", "upper"))
        label = f"{kind} r={rank}"
        axes.fill_between([bit for bit, _ in known], low, high, color=COLOURS[kind], alpha=0.12, label=label)
    axes.set(yscale="log", xlabel="bits, k-means", ylabel="stable rank of an update (median), with its bounds")
    axes.legend(fontsize=6)


def _omegas(axes: Axes, tried: Iterable[Point]) -> None:
    right = axes.twinx()
    for (rank,), found in _grouped(tried, "rank").items():
        best = [min(one, key=lambda row: row["five_bits"]["loss"]) for one in _grouped(found, "omega").values()]
        omegas = [one["omega"] for one in best]
        style = {2: "o-", 8: "s-"}.get(rank, "^-")
        axes.plot(omegas, [one["five_bits"]["loss"] for one in best], style, color="black", label=f"loss, r={rank}")
        ranks = [one["full"]["stable_rank_before"] for one in best]
        right.plot(omegas, ranks, style, color="tab:orange", label=f"stable rank, r={rank}")
    axes.set(xscale="log", yscale="log", xlabel="omega", ylabel="validation loss at five bits, best rate")
    right.set(ylabel="stable rank (median)")
    figure_lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(figure_lines, [line.get_label() for line in figure_lines], fontsize=6)


def _grouped(points: Iterable[Point], *names: str) -> dict[tuple[Any, ...], list[Point]]:
    groups: dict[tuple[Any, ...], list[Point]] = defaultdict(list)
    for one in points:
        groups[tuple(one[name] for name in names)].append(one)
    return groups


def _mean(points: Iterable[Point], name: str) -> float:
    return statistics.fmean(one[name] for one in points)
