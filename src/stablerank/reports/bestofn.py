"""The page and the text of a best-of-n folder: what was chosen, beside choosing without a scorer.

The page is one HTML file that needs no network and runs no script; names reach it through the escaping of
``reports/html.py``. The same results give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stablerank.errors import RunFolderError
from stablerank.reports import bestofn_figures, html, words
from stablerank.runs.atomic import write_text

COMPARED = ("random", "shortest", "longest", "majority")
Results = Mapping[str, Any]


def write_bestofn_report(out_folder: Path) -> Path:
    """Write ``report.html`` beside the results of a finished best-of-n folder and return its path.

    Raises:
        RunFolderError: the folder holds no finished results.
    """
    path = out_folder / "report.html"
    try:
        held = json.loads((out_folder / "evaluation.json").read_text(encoding="utf-8"))
        shown = page({**held["settings"], **held})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFolderError(
            f"{out_folder} holds no finished best-of-n ({type(error).__name__}); run `stablerank bestofn` again."
        ) from error
    write_text(path, shown)
    return path


def page(results: Results) -> str:
    """The whole page as text."""
    template = html.environment().get_template("bestofn.html.j2")
    return template.render(
        results=results,
        about=about(results),
        pictures=bestofn_figures.panels(results),
        header=["", *(f"N = {n}" for n in results["n"])],
        rows=[accuracies(results, kind, name) for kind, name in choosers(results)],
        differences=[differences(results, kind, name) for kind, name in choosers(results)],
        compared=COMPARED,
        costs=[cost(one) for one in results["costs"]],
    )


def text(results: Results) -> str:
    """The same for a terminal; beside names, 21 columns an N."""
    named = [_shown(kind, name) for kind, name in choosers(results)]
    width = 2 + max(map(len, named))
    rows = [accuracies(results, kind, name) for kind, name in choosers(results)]
    parts = [
        *about(results),
        "",
        _line([f"{'accuracy, %':<{width}}", *(f"N={n}" for n in results["n"]), results["length_unit"]], 19),
        *(_line([f"{name:<{width}}", *row], 19) for (name, *row) in rows),
    ]
    if results["has_headroom"]:
        parts += ["", _line([f"{'difference at N=' + str(results['n'][-1]):<{width}}", *COMPARED], 22)]
        for kind, name in choosers(results):
            shown, *found = differences(results, kind, name)
            parts.append(_line([f"{shown:<{width}}", *found], 22))
        parts += ["", *(cost(one) for one in results["costs"])]
    return "\n".join(line.rstrip() for line in parts)


def about(results: Results) -> list[str]:
    """What was chosen from, and whether it can tell choosers apart: a sentence each."""
    by = f" answered by {words.plain(results['draw']['model'])}" if results["draw"] else ""
    told = f"{words.plain(results['pool'])}{by}: {results['problems']:,} problems, {results['answers']:,} answers"
    told += f", {results['mean_length']:.1f} {results['length_unit']} each"
    left = ", ".join(f"{count:,} with {reason}" for reason, count in results["left_out"].items())
    unscored = ", ".join(f"{count:,} {words.plain(reason)}" for reason, count in results["unscored"].items())
    ties = ", ".join(f"{words.plain(name)} {words.percent(share)}" for name, share in results["tied"].items())
    return [
        told,
        results["verdict"],
        *([f"left out: {left}"] if left else []),
        *([f"answers without a score, taken last: {unscored}"] if unscored else []),
        *([f"answers without a final answer, which abstain: {count:,}"] if (count := _silent(results)) else []),
        *([f"pairs of answers that score the same: {ties}"] if ties else []),
    ]


def choosers(results: Results) -> list[tuple[str, str]]:
    """``(kind, name)``, in order."""
    return list(dict.fromkeys((row["kind"], row["chooser"]) for row in results["lines"]))


def accuracies(results: Results, kind: str, name: str) -> list[str]:
    """Name, accuracy at each N with its interval in per cent, mean length of the pick at the largest N."""
    own = [row for row in results["lines"] if (row["kind"], row["chooser"]) == (kind, name)]
    length = "" if own[-1]["length"] is None else f"{own[-1]['length']:.1f}"
    return [_shown(kind, name), *(_percent(row["accuracy"]) for row in own), length]


def differences(results: Results, kind: str, name: str) -> list[str]:
    """Name, and the paired difference to each of `COMPARED` at the largest N."""
    own = [row for row in results["lines"] if (row["kind"], row["chooser"]) == (kind, name)]
    return [_shown(kind, name), *(_percent(own[-1]["over"].get(control), "+") for control in COMPARED)]


def cost(one: Mapping[str, Any]) -> str:
    """One sentence a pass."""
    return (
        f"cost of {words.plain(one['scores'])}: {1000 * one['seconds']:.2f} ms and {one['tokens']:.0f} tokens read "
        "an answer"
    )


def _silent(results: Results) -> int:
    return int(results["without_final_answer"])


def _shown(kind: str, name: str) -> str:
    return words.plain(name) if kind == "scorer" else f"({name})"


def _percent(interval: Mapping[str, float] | None, sign: str = "") -> str:
    """``42.5 (30.1 to 56.0)``; nothing where there is no interval."""
    if interval is None:
        return ""
    value, low, high = (f"{100 * interval[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _line(cells: Sequence[str], width: int) -> str:
    first, *rest = cells
    return first + "".join(f"{cell:<{width}}  " for cell in rest)
