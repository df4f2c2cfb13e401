"""`stablerank rate-distortion`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from stablerank.cli.bars import passing_bar
from stablerank.errors import DataError


def rate_distortion(
    adapter: Annotated[str, typer.Argument(help="An adapter's or finished run's folder.")],
    texts: Annotated[
        str | None, typer.Option(help="arithmetic, JSONL, JSON, CSV, Parquet, data:NAME, a hub id.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of whole texts.")] = "text",
    prompt_column: Annotated[str | None, typer.Option(help="With the next: the loss of completions alone.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="Column of completions.")] = None,
    bits: Annotated[str, typer.Option(help="As 1..8, or 2,4,8.")] = "1..8",
    method: Annotated[list[str] | None, typer.Option(help="kmeans, affine, symmetric, nf4; may be repeated.")] = None,
    group: Annotated[str | None, typer.Option(help="tensor, row, or a number of values.")] = None,
    rank: Annotated[int | None, typer.Option(help="Cut each update to so many directions first.")] = None,
    energy: Annotated[float | None, typer.Option(help="Cut to this share of the squared singular values.")] = None,
    base: Annotated[str | None, typer.Option(help="Where the base is, if not where the adapter says.")] = None,
    limit: Annotated[int, typer.Option(help="First texts.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens of a text that count.")] = 512,
    tolerance: Annotated[float, typer.Option(min=0, help="What the pick may cost, nats a token.")] = 0.01,
    out: Annotated[Path | None, typer.Option(help="A new folder for the results and a page.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """What quality each byte of an adapter buys: every method and number of bits, weighed on disk.

    With --texts the loss that each file costs, with its interval, and the smallest file that is good enough.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch, transformers and peft"):
        from stablerank.cli.compress import group_of
        from stablerank.cli.condition import columns_of
        from stablerank.cli.quiet import quiet_libraries
        from stablerank.compressing import METHODS
        from stablerank.compressing import rate_distortion as run
        from stablerank.compression.spec import known_method
        from stablerank.reports.rate_distortion import text
    quiet_libraries()
    with passing_bar("compressing") as progress:
        found = run(
            adapter,
            texts,
            base=base,
            columns=columns_of(text_column, prompt_column, completion_column),
            methods=[known_method(name) for name in method or METHODS],
            bits=_bits(bits),
            group=None if group is None else group_of(group),
            rank=rank,
            energy=energy,
            limit=limit,
            max_length=max_length,
            tolerance=tolerance,
            out=out,
            progress=progress,
        )
    if json:
        print(json_module.dumps(found.results(), indent=2, allow_nan=False))
        return
    print(text(found.results()))
    if out is not None:
        print(f"report: {out / 'report.html'}")


def _bits(given: str) -> list[int]:
    first, dots, last = given.partition("..")
    try:
        return list(range(int(first), int(last) + 1)) if dots else [int(part) for part in given.split(",")]
    except ValueError:
        raise DataError(f"--bits {given!r} is neither a range such as 1..8 nor a list such as 2,4,8.") from None
