"""A seccomp filter: no new programs, no sockets, no hand on other processes; threads stay allowed.

Why seccomp and not an empty network namespace: it needs no privilege, works inside containers and under AppArmor, where
unprivileged namespaces are forbidden, and stops a fork bomb at its first fork, for root too, whom no limit on the
number of processes binds. A denied call fails with EPERM, so the code under test sees an exception.

Source: classic BPF, ``linux/filter.h``, ``linux/seccomp.h``; the layout of ``seccomp_data`` is nr, arch, instruction
pointer, six 64-bit arguments. Only the low half of an argument is read: all that are tested are ints.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from stablerank.rewards.code import syscalls

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_CLONE_THREAD, _SOCK_STREAM, _SOCK_TYPE = 0x10000, 1, 0xF
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 10, 15, 0x8901, 0x8902
_EVERY_BIT = 0xFFFFFFFF
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(libc: ctypes.CDLL) -> bool:
    """Filter this process for good; whether the kernel took it. No new privileges must have been renounced before."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    code = b"".join(_program(*_ARCHITECTURES[machine], pid=os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _program(column: int, architecture: int, pid: int) -> list[bytes]:
    """All instructions. Another architecture, or x32 numbers on x86_64, would evade the numbers below."""
    lines = [_do(_LOAD, _ARCHITECTURE_AT), _do(_EQUAL, architecture, 1, 0), _do(_RETURN, _KILL)]
    lines += [_do(_LOAD, _NUMBER_AT), _do(_AT_LEAST, _X32, 0, 1), _do(_RETURN, _KILL)]
    for numbers in syscalls.DENIED.values():
        if (number := numbers[column]) is not None:
            lines += [_do(_EQUAL, number, 0, 1), _do(_RETURN, _REFUSE)]
    lines += [_do(_EQUAL, syscalls.CLONE3[column], 0, 1), _do(_RETURN, _UNKNOWN)]  # the C library turns to clone
    lines += _by_argument(syscalls.CLONE[column], 0, _CLONE_THREAD, [_CLONE_THREAD], _ALLOW, _REFUSE)
    lines += _by_argument(syscalls.SOCKETPAIR[column], 1, _SOCK_TYPE, [_SOCK_STREAM], _ALLOW, _REFUSE)
    lines += _by_argument(syscalls.KILL[column], 0, _EVERY_BIT, [pid], _ALLOW, _REFUSE)
    lines += _by_argument(syscalls.TGKILL[column], 0, _EVERY_BIT, [pid], _ALLOW, _REFUSE)
    lines += _by_argument(syscalls.PRLIMIT[column], 0, _EVERY_BIT, [0, pid], _ALLOW, _REFUSE)
    owners = [_F_SETOWN, _F_SETSIG, _F_SETOWN_EX]  # signals to others by way of a file
    lines += _by_argument(syscalls.FCNTL[column], 1, _EVERY_BIT, owners, _REFUSE, _ALLOW)
    lines += _by_argument(syscalls.IOCTL[column], 1, _EVERY_BIT, [_FIOSETOWN, _SIOCSPGRP], _REFUSE, _ALLOW)
    return [*lines, _do(_RETURN, _ALLOW)]


def _by_argument(
    number: int, argument: int, mask: int, values: Iterable[int], if_equal: int, otherwise: int
) -> list[bytes]:
    body = [_do(_LOAD, _ARGUMENTS_AT + 8 * argument), _do(_AND, mask)]
    for value in values:
        body += [_do(_EQUAL, value, 0, 1), _do(_RETURN, if_equal)]
    body.append(_do(_RETURN, otherwise))
    return [_do(_EQUAL, number, 0, len(body)), *body]


def _do(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
