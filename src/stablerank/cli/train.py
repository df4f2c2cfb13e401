"""`stablerank train`."""

from typing import Annotated

import typer

from stablerank.errors import RecipeError


def train(
    recipe: Annotated[str | None, typer.Argument(help="YAML recipe; see recipes/ for complete ones.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Such as `optimiser.learning_rate=1e-4 seed=3`."),
    ] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this interrupted run folder.", metavar="RUN")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Check everything, print the resolved recipe and the cost; run nothing.")
    ] = False,
    headroom: Annotated[
        bool, typer.Option(help="First sample validation problems and say whether there is anything to elicit.")
    ] = False,
) -> None:
    """Post-train a model by a recipe and write a run folder with metrics, geometry, model and report.

    Sections of a recipe: objective, model, adapter, data, reward, credit, optimiser, trainer, geometry, evaluation,
    seed, output. `trainer` goes verbatim into TRL's GRPOConfig. Any value can be overridden: `stablerank train
    recipes/demo.yaml seed=7 adapter.r=4 output=runs/r4`.

    Ctrl-C or a crash loses nothing but the steps since the last checkpoint: `stablerank train --resume RUN`.
    """
    if (recipe is None) == (resume is None):
        raise RecipeError(
            "Give either a recipe to train or `--resume RUN`, such as `stablerank train recipes/demo.yaml`."
        )
    if resume is not None and (overrides or dry_run or headroom):
        raise RecipeError("A resumed run keeps its own recipe; drop the overrides, `--dry-run` and `--headroom`.")
    if dry_run:
        from stablerank.cli.dry_run import print_plan

        print_plan(str(recipe), overrides or [])
        return
    from stablerank.cli.running import run_and_report

    if headroom:
        from stablerank.cli.evaluate import print_headroom

        print_headroom(str(recipe), overrides or [])
    run_and_report(recipe, overrides or [], resume)
