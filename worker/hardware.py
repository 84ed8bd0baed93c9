"""What this worker's engines run on, and which queues it serves. Found without torch, which costs seconds."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.shared.workers import CPU, GPU, QUEUES

_ASKING_SECONDS = 10
_HIDDEN = ("", "-1", "none", "void", "NoDevFiles")


class WorkerSettings(BaseSettings):
    """Which jobs this worker takes. One worker per GPU: `gpu` is the device of its engines, as CUDA numbers them."""

    model_config = SettingsConfigDict(env_prefix="ARCHREPAIR_", frozen=True, extra="ignore")

    queues: str = Field("auto", description="Of cpu and gpu, with commas; auto: cpu, and gpu where there is one.")
    gpu: str | None = Field(None, description="Number or UUID of the GPU of this worker's engines.")

    @field_validator("queues")
    @classmethod
    def _known(cls, queues: str) -> str:
        unknown = [name for name in _names(queues) if name not in QUEUES]
        if queues != "auto" and (unknown or not _names(queues)):
            raise ValueError(f"ARCHREPAIR_QUEUES is {queues!r}: name {', '.join(QUEUES)} or auto")
        return queues


def choose_device(settings: WorkerSettings) -> str:
    """Show this process, and the engines it starts, the GPU it was given; the name of what they will compute on.

    A worker that does not serve the queue of GPUs leaves them to those that do.
    """
    if settings.queues != "auto" and GPU not in _names(settings.queues):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif settings.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.gpu
    return find_gpu(os.environ) or CPU


def queues_of(settings: WorkerSettings, device: str) -> tuple[str, ...]:
    """The queues to claim from."""
    if settings.queues != "auto":
        return _names(settings.queues)
    return (CPU,) if device == CPU else (GPU, CPU)


def find_gpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> str | None:
    """The name of the first NVIDIA GPU this process may see; None when there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in _HIDDEN:
        return None
    if not any(devices.glob("nvidia[0-9]*")):
        return None
    first = (visible or "0").split(",")[0].strip()
    return _name_of(first) or f"NVIDIA GPU {first}"


def _name_of(gpu: str) -> str | None:
    asked = ["nvidia-smi", f"--id={gpu}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=_ASKING_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver without its tools still computes
        return None
    return answer.stdout.strip()[:200] or None


def _names(queues: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in queues.split(",") if name.strip())
