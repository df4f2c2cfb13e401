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
        from stablerank.cli.quiet import quiet_libraries
        from stablerank.facade import continue_training, train
        from stablerank.reports.summary import summary_text
        from stablerank.training.session import is_main_process
    quiet_libraries()
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bars = Progress(*columns, console=console, disable=not is_main_process())
    try:
        folder = continue_training(resume, Bars(bars)) if resume else train(str(recipe), overrides, progress=Bars(bars))
    finally:
        # Stopping what never started would print an empty line above the sentence that says why.
        if bars.live.is_started:
            bars.stop()
    if is_main_process():
        print(summary_text(folder.path))
