"""`stablerank inspect-reward`."""

import json as json_module
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stablerank.errors import DataError

if TYPE_CHECKING:
    from stablerank.reports.credit import CreditGroup

SHOWN_TOKENS = 100


def inspect_reward(
    recipe: Annotated[str, typer.Argument(help="YAML recipe: policy, reward, credit, how to sample.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for `stablerank train`.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Sample completions of this prompt.")] = None,
    row: Annotated[int | None, typer.Option(help="Sample completions of this row of the recipe's data.")] = None,
    rollouts: Annotated[Path | None, typer.Option(help="Completions from JSONL, Parquet or a run folder.")] = None,
    group: Annotated[int, typer.Option(help="Which group of the rollouts, from 0 on.")] = 0,
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Column for the rewards, such as answer=12.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Policy: RUN/checkpoints/checkpoint-K of this recipe.")
    ] = None,
    kl: Annotated[bool, typer.Option("--kl", help="Show KL terms even if trainer.beta is 0.")] = False,
    completion: Annotated[
        int | None, typer.Option(help="Which completion to print (default: largest advantage).")
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="A:B", help="Tokens to print.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with every completion here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The whole group as JSON on stdout.")] = False,
) -> None:
    """Show where the credit of every token comes from: deposits, steps, normalised deposits, advantages.

    Completions of one prompt are sampled, or read from a file, and go through the recipe's own rewards and trainer as
    far as its loss. Nothing is trained. The policy is that of before the first step, or of --checkpoint.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch, transformers, trl and peft (about 15 seconds)"):
        from stablerank.cli.quiet import quiet_libraries
        from stablerank.inspecting import inspect_reward as run
    quiet_libraries()
    found = run(
        recipe,
        overrides or [],
        prompt=prompt,
        row=row,
        rollouts=rollouts,
        group=group,
        columns=dict(map(_column, column or [])),
        checkpoint=checkpoint,
        kl=kl,
    )
    shown = _json(found) if json else _text(found, completion, tokens)
    if html is not None:
        _write_page(html, found)
        shown = shown if json else f"{shown}\n\npage: {html}"
    print(shown)


def _write_page(path: Path, found: "CreditGroup") -> None:
    from stablerank.reports.credit_html import write_credit_page

    try:
        write_credit_page(path, found)
    except OSError as error:
        raise DataError(f"--html {path} cannot be written ({error.strerror}); give the path of a new file.") from error


def _column(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise DataError(f"--column {given!r} is not NAME=VALUE; write it like `--column answer=12`.")
    return name, value


def _json(found: "CreditGroup") -> str:
    return json_module.dumps(found.to_json(), indent=1, allow_nan=False)


def _text(found: "CreditGroup", completion: int | None, tokens: str | None) -> str:
    from stablerank.reports.credit_text import text

    chosen = found.most_credited if completion is None else completion
    if not 0 <= chosen < len(found):
        raise DataError(f"There is no completion {chosen}; give one from 0 to {len(found) - 1} with --completion.")
    return text(found, chosen, _range(tokens, found.tokens[chosen]))


def _range(tokens: str | None, there: Sequence[str]) -> range:
    if tokens is None:
        return range(min(SHOWN_TOKENS, len(there)))
    match = re.fullmatch(r"(\d*):(\d*)", tokens)
    start, stop = (int(match[1] or 0), min(int(match[2] or len(there)), len(there))) if match else (0, 0)
    if start >= stop:
        raise DataError(
            f"--tokens {tokens} names no token of the completion, which has {len(there)}; write A:B, such as 0:100."
        )
    return range(start, stop)
