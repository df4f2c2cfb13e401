"""`stablerank score`."""

import io
import json as json_module
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from stablerank.cli.bars import passing_bar
from stablerank.runs.strict_json import strict

if TYPE_CHECKING:
    from stablerank.rewards.scorers.templates import Template
    from stablerank.scoring import Progress, ScoreSummary, Scoring

FIRST_ROWS = 10
WIDTH = 100


def score(
    data: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, Parquet, data:NAME or a hub id.")],
    scorer: Annotated[
        list[str] | None, typer.Option(help="KIND or KIND:key=value,...; again for more (default: stable_rank).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="zoo:NAME, a model folder or a hub id.")] = None,
    prompt_column: Annotated[str, typer.Option(help="Text, or lists of chat messages.")] = "prompt",
    response_column: Annotated[str, typer.Option(help="Text, or lists of texts.")] = "response",
    template: Annotated[str, typer.Option(help="chat, or a text around both; a wrong one lists them all.")] = "chat",
    window: Annotated[int, typer.Option(help="Tokens of prompt and response together.")] = 512,
    truncation_side: Annotated[
        Literal["right", "left"], typer.Option(help="Where what exceeds the window is cut.")
    ] = "right",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = "float32",
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch, padding included.")] = 4096,
    out: Annotated[Path | None, typer.Option(help="Folder for the scores; resumes there.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line a response; the summary on stderr.")] = False,
) -> None:
    """Score every response in a file: stable rank, its rivals, likelihoods, judges, length, chance.

    A response that cannot be scored is counted with its reason, and the rest is scored.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch and transformers"):
        from stablerank.cli.quiet import quiet_libraries
        from stablerank.scoring import score as run
    quiet_libraries()
    try:
        with _bar() as progress:
            found = run(
                data,
                scorer or ("stable_rank",),
                model,
                prompt_column=prompt_column,
                response_column=response_column,
                template=cast("Template", template),  # looked up there
                window=window,
                truncate=truncation_side,
                dtype=dtype,
                batch_tokens=batch_tokens,
                out=out,
                progress=progress,
            )
    except KeyboardInterrupt:
        way_on = "nothing was written" if out is None else f"the same command goes on in {out}"
        print(f"stablerank: interrupted; {way_on}.", file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        for row in found.table.to_pylist():
            print(json_module.dumps(strict(row), ensure_ascii=False, allow_nan=False))
        print(_summary(found), file=sys.stderr)
    else:
        print(f"{_first_rows(found)}\n\n{_summary(found)}")


def _first_rows(found: "Scoring") -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Names of scores are long, and the summary has them beside their numbers.
    number_of = {each.name: str(number) for number, each in enumerate(found.scores, 1)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in found.table.column_names:
        heading = number_of.get(name, name)
        table.add_column(heading, justify="left" if name in ("id", "status") else "right", overflow="fold")
    for row in found.table.slice(0, FIRST_ROWS).to_pylist():
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
    more = len(found.table) - FIRST_ROWS
    return "\n".join(lines + ([f"and {more:,} more"] if more > 0 else []))


def _summary(found: "Scoring") -> str:
    """One line a score, at most 100 columns but for names."""
    from stablerank.scoring import QUANTILES

    names = [f"{number} {each.name}" for number, each in enumerate(found.scores, 1)]
    width = max(map(len, names))
    heads = ["answers", "mean", *(f"{100 * share:g} %" for share in QUANTILES), "ties", "length"]
    lines = [f"{name:<{width}}{_line(each)}" for name, each in zip(names, found.scores, strict=True)]
    return "\n".join(
        [
            f"{'score':<{width}}" + "".join(f"{head:>9}" for head in heads),
            *lines,
            "",
            "ties: pairs of answers with one score; length: Spearman's correlation with tokens of the response",
            *_unscored(found),
            f"{len(found.table):,} answers; {found.throughput}",
            *([] if found.folder is None else [f"scores: {found.folder}"]),
        ]
    )


def _line(each: "ScoreSummary") -> str:
    ties = "-" if math.isnan(each.ties) else f"{100 * each.ties:.1f} %"
    length = "-" if math.isnan(each.length_correlation) else f"{each.length_correlation:+.2f}"
    cells = (f"{each.answers:,}", *map(_number, (each.mean, *each.quantiles)), ties, length)
    return "".join(f"{cell:>9}" for cell in cells)


def _unscored(found: "Scoring") -> Iterator[str]:
    for reason in found.unscored:
        rows = [*map(str, reason.first_rows), *(["..."] if reason.rows > len(reason.first_rows) else [])]
        where = f"row{'s' * (reason.rows > 1)} {', '.join(rows)}"
        yield f"without a score: {reason.answers:,} {reason.status.replace('_', ' ')} ({where})"


def _cell(value: float | str | None) -> str:
    from stablerank.reports.words import plain

    if value is None:
        return "-"
    return _number(value) if isinstance(value, float) else plain(str(value))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _bar() -> "AbstractContextManager[Progress]":
    """A bar with answers and their throughput."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    return passing_bar("answers", MofNCompleteColumn(), TimeRemainingColumn())
