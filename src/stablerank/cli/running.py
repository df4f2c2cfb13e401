"""Run with progress bars, then print the summary. Shared by `train` and `demo`."""

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from stablerank.runs.folder import RunFolder
    from stablerank.training.recipe import Recipe


class Bars:
    """A rich progress bar a stage."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        """Begin a new bar; the first one starts the display."""
        self.bars.start()
        self.task = self.bars.add_task(name, total=total, note="")

    def advance(self, done: int, note: str) -> None:
        """Move the bar to ``done``."""
        if self.task is not None:
            self.bars.update(self.task, completed=done, note=note)


def run_and_report(recipe: str | None, overrides: Sequence[str], resume: str | None) -> None:
    """Train or resume with bars on stderr, then the one-screen summary on stdout."""
    console = Console(stderr=True)
    with console.status("loading torch, transformers, trl and peft (about 15 seconds)"):
        from stablerank.reports.summary import summary_text
        from stablerank.training.recipe import load_recipe
        from stablerank.training.session import is_main_process
    _quieten()
    resolved = None if resume else load_recipe(str(recipe), overrides)
    with Progress(*_columns(), console=console, disable=not is_main_process()) as bars:
        try:
            folder = _run(resolved, overrides, resume, Bars(bars))
        except KeyboardInterrupt:
            place = resume or (resolved and resolved.output)
            bars.stop()
            console.print(f"Interrupted. Go on with: stablerank train --resume {place}", soft_wrap=True)
            raise typer.Exit(130) from None
    if is_main_process():
        print(summary_text(folder.path))


def _run(recipe: "Recipe | None", overrides: Sequence[str], resume: str | None, bars: Bars) -> "RunFolder":
    from stablerank.facade import continue_training, train

    return train(recipe, overrides, bars) if recipe is not None else continue_training(str(resume), bars)


def _quieten() -> None:
    """Upstream's own bars and its notices of future renames are ours to read, not the user's."""
    import transformers

    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
