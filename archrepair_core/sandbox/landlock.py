"""Landlock: which files a process may open, for itself and all it starts. Linux >= 5.13, needs no privilege.

Rights are granted below paths; what no rule grants is denied. The right to execute is granted nowhere.
Interface: linux/landlock.h. The Python bindings on PyPI are pre-releases, and the interface is three system calls.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_GET_VERSION, _RULE_PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
# All rights that version N of the interface knows, by N; a later version adds what we do not name and so leave open.
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

READ = _READ_FILE | _READ_DIR
# No special files, no links to what lies elsewhere: a symbolic link could make the worker read a file for us.
WRITE = READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER
DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV

_TCP = (1 << 0) | (1 << 1)  # bind and connect, version 4
_SCOPES = (1 << 0) | (1 << 1)  # abstract unix sockets and signals to outside, version 6


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("access_fs", ctypes.c_uint64), ("access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def landlock_version() -> int:
    """The version of the interface this kernel offers, 0 when it offers none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION))


def restrict_paths(rules: Iterable[tuple[Path, int]]) -> int:
    """From now on this thread and its future threads open only what a rule (path, rights) grants.

    Paths that do not exist are skipped. Returns the version of Landlock in force. Raises OSError if it cannot.
    """
    version = landlock_version()
    if not version:
        raise OSError("the kernel offers no Landlock")
    handled = _HANDLED[min(version, max(_HANDLED))]
    attributes = _RulesetAttributes(handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    # Fields a version does not know must not be sent, not even as zeros.
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for path, rights in rules:
            _grant(ruleset, path, rights & handled)
        forbid_new_privileges()
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def forbid_new_privileges() -> None:
    """No program started from here gains privileges by set-user-id bits; the kernel wants it before any sandbox."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


def _grant(ruleset: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there, or not ours to see, needs no permission
    try:
        if not path.is_dir():
            rights &= _OF_FILES
        rule = _PathBeneath(rights, opened)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: object) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result
