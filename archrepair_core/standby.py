"""`python -m archrepair_core.standby SANDBOX INPUTS WORK OUT`: an engine that has all imported and waits for one job.

It reads nothing but INPUTS and writes nothing but WORK and OUT, as far as this machine can see to it. Importing torch
costs seconds, so the worker keeps one of these warm. It says `ready`, reads one request line from stdin, runs that job,
reports by events and exits 0, also after an error it could name. Anything else is a crash.
"""

import json
import math
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archrepair_core.errors import ArchRepairError, EngineError
from archrepair_core.events import FINISH_SIGNAL, EventPipe, open_event_pipe
from archrepair_core.sandbox.sandbox import describe_layers, enter_sandbox, parse_mode
from archrepair_core.spec import RepairSpec

if TYPE_CHECKING:
    from archrepair_core.facts import Inspection
    from archrepair_core.localize.rank import Localization
    from archrepair_core.progress import OnProgress, Progress


def main(arguments: Sequence[str]) -> int:
    """Run one job, or none when stdin closes first. Without arguments there is no sandbox."""
    stop = threading.Event()
    signal.signal(FINISH_SIGNAL, lambda _signal, _frame: stop.set())
    events = open_event_pipe()
    if arguments and not _close_off(arguments, events):
        return 0
    # Not at the top: what torch prints while it is imported must already find the descriptors rearranged.
    import archrepair_core.repair  # noqa: F401

    events.send("ready")
    line = sys.stdin.buffer.readline()
    if line:
        run_job(json.loads(line), events, stopped=stop.is_set)
    return 0


def _close_off(arguments: Sequence[str], events: EventPipe) -> bool:
    """Before torch is imported: the threads it starts must find the sandbox closed. False: the worker knows why."""
    mode, inputs, *writable = arguments
    try:
        layers = enter_sandbox(parse_mode(mode), readable=[Path(inputs)], writable=[Path(path) for path in writable])
    except EngineError as error:
        events.send("error", **error.to_problem(), phase="ingesting")
        return False
    sys.stderr.write(f"sandbox: {describe_layers(layers)}\n")
    return True


def run_job(request: Mapping[str, Any], events: EventPipe, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Do what the request's spec says; whatever happens, the last event is `result` or `error`.

    A repair hands over the best it has once `stopped()`.
    """
    phase = "ingesting"

    def on_progress(progress: "Progress") -> None:
        nonlocal phase
        phase = progress.phase
        events.send("progress", **vars(progress))

    kind = request["spec"].get("kind")
    try:
        KINDS.get(kind, partial(_repair, stopped=stopped))(request, events, on_progress)
    except ArchRepairError as error:
        traceback.print_exc()
        events.send("error", **error.to_problem(), phase=phase)
    except Exception as error:  # noqa: BLE001  the border of the process: the traceback goes to the log, the name out
        traceback.print_exc()
        events.send("error", **problem_of_crash(error), phase=phase)


def problem_of_crash(error: Exception) -> dict[str, str]:
    """An unexpected exception as problem fields: its type only, since messages may quote the customer's data."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        code, detail = "worker.out_of_memory", "the engine ran out of memory"
        hint = "use a smaller model or fewer samples, or a machine with more memory"
    else:
        code, detail = "platform.engine_failed", f"the engine stopped with an unexpected {type(error).__name__}"
        hint = "this is a defect of the service, not of your upload; report it with the id of the job"
    return {"code": code, "detail": detail, "hint": hint, "category": "platform"}


def _repair(
    request: Mapping[str, Any], events: EventPipe, on_progress: "OnProgress", *, stopped: Callable[[], bool]
) -> None:
    from archrepair_core.repair import repair_model
    from archrepair_core.request import RepairRequest

    outcome = repair_model(
        RepairRequest(
            model=Path(request["model"]),
            datasets={name: Path(path) for name, path in request["datasets"].items()},
            spec=RepairSpec.model_validate(request["spec"]),
            work_dir=Path(request["work_dir"]),
            out_dir=Path(request["out_dir"]),
            max_seconds=request.get("max_seconds", math.inf),
        ),
        on_progress,
        on_inspected=lambda inspection: _send_model(inspection, events),
        on_localized=lambda localization: _send_localization(localization, events),
        stopped=stopped,
    )
    events.send("resolved_spec", spec=outcome.resolved_spec)
    artifacts = [{"name": artifact.name, "kind": artifact.kind} for artifact in outcome.artifacts]
    events.send("result", result=outcome.result, verdict=outcome.verdict, artifacts=artifacts)


def _inspect(request: Mapping[str, Any], events: EventPipe, on_progress: "OnProgress") -> None:
    from archrepair_core.facts import inspect_model
    from archrepair_core.progress import Progress

    on_progress(Progress("ingesting", 0.0, "checking the model"))
    shape = request["spec"]["input_shape"]
    model, work_dir = Path(request["model"]), Path(request["work_dir"])
    _send_model(inspect_model(model, work_dir, input_shape=tuple(shape) if shape else None), events)
    events.send("result", result={"outcome": "inspected"}, verdict="not_evaluated", artifacts=[])


def _ingest(request: Mapping[str, Any], events: EventPipe, on_progress: "OnProgress") -> None:
    from archrepair_core.data.describe import describe_dataset
    from archrepair_core.progress import Progress

    on_progress(Progress("ingesting", 50.0, "reading the data"))
    files = {name: Path(path) for name, path in request["datasets"].items()}
    facts = describe_dataset(request["spec"]["datasets"]["dataset"], files, Path(request["work_dir"]))
    events.send("dataset", facts=facts)
    events.send("result", result={"outcome": "ingested"}, verdict="not_evaluated", artifacts=[])


MAX_TOLD_BLOCKS = 64
# Every other kind is a repair: its spec says how far to go.
KINDS: dict[str | None, Callable[..., None]] = {"inspect": _inspect, "ingest": _ingest}


def _send_localization(localization: "Localization", events: EventPipe) -> None:
    """The head of the ranking, before a repair begins that may take hours."""
    blocks = [{"name": row.name, "score": row.score} for row in localization.blocks[:MAX_TOLD_BLOCKS]]
    events.send("localization", method=localization.method, fault=localization.kind, blocks=blocks)


def _send_model(inspection: "Inspection", events: EventPipe) -> None:
    events.send("model", **inspection.to_json())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
