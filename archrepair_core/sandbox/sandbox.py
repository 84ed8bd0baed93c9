"""The sandbox of a process that is about to open a stranger's model: what it may still read, write and ask the kernel.

Three layers, each for what the others cannot see: Landlock for files, TCP and signals; seccomp for sockets, processes
and the kernel's rarer doors; capabilities, which only root has to lose. No layer needs a privilege.
"""

import ctypes
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import archrepair_core
from archrepair_core.errors import EngineError, SpecError
from archrepair_core.sandbox.landlock import DEVICE, READ, WRITE, landlock_version, restrict_paths
from archrepair_core.sandbox.seccomp import restrict_system_calls, seccomp_is_available

Mode = Literal["required", "best_effort", "off"]

# What Python, torch and a GPU driver look up. Nothing below /etc, /run or /proc that could hold a secret; the other
# processes in /proc stay closed, since command lines and environments hold passwords.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/openssl.cnf"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/version"),
    *("/proc/devices", "/proc/driver/nvidia", "/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/random"),
    *("/sys/devices", "/sys/fs/cgroup", "/sys/bus/pci", "/sys/module", "/sys/class", "/sys/kernel/mm"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "nvidia-caps/*", "nvidia-uvm*", "kfd", "dri/*")
# Root without these could not read a checkout that belongs to somebody else; Landlock says which files anyway.
_KEPT_CAPABILITIES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPABILITY_VERSION = 0x20080522


@dataclass(frozen=True)
class Layer:
    """One layer of the sandbox: whether it holds, and which version or why not."""

    name: str
    holds: bool
    detail: str


def enter_sandbox(mode: Mode, *, readable: Sequence[Path], writable: Sequence[Path]) -> tuple[Layer, ...]:
    """Close everything but these paths and what Python itself needs, for good. Temporary files go to `writable[0]`.

    Call it before other threads exist: Landlock binds the caller and the threads it starts later. Raises EngineError
    `sandbox_unavailable` when mode is `required` and a layer does not hold.
    """
    if mode == "off":
        return tuple(Layer(name, False, "switched off") for name, _ in _layers((), ()))
    # Both names: libraries ask the environment, Python remembers what it once found.
    os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(writable[0])
    layers = tuple(_enter(name, enter) for name, enter in _layers(readable, writable))
    if mode == "required":
        refuse_gaps(layers)
    return layers


def parse_mode(name: str) -> Mode:
    """The mode of this name. Raises SpecError `unknown_sandbox`."""
    modes: tuple[Mode, ...] = get_args(Mode)
    for mode in modes:
        if mode == name:
            return mode
    raise SpecError("unknown_sandbox", f"there is no sandbox mode {name!r}", hint=f"use one of {', '.join(modes)}")


def missing_layers() -> tuple[Layer, ...]:
    """What `enter_sandbox` could not close on this machine, found without closing anything."""
    layers = (
        Layer("files", landlock_version() > 0, "the kernel offers no Landlock"),
        Layer("system calls", seccomp_is_available(), "the kernel takes no seccomp filters"),
    )
    return tuple(layer for layer in layers if not layer.holds)


def refuse_gaps(layers: Iterable[Layer]) -> None:
    """Raises EngineError `sandbox_unavailable` when one of the layers does not hold."""
    gaps = [f"{layer.name} ({layer.detail})" for layer in layers if not layer.holds]
    if gaps:
        raise EngineError(
            "sandbox_unavailable",
            f"the sandbox is required, but this machine cannot close: {', '.join(gaps)}",
            hint="use Linux >= 5.13 with Landlock and seccomp, or set ARCHREPAIR_ENGINE_SANDBOX=best_effort",
        )


def describe_layers(layers: Iterable[Layer]) -> str:
    """One line for a log."""
    return ", ".join(f"{layer.name}: {'closed' if layer.holds else 'OPEN'} ({layer.detail})" for layer in layers)


def _layers(readable: Sequence[Path], writable: Sequence[Path]) -> tuple[tuple[str, Callable[[], str]], ...]:
    """Files before system calls: a filter may well be what keeps Landlock's calls from being made."""

    def close_files() -> str:
        return f"Landlock {restrict_paths(_rules(readable, writable))}"

    def close_system_calls() -> str:
        restrict_system_calls()
        return "seccomp"

    return (("privileges", _drop_capabilities), ("files", close_files), ("system calls", close_system_calls))


def _enter(name: str, enter: Callable[[], str]) -> Layer:
    try:
        return Layer(name, True, enter())
    except OSError as error:
        return Layer(name, False, str(error))


def _rules(readable: Sequence[Path], writable: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    for path in (*map(Path, _SYSTEM), *_interpreter_paths(), *readable):
        yield path, READ
    for pattern in _DEVICES:
        for path in Path("/dev").glob(pattern):
            yield path, DEVICE
    for path in writable:
        yield path, WRITE


def _interpreter_paths() -> Iterator[Path]:
    """The standard library, the installed packages and our own: never a whole directory that only contains them."""
    yield Path(archrepair_core.__file__).parent
    yield from (Path(path) for path in sysconfig.get_paths().values())
    yield from (Path(path) for path in (*site.getsitepackages(), site.getusersitepackages()))
    yield from (Path(path) for path in sys.path if {"site-packages", "dist-packages"} & set(Path(path).parts))
    for prefix in {sys.prefix, sys.base_prefix}:
        yield from (Path(prefix, name) for name in ("lib", "lib64", "bin", "share", "pyvenv.cfg"))
    yield from (Path(path) for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path.startswith("/"))


def _drop_capabilities() -> str:
    """What root may do beyond others, but for reading files of others."""
    if sys.platform != "linux":
        raise OSError("capabilities are a thing of Linux")
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Effective, permitted and inheritable, the lower 32 of each, then the upper.
    sets = (ctypes.c_uint32 * 6)()
    if library.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    kept = [value & _KEPT_CAPABILITIES for value in sets[:2]]
    if library.capset(header, (ctypes.c_uint32 * 6)(*kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset")
    return "no capabilities" if not any(kept) else "no capabilities but to read files of others"
