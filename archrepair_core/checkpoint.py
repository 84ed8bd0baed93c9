"""What a job that is killed at any moment leaves, so that its next attempt goes on and ends as it would have.

Three things make a repair: the trainings, the decisions that hung on a clock, and the seconds spent. Trainings are
safetensors with JSON beside the tensors, written beside, synced and renamed: reading one never runs what is in it.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

EVERY_SECONDS = 15.0
# Of what is left here: an attempt whose code is of another version does not find it, and begins anew.
VERSION = 4
SUFFIX, DECISIONS = f".{VERSION}.safetensors", f"decisions.{VERSION}"
_META = "state"


@dataclass(frozen=True)
class Saved:
    """Tensors by name, and plain data."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_state(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Replace `path` by this state; whoever reads sees the old one or the new one, whole."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(save(plain, metadata={_META: json.dumps(dict(meta))}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_state(path: Path) -> Saved | None:
    """The state at `path`; None when there is none, or none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(_META, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError, ValueError):
        return None
    return Saved(tensors, meta) if isinstance(meta, dict) else None


@dataclass
class Checkpoints:
    """The folder of one job; `spent_before` are the seconds its earlier attempts spent here.

    Build it with `open_checkpoints`.
    """

    directory: Path
    every_seconds: float
    spent_before: float
    _decided: list[float]
    _opened: float = field(default_factory=time.monotonic)

    def at(self, digest: str) -> "Checkpoint":
        """Where the training of this digest leaves itself."""
        return Checkpoint(self, self.directory / (digest + SUFFIX))

    def decide(self, value: float) -> float:
        """`value`, or what the earlier attempt decided at this point: decisions come again in the same order."""
        if self._decided:
            return self._decided.pop(0)
        with (self.directory / DECISIONS).open("ab") as file:
            file.write(f"{float(value)!r}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        return float(value)

    @property
    def spent(self) -> float:
        """Seconds of this job since its first attempt opened the folder, without those between attempts."""
        return self.spent_before + time.monotonic() - self._opened


def open_checkpoints(directory: Path, *, every_seconds: float = EVERY_SECONDS) -> Checkpoints:
    """Continue with what `directory` holds, or begin there."""
    directory.mkdir(exist_ok=True)
    states = [load_state(path) for path in sorted(directory.glob(f"*{SUFFIX}"))]
    spent = max((state.meta.get("spent", 0.0) for state in states if state), default=0.0)
    return Checkpoints(directory, every_seconds, spent, _read_decisions(directory / DECISIONS))


def _read_decisions(path: Path) -> list[float]:
    """The whole lines; a last one that was being written is removed."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    if whole:
        os.truncate(path, len(whole) + 1)
    return [float(line) for line in whole.split()]


@dataclass
class Checkpoint:
    """Where one training leaves itself every few seconds, and what it became in the end."""

    owner: Checkpoints
    path: Path
    _written: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= self.owner.every_seconds

    def write(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Leave this state instead of the one before."""
        save_state(self.path, tensors, {**meta, "spent": self.owner.spent})
        self._written = time.monotonic()

    def read(self) -> Saved | None:
        """The state that was left."""
        return load_state(self.path)
