"""`stablerank export`."""

from pathlib import Path
from typing import Annotated

import typer

from stablerank.errors import RunFolderError


def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path, typer.Option(help="Where the model folder goes.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base weights.")] = False,
) -> None:
    """Export a run's model for use without PEFT and without this library.

    RUN/model already loads in stock PEFT; `--merge` writes base plus adapter as one plain folder.
    """
    if not merge:
        raise RunFolderError(f"{run / 'model'} loads in stock PEFT as it is; add `--merge` for one plain model folder.")
    from stablerank.training.export import merge as merge_run

    print(f"merged model written to {merge_run(run, out)}")
