"""The tables of docs/compression.md, from what `benchmarks/compress_speed.py` and `rate_distortion.py` write.

The tables of a task take its name: ``arithmetic`` or ``smollm2``.
"""

from collections import defaultdict
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
    """Means over seeds, the range of the loss beside."""
    groups: dict[tuple[Any, ...], list[Found]] = defaultdict(list)
    for found in load(f"rate_distortion_{task}")["points"]:
        groups[found["kind"], found["rank"], found["cut"], found["method"], found["bits"]].append(found)
    rows = [
        [
            f"{NAMES[kind]}, r = {rank}" + (f", cut to {cut}" if cut else ""),
            method,
            str(bits),
            f"{fmean(one['bytes'] for one in found) / 1e3:.1f} kB",
            f"{fmean(one['loss'] for one in found):.4f} ({_range(one['loss'] for one in found)})",
            f"{100 * fmean(one['pass_at_1'] for one in found):.1f} %" if "pass_at_1" in found[0] else "",
            f"{100 * fmean(one['median_error'] for one in found):.1f} %",
            f"{fmean(one['median_norm_ratio'] for one in found):.3f}",
            f"{fmean(one['stable_rank_before'] for one in found):.2f}",
            f"{fmean(one['stable_rank_after'] for one in found):.2f}",
        ]
        for (kind, rank, cut, method, bits), found in groups.items()
    ]
    measures = "held-out loss | pass@1 | error of an update | its size | stable rank before | after"
    return table(f"adapter | method | bits | file | {measures}", rows)


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
    rows = [
        [
            str(found["rank"]),
            f"{found['omega']:g}",
            f"{found['rate']:.2g}",
            f"{found['full']['loss']:.4f}",
            f"{found['five_bits']['loss']:.4f}",
            f"{found['full']['stable_rank_before']:.2f}",
        ]
        for found in load(f"rate_distortion_tuning_{task}")["tried"]
        if found["kind"] == "sinelora"
    ]
    return table("rank | omega | learning rate | validation loss | at five bits | stable rank", rows)


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


def _range(values: Any) -> str:
    known = list(values)
    return f"{min(known):.4f} to {max(known):.4f}"


def _percent(found: Found) -> str:
    return "" if found["value"] is None else f"{100 * found['value']:+.1f} %{_bounds(found, 100, '.1f')}"


def _signed(found: Found) -> str:
    return "" if found["value"] is None else f"{found['value']:+.4f}{_bounds(found, 1, '.4f')}"


def _bounds(found: Found, factor: int, digits: str) -> str:
    if found["low"] is None:
        return ""
    return f" ({factor * found['low']:+{digits}} to {factor * found['high']:+{digits}})"
