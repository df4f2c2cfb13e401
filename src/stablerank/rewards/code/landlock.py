"""Landlock: this process may read a few folders and write nowhere, root or not.

It also keeps the process from the memory, the environment and (kernel 6.12) the signals of all others, which
``/proc/PID`` would give to any process of the same user.

Source: ``linux/landlock.h``. Needs Linux 5.13 with Landlock among the active security modules.
"""

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ALL_OF_FIRST_VERSION = (1 << 13) - 1
_REFER, _TRUNCATE, _DEVICE_IOCTL = 1 << 13, 1 << 14, 1 << 15
_TCP, _SCOPES = 0b11, 0b11


def restrict(libc: ctypes.CDLL, readable: Iterable[str]) -> bool:
    """Confine this process for good; whether the kernel took it. Paths that do not exist are passed over."""
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    attributes = _handled(version)
    ruleset = libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path in readable:
        if os.path.exists(path):
            _allow_reading(libc, ruleset, path)
    return bool(ruleset >= 0 and libc.syscall(_RESTRICT, ruleset, 0) == 0)


def _handled(version: int) -> bytes:
    """Everything that this version of Landlock can deny."""
    files = _ALL_OF_FIRST_VERSION
    for since, access in ((2, _REFER), (3, _TRUNCATE), (5, _DEVICE_IOCTL)):
        files |= access if version >= since else 0
    if version < 4:
        return struct.pack("=Q", files)
    return struct.pack("=QQ", files, _TCP) if version < 6 else struct.pack("=QQQ", files, _TCP, _SCOPES)


def _allow_reading(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    access = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, folder), 0)
    os.close(folder)
