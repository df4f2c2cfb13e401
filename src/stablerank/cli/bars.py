"""One progress bar on stderr that is gone when its work is done; a terminal alone sees it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


@contextmanager
def passing_bar(title: str, *columns: "ProgressColumn") -> Iterator[Callable[[int, int, str], None]]:
    """A bar between its title and what is worked on; tell what is yielded ``(done, total, what)``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    around = TextColumn(title), BarColumn(), *columns, TextColumn("{task.fields[what]}", markup=False)
    # Into a file or a pipe a bar would leave an empty line.
    with Progress(*around, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None, what="")
        yield lambda done, total, what: bars.update(task, completed=done, total=total, what=what)
