"""One job from claim to ending: fetch its inputs, watch its engine, keep its lease, store what it leaves.

All knowledge about repairing is in the engine; all knowledge about jobs is in `app.shared.jobs`.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from obstore.exceptions import BaseError as StoreError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.shared import storage
from app.shared.causes import OUTAGES
from app.shared.checkpoints import new_checkpoint_key, record_checkpoint
from app.shared.claims import claim_job
from app.shared.datasets import INGEST, record_dataset, settle_datasets
from app.shared.db import DATABASE_GONE
from app.shared.joblog import record_log
from app.shared.jobs import (
    Claim,
    StoredArtifact,
    fail_job,
    finish_job,
    record_localization,
    record_progress,
    record_resolved_spec,
    release_job,
)
from app.shared.models import INSPECT, record_model, settle_model
from app.shared.reaping import deadline_exceeded
from app.shared.telemetry import trace_id_of, tracer_of
from worker.attempts import STORING, Timeline, record_attempt
from worker.checkpoints import CheckpointKeeper
from worker.disk import DISK_FULL, has_room, says_full
from worker.engine_events import DatasetFound, Localized, ModelFound, Progress, Result
from worker.engine_process import ENGINE_CRASHED, EngineProcess
from worker.engine_run import Ending, Failure, Interruption, Watcher, run_engine
from worker.finishing import Finishing
from worker.inputs import fetch_inputs
from worker.job import Interrupted, Job, Workbench, interruption_of, persist
from worker.lease import kept_lease
from worker.limits import EngineLimits
from worker.live_log import LiveLog
from worker.outputs import plain_file, store_file, store_log
from worker.progress import ProgressRows
from worker.references import FetchFailed

if TYPE_CHECKING:
    pass

# How engines end that found no room on the disk, and did not expect that.
BREAKDOWNS = ("platform.engine_failed", ENGINE_CRASHED)
LOG_TAIL_LINES = 40
OUTAGE_POLL_SECONDS = 2.0


def run_next_job(bench: Workbench) -> bool:
    """Claim a job and bring it to an ending. False: no job was waiting, or none can be run here now."""
    if not _can_work(bench):
        return False
    with bench.sessions.begin() as session:
        claim = claim_job(
            session,
            owner=bench.owner,
            lease_seconds=bench.lease_seconds,
            queues=bench.queues,
            running_jobs=bench.running_jobs,
        )
    if claim is None:
        return False
    log = structlog.get_logger().bind(job_id=claim.job_id, attempt=claim.attempt)
    if trace_id := trace_id_of(claim.traceparent):
        log = log.bind(trace_id=trace_id)
    log.info("job started")
    with (
        kept_lease(bench.sessions, claim, lease_seconds=bench.lease_seconds) as lease,
        closing(bench.engines.take()) as engine,
    ):
        overdue_at = math.inf if claim.seconds_left is None else time.monotonic() + claim.seconds_left
        live_log = LiveLog(engine.log, partial(_write_log, bench, claim, log))
        finishing = Finishing(engine, claim.kind, seconds=bench.limits.keep_best_seconds)
        job = Job(bench, claim, lease, engine, log, overdue_at, Timeline(), live_log, finishing)
        ending, stored = _run(job)
        written = _write_ending(job, ending, stored)
        _settle_model(job)
    log.info("job ended", ending=type(ending).__name__, written=written)
    record_attempt(claim, job.timeline, ending, tracer_of(bench.tracing))
    if isinstance(ending, Failure) and ending.problem["code"] in OUTAGES:
        _await_store(bench)
    return True


def _can_work(bench: Workbench) -> bool:
    """Whether an engine and room on the disk are there: a job claimed without would only lose an attempt."""
    try:
        room = has_room(bench.engines.warm().scratch.root)
    except OSError:
        structlog.get_logger().exception("no engine could be started")
        return False
    if not room:
        structlog.get_logger().error("no job is claimed: the disk is full", directory=str(bench.settings.state_dir))
    return room


def _await_store(bench: Workbench) -> None:
    """Until it answers, every job claimed would only lose an attempt."""
    while not bench.stopping.wait(OUTAGE_POLL_SECONDS):
        try:
            storage.probe(bench.store)
        except (StoreError, OSError):
            continue
        return


def _run(job: Job) -> tuple[Ending, Sequence[StoredArtifact]]:
    """The ending, and what is in the store for it. Every way to fail becomes an ending here."""
    engine = job.engine
    try:
        request = fetch_inputs(job)
        ending = _kept(job, _run_keeping_checkpoints(job, request))
        job.timeline.enter(STORING)
        _warm_next(job)
        result = ending.kept if isinstance(ending, Interruption) else ending
        named = result.artifacts if isinstance(result, Result) else []
        stored = [store_file(job, plain_file(job.scratch.out, item), item.kind) for item in named]
    except Interrupted as interrupted:
        engine.kill()
        ending, stored = interrupted.interruption, []
    except Exception as error:  # the border of a job: a defect here must end this job, not the worker
        job.log.exception("the worker failed")
        engine.kill()
        # Told to stop while waiting for the store: the job goes back and runs again, it did not fail.
        ending, stored = interruption_of(job) or _failure_of(error), []
    if isinstance(ending, Failure) and job.finishing.was_asked:
        job.log.warning("nothing was kept of a cancelled job", code=ending.problem["code"])
        ending, stored = Interruption("cancelled"), []
    if isinstance(ending, Interruption) and ending.reason == "overdue":
        ending = Failure(deadline_exceeded(job.claim.timeout_seconds or 0.0))
    if isinstance(ending, Failure) and ending.problem["code"] in BREAKDOWNS and not has_room(job.scratch.root):
        ending = Failure(DISK_FULL)
    job.live_log.flush()
    if isinstance(ending, Failure) and ending.problem.get("category") == "platform":
        # The customer gets no stack traces of ours, so that they have to be here.
        job.log.error("the engine failed", code=ending.problem["code"], engine=engine.log.raw_lines(LOG_TAIL_LINES))
    return _with_log_tail(ending, engine), [*stored, *store_log(job, ending)]


def _kept(job: Job, ending: Ending) -> Ending:
    """A repair that ended because it was asked to is cancelled, with what it has; one that was done anyway is done."""
    if isinstance(ending, Result) and job.finishing.was_asked and ending.result.get("completion") == "partial":
        return Interruption("cancelled", kept=ending)
    return ending


def _run_keeping_checkpoints(job: Job, request: dict[str, Any]) -> Ending:
    """Another machine may have to go on from here, if this one dies or gives the job back."""
    archive = job.scratch.work.parent / "checkpoints.tar"
    keeper = CheckpointKeeper(
        job.scratch.work, archive, partial(_store_checkpoint, job), max_bytes=job.bench.limits.checkpoint_bytes
    )
    keeper.start()
    try:
        limits = _limits(job)
        request |= {"max_seconds": limits.max_runtime_seconds}
        ending = run_engine(job.engine, request, watcher=_watcher(job), limits=limits)
    finally:
        keeper.close()
    goes_on = isinstance(ending, Failure) and ending.problem["code"] == ENGINE_CRASHED
    if goes_on or (isinstance(ending, Interruption) and ending.reason == "stopped"):
        keeper.keep()
    return ending


def _store_checkpoint(job: Job, archive: Path) -> bool:
    key = new_checkpoint_key(job.claim)
    storage.put_file(job.bench.store, key, archive)
    with job.bench.sessions.begin() as session:
        before = record_checkpoint(session, job.claim, key)
    # The one that the row does not name: the one before, or ours when the job is somebody else's by now.
    if before is not None:
        storage.delete(job.bench.store, before)
    return before != key


def _limits(job: Job) -> EngineLimits:
    """An inspection gets less time: it has no training to do, only a stranger's file that may not end."""
    limits = job.bench.limits
    if job.claim.kind not in (INSPECT, INGEST):
        return limits
    seconds = min(limits.max_runtime_seconds, limits.max_inspection_seconds)
    return limits.model_copy(update={"max_runtime_seconds": seconds})


def _warm_next(job: Job) -> None:
    """Have the next engine import torch while we upload; should that fail, it is tried again for the next job."""
    if not job.bench.stopping.is_set():
        try:
            job.bench.engines.warm()
        except OSError:
            job.log.exception("no engine could be started ahead")


def _write_log(
    bench: Workbench, claim: Claim, log: Any, lines: bytes, start: int, forgetting: Sequence[int]
) -> int | None:
    """A piece of the log as a row. Not tried again: the whole log is stored at the end, and no job waits for this."""
    try:
        with bench.sessions.begin() as session:
            return record_log(session, claim, lines, start=start, forgetting=forgetting)
    except DATABASE_GONE as error:
        log.warning("a piece of the log not written", error=str(error))
        return None


def _watcher(job: Job) -> Watcher:
    def write(session_call: Callable[[Session], bool]) -> None:
        try:
            with job.bench.sessions.begin() as session:
                session_call(session)  # False is a lost lease, which the lease itself will tell
        except DATABASE_GONE as error:
            job.log.warning("progress not written", error=str(error))

    def write_progress(event: Progress) -> None:
        progress = event.model_dump(exclude={"type", "phase"})
        write(partial(record_progress, claim=job.claim, phase=event.phase, progress=progress))

    def write_model(event: ModelFound) -> None:
        # Tried again, unlike progress: nobody says it a second time.
        persist(job, partial(_record_model, job, event))

    def write_localization(event: Localized) -> None:
        write(partial(record_localization, claim=job.claim, localization=event.model_dump(exclude={"type"})))

    def write_dataset(event: DatasetFound) -> None:
        persist(job, partial(_record_dataset, job, event))

    def hear(event: Progress) -> None:
        job.finishing.enter(event.phase)
        job.timeline.enter(event.phase)
        rows.offer(event)

    def tick() -> None:
        rows.flush_due()
        job.live_log.flush_due()

    rows = ProgressRows(write_progress)
    return Watcher(
        on_progress=hear,
        on_model=write_model,
        on_localized=write_localization,
        on_dataset=write_dataset,
        on_resolved_spec=lambda spec: write(partial(record_resolved_spec, claim=job.claim, spec=spec)),
        on_tick=tick,
        interruption=partial(interruption_of, job),
    )


def _record_model(job: Job, event: ModelFound) -> bool:
    with job.bench.sessions.begin() as session:
        return record_model(session, job.claim, event.model_dump(mode="json", exclude={"type"}))


def _record_dataset(job: Job, event: DatasetFound) -> bool:
    with job.bench.sessions.begin() as session:
        return record_dataset(session, job.claim, event.facts.model_dump(mode="json"))


def _settle_model(job: Job) -> None:
    """Say at once what the ending means for the model or dataset; where this fails, the sweep says it."""
    try:
        with job.bench.sessions.begin() as session:
            if job.claim.model_id is not None:
                settle_model(session, job.claim.model_id)
            else:
                settle_datasets(session)
    except SQLAlchemyError as error:
        job.log.warning("not settled", error=str(error))


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, FetchFailed):
        return Failure(error.problem)
    if says_full(error):
        return Failure(DISK_FULL)
    if isinstance(error, FileNotFoundError):
        detail, hint = "an input of the job is no longer in the object store", "upload model and data again"
        return Failure({"code": "platform.input_missing", "detail": detail, "hint": hint, "category": "platform"})
    if isinstance(error, (StoreError, *DATABASE_GONE)):
        down = "store" if isinstance(error, StoreError) else "database"
        detail, hint = f"the {down} did not answer for half a minute", "nothing to do: it is tried again when it does"
        code = f"platform.{down}_unavailable"
        return Failure({"code": code, "detail": detail, "hint": hint, "category": "platform"})
    return Failure(
        {
            "code": "platform.worker_failed",
            "detail": f"the worker failed with {type(error).__name__} outside the engine",
            "hint": "this is a defect of the service or its store, not of your upload; submit the job again",
            "category": "platform",
        }
    )


def _with_log_tail(ending: Ending, engine: EngineProcess) -> Ending:
    if isinstance(ending, Failure):
        return Failure({**ending.problem, "log_tail": engine.log.last_lines(LOG_TAIL_LINES)})
    return ending


def _write_ending(job: Job, ending: Ending, artifacts: Sequence[StoredArtifact]) -> bool:
    """Write the last row, fenced. False: the job is not ours or runs again, and what we stored for it is removed."""

    def write() -> bool:
        with job.bench.sessions.begin() as session:
            if isinstance(ending, Interruption) and ending.reason == "lost":
                return False
            if isinstance(ending, Interruption) and ending.reason == "stopped":
                return release_job(session, job.claim)
            if isinstance(ending, Failure):
                return fail_job(session, job.claim, error=ending.problem, artifacts=artifacts) == "failed"
            return finish_job(session, job.claim, **_ending_columns(ending), artifacts=artifacts)

    written = persist(job, write)
    if not written:
        for artifact in artifacts:
            storage.delete(job.bench.store, artifact.storage_key)
    return written


def _ending_columns(ending: Ending) -> dict[str, Any]:
    match ending:
        case Result():
            return {"status": "succeeded", "result": ending.result, "verdict": ending.verdict, "cause": "succeeded"}
        case Interruption(kept=Result() as kept):
            return {"status": "cancelled", "result": kept.result, "verdict": kept.verdict, "cause": "cancelled"}
        case _:
            return {"status": "cancelled", "cause": "cancelled"}
