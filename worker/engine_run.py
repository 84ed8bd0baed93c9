"""Watching one engine through one job: what it says becomes calls, how it ends becomes a value.

Ending
├── Result        the engine's last word on success
├── Failure       the problem of a failed job, the engine's or ours
└── Interruption  we stopped it: cancelled, overdue, lost (somebody else has the job) or stopped (the worker goes down)
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.engine_events import (
    DatasetFound,
    EngineProblem,
    Event,
    Localized,
    ModelFound,
    Progress,
    Ready,
    ResolvedSpec,
    Result,
)
from worker.engine_process import EngineProcess, ProtocolError
from worker.limits import EngineLimits

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Failure:
    """Why a job failed, as problem fields."""

    problem: dict[str, Any]


@dataclass(frozen=True)
class Interruption:
    """Why the job was ended before it was done; `kept` is what a cancelled one handed over when it was asked to."""

    reason: Literal["cancelled", "overdue", "lost", "stopped"]
    kept: Result | None = None


Ending = Result | Failure | Interruption


@dataclass(frozen=True)
class Watcher:
    """What the job wants to hear of the engine, and whether it still wants the engine at all."""

    on_progress: Callable[[Progress], None]
    on_model: Callable[[ModelFound], None]
    on_localized: Callable[[Localized], None]
    on_dataset: Callable[[DatasetFound], None]
    on_resolved_spec: Callable[[dict[str, Any]], None]
    on_tick: Callable[[], None]
    interruption: Callable[[], Interruption | None]


def run_engine(engine: EngineProcess, request: Mapping[str, Any], *, watcher: Watcher, limits: EngineLimits) -> Ending:
    """Run the request to its end. The engine and its children are gone when this returns, whatever happened."""
    started_at = time.monotonic()
    try:
        while True:
            for event in engine.pump(POLL_SECONDS):
                ending = _handle(event, engine, request, watcher)
                if ending is not None:
                    engine.wait(limits.grace_seconds)
                    return ending
            watcher.on_tick()
            ending = watcher.interruption() or _overdue(time.monotonic() - started_at, limits)
            if ending is not None:
                return ending
            if engine.exited():
                return _after_exit(engine, request, watcher)
    except ProtocolError as error:
        return Failure(_problem("platform.engine_failed", f"the engine process wrote {error}", _OUR_DEFECT))
    finally:
        engine.kill()


def _handle(event: Event, engine: EngineProcess, request: Mapping[str, Any], watcher: Watcher) -> Ending | None:
    match event:
        case Ready():
            engine.send(request)
        case Progress():
            watcher.on_progress(event)
        case ModelFound():
            watcher.on_model(event)
        case Localized():
            watcher.on_localized(event)
        case DatasetFound():
            watcher.on_dataset(event)
        case ResolvedSpec():
            watcher.on_resolved_spec(event.spec)
        case Result():
            return event
        case EngineProblem():
            return Failure(event.model_dump(exclude={"type"}))
    return None


def _after_exit(engine: EngineProcess, request: Mapping[str, Any], watcher: Watcher) -> Ending:
    """What it said just before it ended still counts; else the exit code has to say it all."""
    for event in engine.drain():
        ending = _handle(event, engine, request, watcher)
        if ending is not None:
            return ending
    return Failure(engine.problem())


def _overdue(seconds: float, limits: EngineLimits) -> Failure | None:
    if seconds < limits.max_runtime_seconds:
        return None
    detail = f"the job ran longer than {limits.max_runtime_seconds:g} s, the limit of this service for one job"
    hint = (
        "set repair.budget_seconds below it, or ask the operator for more (ARCHREPAIR_ENGINE_MAX_RUNTIME_SECONDS, or "
        "ARCHREPAIR_ENGINE_MAX_INSPECTION_SECONDS for looking at a model alone)"
    )
    return Failure(_problem("job.max_runtime_exceeded", detail, hint, category="user"))


_OUR_DEFECT = "this is a defect of the service, not of your upload; report it with the id of the job"


def _problem(code: str, detail: str, hint: str, category: str = "platform") -> dict[str, str]:
    return {"code": code, "detail": detail, "hint": hint, "category": category}
