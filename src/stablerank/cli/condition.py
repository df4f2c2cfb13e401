"""`stablerank condition`."""

import json as json_module
from typing import Annotated

import typer

from stablerank.cli.bars import passing_bar


def condition(
    model: Annotated[str, typer.Argument(help="zoo:NAME, a model folder, a hub id, an adapter's folder, or a run.")],
    texts: Annotated[str, typer.Option(help="arithmetic, or JSONL, JSON, CSV, Parquet, data:NAME or a hub id.")],
    text_column: Annotated[str, typer.Option(help="Column of whole texts.")] = "text",
    prompt_column: Annotated[str | None, typer.Option(help="With the next: count loss on completions alone.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="Column of completions.")] = None,
    limit: Annotated[int, typer.Option(help="First rows; the answer depends on the batch.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a text that count.")] = 512,
    head: Annotated[bool, typer.Option("--head", help="Ask of the output head too.")] = False,
    all_blocks: Annotated[bool, typer.Option("--all", help="Print one line a block.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
) -> None:
    """Say at which blocks a spectral step (Muon) promises more than a Euclidean one.

    One gradient over the texts, each block's nuclear rank beside the stable rank of what the block reads.
    """
    from rich.console import Console

    with Console(stderr=True).status("loading torch and transformers"):
        from stablerank.cli.quiet import quiet_libraries
        from stablerank.conditioning import condition as run
        from stablerank.reports.condition_text import condition_text
    quiet_libraries()
    with passing_bar("measuring") as progress:
        found = run(
            model,
            texts,
            columns=columns_of(text_column, prompt_column, completion_column),
            limit=limit,
            max_length=max_length,
            head=head,
            progress=progress,
        )
    if json:
        print(json_module.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    print(f"{found.model}: {found.texts:,} texts, {found.tokens:,} tokens, loss {found.loss:.3f}\n")
    print(condition_text(found.blocks, every_block=all_blocks))


def columns_of(text: str, prompt: str | None, completion: str | None) -> dict[str, str]:
    """Our names to the file's."""
    if prompt is None and completion is None:
        return {"text": text}
    return {"prompt": prompt or "prompt", "completion": completion or "completion"}
