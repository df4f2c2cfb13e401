"""Run with progress bars, then print the summary. Shared by `train` and `demo`."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """A rich progress bar a stage."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        """Begin a new bar."""
        self.task = self.bars.add_task(name, total=total, note="")

    def advance(self, done: int, note: str) -> None:
        """Move the bar to ``done``."""
        if self.task is not None:
            self.bars.update(self.task, completed=done, note=note)


def run_and_report(recipe: str | None, overrides: Sequence[str], resume: str | None) -> None:
    """Train or resume with bars on stderr, then the one-screen summary on stdout."""
    console = Console(stderr=True)
    with console.status("loading torch, transformers, trl and peft (about 15 seconds)"):
        import logging
        import warnings

        import transformers

        from stablerank.facade import continue_training, train
        from stablerank.reports.summary import summary_text
        from stablerank.training.session import is_main_process
    # What upstream will rename in its next major version is ours to know, not the user's.
    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not is_main_process()) as bars:
        progress = Bars(bars)
        folder = continue_training(resume, progress) if resume else train(str(recipe), overrides, progress)
    if is_main_process():
        print(summary_text(folder.path))
