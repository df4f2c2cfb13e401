"""`stablerank rewardbench`."""

import json as json_module
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stablerank.cli.bars import passing_bar
from stablerank.errors import DataError

if TYPE_CHECKING:
    from stablerank.evaluation.pairs.comparison import Part, Row
    from stablerank.evaluation.pairs.reproduction import Beside, Reproduction
    from stablerank.evaluation.pairs.rewardbench import RewardBench
    from stablerank.evaluation.statistics import Interval
    from stablerank.rewardbenching import Progress, RewardBenching, SetResult

NAMED_ROWS = 3
"""Rows that could not be used are counted, and so many named."""


Data = Annotated[
    str, typer.Argument(help="llmbar, judgebench, rmbench, gsm8k_solutions, a file, or a hub id; several with commas.")
]
Model = Annotated[str | None, typer.Option(help="zoo:NAME, a folder or a hub id, for scorers that run one.")]
Scorers = Annotated[
    list[str] | None, typer.Option(help="KIND:KEY=VALUE,...; repeat it (default: stable rank and controls).")
]
Version = Annotated[
    Literal["v1", "v2"] | None, typer.Option(help="Pairs, or best of four (default: as the rows look).")
]
Columns = Annotated[
    list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Column of a file, such as prompt=question.")
]
Split = Annotated[str | None, typer.Option(help="Of a hub data set (RewardBench: filtered).")]
Limit = Annotated[int | None, typer.Option(help="At most so many rows of each set, evenly spread over it.")]
Ties = Annotated[Literal["half", "lose"], typer.Option(help="What a tie earns; RewardBench's own code lets it lose.")]
Template = Annotated[str, typer.Option(help="Text around prompt and response.")]
Window = Annotated[int, typer.Option(help="Tokens of prompt and response together.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the model's weights.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens of a batch.")]
Published = Annotated[
    str | None, typer.Option(metavar="sr-grpo|FILE", help="RewardBench numbers of others, to stand beside ours.")
]
AllSubsets = Annotated[bool, typer.Option("--all", help="Print every subset too.")]
Out = Annotated[Path | None, typer.Option(help="Folder for scores and results; resumes there.")]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]


def rewardbench(
    data: Data,
    model: Model = None,
    scorer: Scorers = None,
    version: Version = None,
    column: Columns = None,
    split: Split = None,
    limit: Limit = None,
    ties: Ties = "half",
    template: Template = "chat",
    window: Window = 512,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = 4096,
    published: Published = None,
    all_subsets: AllSubsets = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """How often scorers prefer the chosen response, side by side, with what length alone would reach.

    Accuracy with its 95 % interval over prompts, ties, accuracy at matched lengths, and rank correlation with
    preference given length; RewardBench's own sections and averages where its subsets are there.
    """
    found = _run(
        [name.strip() for name in data.split(",") if name.strip()],
        scorer,
        model=model,
        version=version,
        columns=dict(map(_column, column or [])),
        split=split,
        limit=limit,
        ties=ties,
        template=template,
        window=window,
        dtype=dtype,
        batch_tokens=batch_tokens,
        published=published,
        out=out,
    )
    text = json_module.dumps(found.results(), indent=2, allow_nan=False) if json else _text(found, all_subsets)
    print(text)


def _run(data: list[str], scorers: list[str] | None, *, out: Path | None, **settings: Any) -> "RewardBenching":
    from rich.console import Console

    with Console(stderr=True).status("loading torch and transformers"):
        from stablerank.cli.quiet import quiet_libraries
        from stablerank.rewardbenching import rewardbench as run
    quiet_libraries()
    try:
        with _bar() as progress:
            return run(data, scorers, out=out, progress=progress, **settings)
    except KeyboardInterrupt:
        way_on = "nothing was written" if out is None else f"the same command goes on in {out}"
        print(f"stablerank: interrupted; {way_on}.", file=sys.stderr)
        raise typer.Exit(130) from None


def _column(given: str) -> tuple[str, str]:
    ours, equals, theirs = given.partition("=")
    if not equals or not ours or not theirs:
        raise DataError(f"--column {given!r} is not OURS=THEIRS; write it like `--column prompt=question`.")
    return ours, theirs


def _bar() -> "AbstractContextManager[Progress]":
    """A bar with responses, then with rows of the table."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    return passing_bar("rewardbench", MofNCompleteColumn(), TimeRemainingColumn())


def _text(found: "RewardBenching", all_subsets: bool) -> str:
    tie = "a tie earns a half" if found.meta["ties"] == "half" else "a tie is lost"
    lines = [f"{tie}; lengths in {found.meta['length']}; 95 % intervals over prompts"]
    for one in found.sets:
        lines += ["", *_set(one, all_subsets)]
    if found.folder is not None:
        lines += ["", f"scores and results: {found.folder}"]
    return "\n".join(line.rstrip() for line in lines)


def _set(one: "SetResult", all_subsets: bool) -> Iterator[str]:
    from stablerank.reports.words import plain

    yield plain(one.name)
    yield from (f"  {line}" for line in _left_out(one))
    shown = one.parts if all_subsets else one.parts[:1]
    for part in shown:
        yield from _part(part, [row for row in one.rows if row.part == part.name])
    if one.v1:
        yield from _sections(one.v1, one.unknown or {})
    if one.published is not None:
        yield from _reproduction(one.published)
    for name, scores in (one.v2 or {}).items():
        yield f"  {name}: {scores.rows} rows, {_percent(scores.tied_rows)} tied, {scores.undefined} unscored"
        overall = {} if scores.overall is None else {"overall, mean of 6": scores.overall}
        for subset, interval in {**scores.subsets, **overall}.items():
            yield f"    {plain(subset):<24}{_interval(interval)}"


def _left_out(one: "SetResult") -> Iterator[str]:
    """What could not be used or scored: counted and named."""
    from stablerank.reports.words import plain

    if one.refused:
        first = "; ".join(f"row {r.row} (id {plain(r.id)}): {plain(r.reason)}" for r in one.refused[:NAMED_ROWS])
        more = "; ..." if len(one.refused) > NAMED_ROWS else ""
        yield f"{len(one.refused)} rows left out: {first}{more}"
    for reason, count in one.unscored.items():
        yield f"{count} responses without every score: {reason}"


def _part(part: "Part", rows: "list[Row]") -> Iterator[str]:
    from stablerank.reports.words import plain

    yield (
        f"  {plain(part.name)}: {part.pairs} pairs of {part.groups} prompts, chosen is longer in "
        f"{_percent(part.chosen_longer)}"
    )
    width = max(len(row.scorer) for row in rows) + 2
    yield f"    {'':<{width}}{'accuracy':<24}{'ties':<8}{'at matched length':<24}{'rho':<7}rho given length"
    for row in rows:
        counted = row.agreement
        missing = f"  {counted.undefined} undefined" if counted.undefined else ""
        yield (
            f"    {row.scorer:<{width}}{_interval(counted.accuracy):<24}{_percent(counted.tie_rate):<8}"
            f"{_interval(row.matched.accuracy):<24}{_number(row.ranks.with_preference.value):<7}"
            f"{_signed(row.ranks.given_length)}{missing}"
        )


def _sections(v1: "Mapping[str, RewardBench]", unknown: Mapping[str, int]) -> Iterator[str]:
    from stablerank.reports.words import plain

    complete = all(one.complete for one in v1.values())
    yield "  RewardBench" + (
        "" if complete else " (some of its pairs only, so no number to compare with published ones)"
    )
    if unknown:
        yield "    subsets that it does not have: " + ", ".join(f"{plain(n)} ({c})" for n, c in unknown.items())
    for name, one in v1.items():
        yield f"    {name}"
        averages = {"official overall": one.official, "all pairs alike": one.micro, "mean of 5": one.category_mean}
        kinds = {kind: value for kind, value in one.categories.items() if kind not in one.sections}
        for title, interval in {**{f"section {n}": i for n, i in one.sections.items()}, **kinds, **averages}.items():
            if interval is not None:
                yield f"      {title:<22}{_interval(interval)}"


def _reproduction(found: "Reproduction") -> Iterator[str]:
    from stablerank.reports.words import plain

    yield f"  published by {plain(found.source)} of {plain(found.model)}, beside the nearest average measured here"
    if found.partial:
        yield f"    not compared, since pairs behind them are missing: {', '.join(found.partial)}"
    for scorer in dict.fromkeys(row.scorer for row in found.rows):
        yield f"    {scorer}"
        yield from (f"      {_beside(row)}" for row in found.rows if row.scorer == scorer)


def _beside(row: "Beside") -> str:
    holds = "holds it" if row.inside else "does not"
    others = [f"{name} {100 * value:+.1f}" for name, value in row.differences.items() if name != row.average]
    return (
        f"{row.number:<10}{_percent(row.published):<8}{row.average + ':':<18}{_interval(row.measured)}, "
        f"{100 * row.differences[row.average]:+.1f} points, the interval {holds}"
        + (f" (others: {', '.join(others)})" if others else "")
    )


def _interval(interval: "Interval") -> str:
    if interval.value != interval.value:
        return "not defined"
    return f"{100 * interval.value:.1f} % ({_bound(interval.low)} to {_bound(interval.high)})"


def _bound(value: float) -> str:
    return "?" if value != value else f"{100 * value:.1f}"


def _signed(interval: "Interval") -> str:
    if interval.value != interval.value:
        return "not defined"
    low, high = ("?" if bound != bound else f"{bound:+.2f}" for bound in (interval.low, interval.high))
    return f"{interval.value:+.2f} ({low} to {high})"


def _number(value: float) -> str:
    return "" if value != value else f"{value:+.2f}"


def _percent(share: float) -> str:
    return "" if share != share else f"{100 * share:.1f} %"
