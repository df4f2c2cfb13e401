"""`stablerank bestofn`."""

import json as json_module
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stablerank.cli.bars import passing_bar
from stablerank.errors import DataError

if TYPE_CHECKING:
    from stablerank.choosing import BestOfN, Progress

Template = Literal["chat", "plain", "response", "assistant", "user_assistant", "question_answer", "answer", "bare"]
POOL = "A file or hub data set of answers, an evaluation's folder, or gsm8k_solutions; with --sample a task."


def bestofn(
    pool: Annotated[str, typer.Argument(help=POOL)],
    scorer: Annotated[list[str] | None, typer.Option(help="KIND[:key=value,...]; default: stable_rank.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose states scorers read (default: that of --sample).")] = None,
    n: Annotated[str | None, typer.Option("--n", help="Answers to choose from (default: 1, 2, 4 ... all).")] = None,
    template: Annotated[Template, typer.Option(help="Text around prompt and response.")] = "chat",
    window: Annotated[int, typer.Option(min=1, help="Tokens of prompt and response together.")] = 512,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the scorers' weights.")] = "float32",
    column: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Name in the file.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="At most so many (sampled: 200 by default).")] = None,
    sample: Annotated[str | None, typer.Option(help="Sample the pool now, from this model.")] = None,
    samples: Annotated[int, typer.Option(help="Drawn a problem, with --sample.")] = 16,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Of sampling.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: 256, or what the context leaves.")] = None,
    reward: Annotated[str | None, typer.Option(help="Judge of what is sampled; default: math_verify.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts of a task's file become user messages.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for answers, scores and a page; resumes.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """How often the answer that a scorer prefers among N is right, beside random, majority, shortest and oracle.

    Exact over all subsets of a pool of answers; 95 % intervals and paired differences by prompt.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch, transformers and peft"):
        from stablerank.choosing import Draw, Reading, best_of_n
        from stablerank.cli.quiet import quiet_libraries
    quiet_libraries()
    ns, columns = None if n is None else _numbers(n), dict(map(_column, column or []))
    drawn = Draw(sample or "", samples, problems, temperature, top_p, seed, max_new_tokens, reward, chat)
    found = _interruptible(
        lambda progress: best_of_n(
            pool,
            scorer or ("stable_rank",),
            reading=Reading(model, template, window, dtype),
            draw=None if sample is None else drawn,
            n=ns,
            problems=problems,
            columns=columns,
            out=out,
            progress=progress,
        ),
        out,
    )
    print(json_module.dumps(found.results(), indent=2, allow_nan=False) if json else _text(found))


def _interruptible(run: "Callable[[Progress], BestOfN]", out: Path | None) -> "BestOfN":
    try:
        with _bar() as progress:
            return run(progress)
    except KeyboardInterrupt:
        way_on = "nothing was written" if out is None else f"the same command goes on in {out}"
        print(f"stablerank: interrupted; {way_on}.", file=sys.stderr)
        raise typer.Exit(130) from None


def _text(found: "BestOfN") -> str:
    from stablerank.reports.bestofn import text

    shown = text(found.results())
    return shown if found.folder is None else f"{shown}\nreport: {found.folder / 'report.html'}"


def _numbers(text: str) -> Sequence[int]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise DataError(f"--n {text!r} is no list of whole numbers; write it like `1,4,8,16`.") from None


def _column(given: str) -> tuple[str, str]:
    ours, equals, theirs = given.partition("=")
    if not equals or not ours or not theirs:
        raise DataError(f"--column {given!r} is not OURS=THEIRS; write it like `--column prompt=question`.")
    return ours, theirs


def _bar() -> "AbstractContextManager[Progress]":
    """A bar with answers."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    return passing_bar("best of n", MofNCompleteColumn(), TimeRemainingColumn())
