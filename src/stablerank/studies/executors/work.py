"""What a scheduler's worker does for a cell: start its process here, wait, and say how it ended.

The cell is tethered to the worker: a worker that is killed, or whose machine is lost, takes the cell with it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stablerank.studies.processes import cell_process

_SETTINGS = ("STABLERANK_", "HF_")
"""Beginnings of the variables that decide what a cell reads, which hold on every machine as they do here."""


@dataclass(frozen=True)
class Order:
    """One cell as a worker is told of it: files, working directory, settings and threads of the runner."""

    file: str
    log: str
    directory: str
    settings: Mapping[str, str]
    threads: int


def order(file: Path, log: Path, threads: int) -> Order:
    """An order in this process's working directory and settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    return Order(str(file.resolve()), str(log.resolve()), os.getcwd(), settings, threads)


def work(order: Order) -> int:
    """Run the cell to its end; its exit code, negative for a signal."""
    os.environ.update(order.settings)
    os.environ["OMP_NUM_THREADS"] = str(order.threads)
    os.chdir(order.directory)
    process = cell_process(Path(order.file), Path(order.log), order.threads)
    return process.wait()
