"""The page and the text of a rate-distortion sweep: what each file of one adapter weighs, and what it costs.

The page is one HTML file that needs no network and runs no script; names reach it through the escaping of
``reports/html.py``. The same results give the same bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stablerank.reports import html, rate_distortion_figures, words

Results = Mapping[str, Any]
HEADER = ("method", "bits", "bytes", "of fp16", "error", "size kept", "stable rank", "loss", "cost (95 %)")


def page(results: Results) -> str:
    """The whole page as text."""
    return (
        html.environment()
        .get_template("rate_distortion.html.j2")
        .render(
            results=results,
            about=about(results),
            verdict=verdict(results),
            pictures=rate_distortion_figures.pictures(results),
            header=_columns(results, HEADER),
            rows=[_columns(results, row(point)) for point in _by_bytes(results)],
            bounded=sum(point["upper"] is not None for point in results["points"]),
        )
    )


def text(results: Results) -> str:
    """The same for a terminal."""
    rows = [_columns(results, HEADER), *(_columns(results, row(point)) for point in _by_bytes(results))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(each, widths, strict=True)).rstrip() for each in rows]
    return "\n".join([*about(results), "", *lines, "", verdict(results)])


def about(results: Results) -> list[str]:
    """What was compressed, and what its texts say of it: a sentence each."""
    rank = results["points"][0]["lost"]["stable_rank_before"]
    told = [f"{words.plain(results['adapter'])}: {len(results['points'])} files"]
    if rank is not None:
        told[0] += f", median stable rank of an update {rank:.2f}"
    if results["texts"]:
        base, own = results["base_loss"]["value"], results["adapter_loss"]["value"]
        told.append(
            f"{results['texts']:,} texts: {base:.4f} nats a token without the adapter, {own:.4f} with it as it is"
        )
    return told


def verdict(results: Results) -> str:
    """Which file to take."""
    if not results["texts"]:
        return "No texts were given, so that no file can be picked: an error of an update is no loss of quality."
    tolerance = f"{results['tolerance']:g} nats a token"
    if results["pick"] is None:
        return f"No file is sure to cost at most {tolerance}: give more texts, more bits or a larger tolerance."
    point = results["points"][results["pick"]]
    return (
        f"The smallest file that is sure to cost at most {tolerance}: {point['method']}, {point['bits']} bits, "
        f"{point['bytes']:,} bytes, {words.percent(point['share'])} of fp16."
    )


def row(point: Mapping[str, Any]) -> list[str]:
    """One file, in the order of `HEADER`."""
    lost = point["lost"]
    return [
        point["method"],
        str(point["bits"]),
        f"{point['bytes']:,}",
        words.percent(point["share"]),
        "" if lost["median_error"] is None else words.percent(lost["median_error"], 2),
        "" if lost["median_norm_ratio"] is None else f"{lost['median_norm_ratio']:.3f}",
        "" if lost["stable_rank_after"] is None else f"{lost['stable_rank_after']:.2f}",
        "" if point["loss"] is None else f"{point['loss']['value']:.4f}",
        "" if point["cost"] is None else _cost(point["cost"]),
    ]


def _cost(cost: Mapping[str, float]) -> str:
    return f"{cost['value']:+.4f} ({cost['low']:+.4f} to {cost['high']:+.4f})"


def _columns(results: Results, cells: Sequence[str]) -> list[str]:
    """Without texts the last two columns would be empty."""
    return list(cells if results["texts"] else cells[:-2])


def _by_bytes(results: Results) -> list[Mapping[str, Any]]:
    return sorted(results["points"], key=lambda point: point["bytes"])
