"""One archive as one job in a real engine process, as a worker runs it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.archrepair_core.hostile.archives import NUM_CLASSES
from worker.engine_events import Result
from worker.engine_process import EngineProcess
from worker.engine_run import Failure, Watcher, run_engine
from worker.limits import EngineLimits


@dataclass(frozen=True)
class JobEnding:
    """`code` and `problem` of a failed job, `succeeded` and nothing of another; the log is what the engine printed."""

    code: str
    problem: dict[str, Any]
    log: str
    seconds: float


def run_as_job(archive: bytes, scratch_root: Path, limits: EngineLimits) -> JobEnding:
    """Start an engine, give it the archive with eight labelled images, and see how it ends."""
    started_at = time.monotonic()
    engine = EngineProcess(limits, scratch_root=scratch_root)
    try:
        (engine.scratch.inputs / "model.pt").write_bytes(archive)
        write_images(engine.scratch.inputs / "data.npz")
        request = {
            "model": str(engine.scratch.inputs / "model.pt"),
            "datasets": {"upload:repair": str(engine.scratch.inputs / "data.npz")},
            "spec": {"datasets": {"repair": "upload:repair"}, "repair": {"budget_seconds": 1}},
            "work_dir": str(engine.scratch.work),
            "out_dir": str(engine.scratch.out),
        }
        watcher = Watcher(
            on_progress=lambda _: None,
            on_model=lambda _: None,
            on_localized=lambda _: None,
            on_dataset=lambda _: None,
            on_resolved_spec=lambda _: None,
            on_tick=lambda: None,
            interruption=lambda: None,
        )
        ending = run_engine(engine, request, watcher=watcher, limits=limits)
    finally:
        engine.close()
    assert isinstance(ending, Result | Failure)
    problem = ending.problem if isinstance(ending, Failure) else {}
    log = engine.log.content().decode("utf-8", "replace")
    return JobEnding(problem.get("code", "succeeded"), problem, log, time.monotonic() - started_at)


def write_images(path: Path) -> None:
    """Grey 8×8 images of random pixels and labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=generator.integers(0, NUM_CLASSES, 64))
