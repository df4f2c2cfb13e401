"""`stablerank zoo`."""

import json as json_module
from typing import Annotated

import typer

app = typer.Typer(help="Embedded and fetchable models.", no_args_is_help=True)


@app.command("list")
def list_entries(json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False) -> None:
    """List the models that `model.path: zoo:NAME` can name."""
    from stablerank.zoo.listing import rows

    entries = rows()
    if json:
        print(json_module.dumps(entries, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(str(key) for key in entries[0]))
    for entry in entries:
        table.add_row(*(str(value) for value in entry.values()))
    Console().print(table)


@app.command("fetch")
def fetch_entry(name: Annotated[str, typer.Argument(help="Such as smollm2-135m-instruct.")]) -> None:
    """Fetch a model once, verify it, and keep it in the cache folder."""
    from rich.console import Console

    from stablerank.zoo.fetch import fetch

    with Console(stderr=True).status(f"fetching {name}"):
        place = fetch(name)
    print(f"zoo:{name.removeprefix('zoo:')} is ready in {place}")
