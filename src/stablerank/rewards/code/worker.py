"""Entry of every process of the sandbox: confine first, then be what the trainer asked for.

Arguments: the role, CPU seconds, megabytes, what must be guarded (comma-separated), then file descriptors or a path.
Exit status 3 means that the kernel did not guard what must be guarded; no foreign code was read then.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

from stablerank.rewards.code.candidate import read_all, run_program, serve
from stablerank.rewards.code.confine import confine
from stablerank.rewards.code.judge import Channel, judge

UNGUARDED = 3


def main(arguments: list[str]) -> None:
    """Run one role to its end."""
    role, cpu_seconds, memory_mb, must, *rest = arguments
    guarded = confine(int(cpu_seconds), int(memory_mb))
    if not set(must.split(",")) - {""} <= guarded:
        sys.exit(UNGUARDED)
    if role == "probe":
        print(json.dumps(_tried(rest[0])))
        return
    first, *pipes = (int(descriptor) for descriptor in rest)
    if role == "program":
        run_program(read_all(first))
        return
    incoming, outgoing = os.fdopen(pipes[0], "rb"), os.fdopen(pipes[1], "wb")
    if role == "server":
        serve(read_all(first), incoming, outgoing)
    else:
        orders = json.loads(read_all(first))
        judge(orders["tests"], Channel(outgoing, incoming), sys.stdout.buffer, orders["stop_at_first"])


def _tried(trainers_file: str) -> dict[str, bool]:
    """What really holds, by trying: no answer of the kernel is taken on trust."""
    paths = (trainers_file, f"/proc/{os.getppid()}/environ")
    return {
        "network": not _succeeds(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
        "processes": not _succeeds(_fork),
        "files": not any(_succeeds(partial(os.open, path, os.O_RDONLY)) for path in paths),
    }


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
