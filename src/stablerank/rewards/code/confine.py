"""What a process of the sandbox does to itself before it reads a line of foreign code. Linux only.

In this order: it dies with the trainer; limits; it renounces core dumps and being looked into; Landlock; every
capability; seccomp. None can be taken back. Standard library only: the process has no site-packages.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
import sysconfig

from stablerank.rewards.code import landlock, seccomp

OUTPUT_BYTES = 1 << 20
_OPEN_FILES = 64
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITIES_VERSION_3 = 0x20080522


def confine(cpu_seconds: int, memory_mb: int) -> set[str]:
    """Confine this process; which of ``network`` (with it: processes) and ``files`` the kernel agreed to guard."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _limit(cpu_seconds, memory_mb)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    guarded = {"files"} if landlock.restrict(libc, _readable()) else set()
    libc.capset(struct.pack("=Ii", _CAPABILITIES_VERSION_3, 0), bytes(24))
    if seccomp.install(libc):
        return guarded | {"network"}
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # the best that is left; does not bind root, forbids threads
    return guarded


def _limit(cpu_seconds: int, memory_mb: int) -> None:
    """Hard limits equal soft ones: SIGXCPU could be caught. Standard output is a file, so its size is one of them."""
    for what, limit in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def _readable() -> set[str]:
    """The standard library, the shared libraries that it may load late, and time zones."""
    libraries = {os.path.join(sys.base_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    devices = {"/dev/null", "/dev/urandom", "/dev/zero"}
    library = sysconfig.get_paths()
    return {library["stdlib"], library["platstdlib"], *libraries, *devices, "/usr/share/zoneinfo"}
