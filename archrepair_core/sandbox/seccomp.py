"""Seccomp: which system calls a process may make, for itself and all it starts. Linux >= 3.17, needs no privilege.

A filter of classic BPF is installed that answers "not permitted" to the calls `system_calls` names. The binding on PyPI
needs a C library that a wheel cannot bring; the filter is a few comparisons.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable

from archrepair_core.sandbox.landlock import forbid_new_privileges
from archrepair_core.sandbox.system_calls import (
    AF_UNIX,
    ARCHITECTURES,
    CLONE_THREAD,
    DENIED,
    NUMBERS,
    OWN_PROCESS_ONLY,
    PARENT_DEATH_REQUEST,
    TERMINAL_REQUESTS,
)

# linux/bpf_common.h: load a word, compare it with a constant, return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
# struct seccomp_data: where the number, the architecture and the lower half of an argument stand.
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000
_SET_FILTER, _ALL_THREADS, _IS_AVAILABLE = 1, 1, 2


def seccomp_is_available() -> bool:
    """Whether this kernel takes filters and we know its system calls by number."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    number = NUMBERS["seccomp"][_column(platform.machine())]
    action = ctypes.c_uint32(_ERROR)
    return int(ctypes.CDLL(None).syscall(number, _IS_AVAILABLE, 0, ctypes.byref(action))) == 0


def restrict_system_calls() -> None:
    """From now on every thread of this process is denied what `system_calls` names. Raises OSError if it cannot."""
    if not seccomp_is_available():
        raise OSError("the kernel takes no seccomp filters, or the processor is of an unknown kind")
    forbid_new_privileges()
    program = filter_program(os.getpid(), platform.machine())
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and a pointer to them.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    library = ctypes.CDLL(None, use_errno=True)
    number = NUMBERS["seccomp"][_column(platform.machine())]
    if library.syscall(number, _SET_FILTER, _ALL_THREADS, header):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def filter_program(pid: int, machine: str) -> bytes:
    """The filter for the process `pid` on `machine`, eight bytes an instruction."""
    column, denied, allowed = _column(machine), _answer(_ERROR | errno.EPERM), _answer(_ALLOW)
    program = _load(_ARCHITECTURE_AT) + _jump(_EQUAL, ARCHITECTURES[machine], if_true=1) + _answer(_KILL)
    program += _load(_NUMBER_AT)
    if machine == "x86_64":  # it has a second set of numbers for the same calls
        program += _jump(_AT_LEAST, _X32_BIT, if_false=1) + denied
    bodies = dict.fromkeys(DENIED, denied)
    # The C library falls back to `clone`, whose flags a filter can read. Threads are allowed, processes are not.
    bodies["clone3"] = _answer(_ERROR | errno.ENOSYS)
    bodies["clone"] = _load_argument(0) + _jump(_ANY_BIT, CLONE_THREAD, if_true=1) + denied + allowed
    bodies["ioctl"] = _load_argument(1) + _one_of(TERMINAL_REQUESTS, denied) + allowed
    bodies["prctl"] = _load_argument(0) + _one_of([PARENT_DEATH_REQUEST], denied) + allowed
    bodies["socketpair"] = _load_argument(0) + _one_of([AF_UNIX], allowed) + denied
    for name in OWN_PROCESS_ONLY:
        bodies[name] = _load_argument(0) + _one_of([pid], allowed) + denied
    # Zero means the caller itself here; for `kill` it means its whole group.
    bodies["prlimit64"] = _load_argument(0) + _one_of([0, pid], allowed) + denied
    for name, body in bodies.items():
        number = NUMBERS[name][column]
        if number is not None:
            program += _jump(_EQUAL, number, if_false=len(body) // 8) + body
    return program + allowed


def _column(machine: str) -> int:
    return list(ARCHITECTURES).index(machine)


def _load(position: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, position)


def _load_argument(index: int) -> bytes:
    """The lower half: all the arguments looked at are ints to the kernel."""
    return _load(_ARGUMENTS_AT + 8 * index)


def _jump(condition: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Skip so many of the following instructions."""
    return struct.pack("=HBBI", condition, if_true, if_false, value)


def _one_of(values: Iterable[int], body: bytes) -> bytes:
    return b"".join(_jump(_EQUAL, value, if_false=len(body) // 8) + body for value in values)


def _answer(action: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, action)
