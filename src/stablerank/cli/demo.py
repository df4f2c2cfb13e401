"""`stablerank demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[str, typer.Option(help="Where the run folder goes.")] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Seed of training; the problems stay the same.")] = 0,
) -> None:
    """Train the embedded student with GRPO, watch its geometry and write a report: minutes on two CPU cores.

    This is `stablerank train recipes/demo.yaml`, with nothing to download.
    """
    from stablerank.cli.running import run_and_report

    run_and_report(str(recipe_path("demo.yaml")), [f"output={output}", f"seed={seed}"], None)


def recipe_path(name: str) -> Path:
    """A recipe that travels with the library: beside the sources in a checkout, inside the package in a wheel."""
    package = Path(__file__).parents[1]
    checkout = package.parents[1] / "recipes"
    return (checkout if checkout.is_dir() else package / "recipes") / name
