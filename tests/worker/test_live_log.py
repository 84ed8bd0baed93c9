"""What an engine says is there while it says it, and stays whatever becomes of the attempt."""

import threading
import time
from functools import partial

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from app.joblog import log_lines
from app.shared.claims import claim_job
from app.shared.joblog import ATTEMPT_BYTES, LOG, record_log
from app.shared.jobs import request_cancel
from app.shared.tables import Job, JobEvent
from worker.engine_log import EngineLog
from worker.live_log import LiveLog
from worker.supervisor import run_next_job


def said(service, job_id, *, tail=10_000, attempt=None):
    """(attempt, source, text) of every line."""
    with service.bench.sessions() as session:
        lines = log_lines(session, job_id, tail=tail, attempt=attempt, after=0)
    return [(line.attempt, line.source, line.text) for line in lines]


def engine_said(service, job_id):
    return [text for _, source, text in said(service, job_id) if source == "engine"]


@pytest.mark.slow
def test_the_log_is_there_while_the_job_runs_and_is_bounded(service, scratch_root, eventually):
    job_id = service.submit("log_and_wait")
    thread = threading.Thread(target=partial(run_next_job, service.bench))
    thread.start()
    eventually(lambda: service.job(job_id).progress)
    begun_at = time.monotonic()
    eventually(lambda: "the first words" in engine_said(service, job_id))
    assert time.monotonic() - begun_at < 3
    version = service.job(job_id).version

    for work in scratch_root.glob("*/work"):
        (work / "more").touch()
    eventually(lambda: engine_said(service, job_id)[-1].startswith("9999 "))
    kept = service.events(job_id, LOG)
    assert sum(len(row.data["text"]) for row in kept) <= ATTEMPT_BYTES
    assert service.job(job_id).version == version, "what watches the job is not woken by its log"
    with service.bench.sessions.begin() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    thread.join(10)
    assert engine_said(service, job_id)[-1].startswith("9999 ")
    gaps = [text for _, source, text in said(service, job_id) if source == "service" and "left out" in text]
    assert len(gaps) == 1, "a gap is said"
    assert b"the first words\n0 xxx" in service.artifacts(job_id)["engine.log"][1], "the file is not cut so early"


def test_the_logs_of_all_attempts_are_kept_and_told_apart(service):
    job_id = service.submit("crash")
    while run_next_job(service.bench):
        pass
    lines = said(service, job_id)
    assert [line for line in lines if line[1] == "engine"] == [
        (1, "engine", "about to crash"),
        (2, "engine", "about to crash"),
    ]
    told = [text.split()[0] for _, source, text in lines if source == "service"]
    assert told == ["job.created", "job.started", "job.requeued", "job.started", "job.failed"]
    assert said(service, job_id, attempt=1) == [line for line in lines if line[0] == 1]
    assert said(service, job_id, tail=2) == lines[-2:]


def test_a_given_back_attempt_leaves_its_log(service, eventually):
    job_id = service.submit("log_and_wait")
    thread = threading.Thread(target=partial(run_next_job, service.bench))
    thread.start()
    eventually(lambda: service.job(job_id).progress)
    service.bench.stopping.set()
    thread.join(10)
    assert (service.job(job_id).status, service.artifacts(job_id)) == ("queued", {})
    assert engine_said(service, job_id) == ["the first words"]


def test_the_customer_sees_no_stack_trace_of_ours_and_the_operator_does(service):
    job_id = service.submit("log_and_crash")
    with capture_logs() as logs:
        run_next_job(service.bench)
    assert engine_said(service, job_id) == ["ValueError: their fault"]
    assert service.job(job_id).error["log_tail"] == ["ValueError: their fault"]
    assert service.artifacts(job_id)["engine.log"][1] == b"ValueError: their fault\n"
    (entry,) = [entry for entry in logs if entry["event"] == "the engine failed"]
    assert (entry["job_id"], entry["log_level"]) == (job_id, "error")
    assert '  File "ours.py", line 1, in secret_name' in entry["engine"]


def test_a_worker_that_lost_its_job_writes_nothing_into_its_log(service):
    job_id = service.submit("succeed")
    with service.bench.sessions.begin() as session:
        held = claim_job(session, owner="worker-0", lease_seconds=60)
    with service.bench.sessions.begin() as session:
        seq = record_log(session, held, b"mine\x00 \xff\n", start=0)
    with service.bench.sessions.begin() as session:
        session.execute(update(Job).values(attempt=2))
    with service.bench.sessions.begin() as session:
        assert record_log(session, held, b"not mine any more\n", start=7, forgetting=[seq]) is None
        texts = session.scalars(select(JobEvent.data).where(JobEvent.type == LOG)).all()
    assert texts == [{"attempt": 1, "text": "mine\ufffd \ufffd\n", "start": 0, "end": 8}]
    assert engine_said(service, job_id) == ["mine\ufffd \ufffd"]


def test_rows_make_room_once_the_new_one_is_written():
    log, written, rows = EngineLog(1 << 20), [], iter([1, 2, None, 4])

    def write(lines, start, forgetting):
        written.append((len(lines), start, list(forgetting)))
        return next(rows)

    live = LiveLog(log, write)
    half = ATTEMPT_BYTES // 2
    for _ in range(4):
        log.append(b"x" * (half - 1) + b"\n")
        live.flush()
    live.flush()
    # The third was not written, so the first was not forgotten then.
    assert written == [(half, 0, []), (half, half, []), (half, 2 * half, [1]), (half, 3 * half, [1])]
