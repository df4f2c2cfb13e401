"""The tables of docs/compression.md, from what `benchmarks/compress_speed.py` and `rate_distortion.py` write.

The tables of a task take its name: ``arithmetic`` or ``smollm2``.
"""

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean
from typing import Any

from tables import load, table

NAMES = {"lora": "LoRA", "dora": "DoRA", "sinelora": "SineLoRA"}
Found = dict[str, Any]


def compress_speed() -> str:
    rows = [
        [
            found["method"],
            str(found["bits"]),
            str(found["group"]),
            "yes" if found["entropy"] else "no",
            f"{found['file_bytes'] / 1e6:.2f} MB",
            f"{100 * found['share']:.1f} %",
            f"{found['compress_seconds']:.1f} s",
            f"{found['decode_mb_per_second']:.0f} MB/s",
        ]
        for found in load("compress_speed")["rows"]
    ]
    return table("method | bits | group | zstd | file | of fp16 | compressing | decoding, as fp16", rows)


def compress_points(task: str) -> str:
    """Held-out loss, means over seeds."""
    return _by_bits(task, lambda one: one["loss"], "loss, nats a token", "{:.4f}")


def compress_accuracy(task: str) -> str:
    return _by_bits(task, lambda one: 100 * one["pass_at_1"], "pass@1, %", "{:.1f}")


def compress_bytes(task: str) -> str:
    return _by_bits(task, lambda one: one["bytes"] / 1e3, "kB", "{:.1f}")


def compress_ranks(task: str) -> str:
    return _by_bits(task, lambda one: one["stable_rank_after"], "stable rank, median", "{:.2f}")


def _by_bits(task: str, value: Callable[[Found], float], what: str, shown: str) -> str:
    """A row an adapter and method, a column a number of bits; fp16 stands in the row of k-means, NF4 in its own."""
    groups: dict[tuple[Any, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in load(f"rate_distortion_{task}")["points"]:
        method = "kmeans" if one["method"] == "fp16" else one["method"]
        groups[one["kind"], one["rank"], one["cut"], method][one["bits"]].append(value(one))
    rows = [
        [
            f"{NAMES[kind]}, r = {rank}" + (f", cut to {cut}" if cut else ""),
            method,
            *(shown.format(fmean(found[bits])) if bits in found else "" for bits in (*range(1, 9), 16)),
        ]
        for (kind, rank, cut, method), found in groups.items()
    ]
    return table(f"{what}; bits: | method | {' | '.join(map(str, range(1, 9)))} | fp16", rows)


def compress_deltas(task: str) -> str:
    rows = [
        [
            _title(found["test"]),
            _percent(found["rate"]),
            f"{100 * min(found['overlap']):.0f} %",
            str(max(max(pair) for pair in found["dropped"])),
            ", ".join(dict.fromkeys(found["status"])),
        ]
        for found in load(f"rate_distortion_{task}")["deltas"]
    ]
    return table("against LoRA, r = 8, k-means | bytes at equal loss (95 %) | overlap | most dropped | status", rows)


def compress_error_deltas(task: str) -> str:
    rows = [
        [
            _title(found["test"]),
            _title(found["anchor"]),
            _percent(found["rate"]),
            f"{100 * min(found['overlap']):.0f} %",
            ", ".join(dict.fromkeys(found["status"])),
        ]
        for found in load(f"rate_distortion_{task}")["error_deltas"]
    ]
    return table("tested | against | bytes at equal error of an update (95 %) | overlap | status", rows)


def compress_claims(task: str) -> str:
    rows = [
        [
            str(found["rank"]),
            found["test"].replace("sinelora", "SineLoRA").replace("lora", "LoRA"),
            _signed(found["difference"]),
            found["verdict"],
        ]
        for found in load(f"rate_distortion_{task}")["claims"]
    ]
    return table("rank | tested | loss less that of LoRA in full precision (95 %) | at least as good?", rows)


def compress_omegas(task: str) -> str:
    """By rank and omega, at the best of the rates tried."""
    best: dict[tuple[int, float], Found] = {}
    for found in load(f"rate_distortion_tuning_{task}")["tried"]:
        key = found["rank"], found["omega"]
        if found["kind"] == "sinelora" and (key not in best or _five(found) < _five(best[key])):
            best[key] = found
    rows = [
        [
            str(rank),
            f"{omega:g}",
            f"{found['rate']:.2g}",
            f"{found['full']['loss']:.4f}",
            f"{_five(found):.4f}",
            f"{found['full']['stable_rank_before']:.2f}",
        ]
        for (rank, omega), found in best.items()
    ]
    return table("rank | omega | best rate | validation loss | at five bits | stable rank", rows)


def _five(found: Found) -> float:
    return float(found["five_bits"]["loss"])


def compress_chosen(task: str) -> str:
    rows = [
        [
            NAMES[found["kind"]],
            str(found["rank"]),
            f"{found['rate']:.2g}",
            f"{found['omega']:g}" if found["omega"] else "",
            ("yes" if found["interior"] else "no") if found["omega"] else "",
        ]
        for found in load(f"rate_distortion_tuning_{task}")["chosen"]
    ]
    return table("adapter | rank | learning rate | omega | inside the grid", rows)


def _title(series: str) -> str:
    kind, _, rest = series.partition(" ")
    return f"{NAMES[kind]} {rest.replace('r=', 'r = ')}"


def _percent(found: Found) -> str:
    return "" if found["value"] is None else f"{100 * found['value']:+.1f} %{_bounds(found, 100, '.1f')}"


def _signed(found: Found) -> str:
    return "" if found["value"] is None else f"{found['value']:+.4f}{_bounds(found, 1, '.4f')}"


def _bounds(found: Found, factor: int, digits: str) -> str:
    if found["low"] is None:
        return ""
    return f" ({factor * found['low']:+{digits}} to {factor * found['high']:+{digits}})"
