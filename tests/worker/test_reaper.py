import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app.shared.claims import claim_job
from app.shared.jobs import request_cancel
from app.shared.models import submit_inspection
from app.shared.tables import Job, Model, OutboxMessage
from app.shared.workers import Worker
from tests.servers import stored_keys
from worker import reaper
from worker.deafness import DeafnessWatch
from worker.reaper import sweep, sweep_until
from worker.supervisor import run_next_job

WORKER = Worker("box:1:A", ("cpu",), "cpu", "0.1")


def unsent(service):
    with service.bench.sessions() as session:
        return len(session.scalars(select(OutboxMessage).where(OutboxMessage.sent_at.is_(None))).all())


def silence_the_worker_of(service):
    with service.bench.sessions.begin() as session:
        claim_job(session, owner="worker-1", lease_seconds=60)
        session.execute(update(Job).values(lease_until=1.0))


def test_a_silent_workers_job_waits_again_and_the_bell_rings(service):
    job_id = service.submit("succeed")
    silence_the_worker_of(service)
    rings = []

    assert sweep(service.bench.sessions, lambda: rings.append(1)) == [job_id]

    assert service.job(job_id).status == "queued"
    assert rings
    assert unsent(service) == 0


def test_a_broker_outage_keeps_the_rings_for_later(service):
    service.submit("succeed")

    def refuse():
        raise ConnectionError("no broker")

    with pytest.raises(ConnectionError):
        sweep(service.bench.sessions, refuse)
    assert unsent(service) == 1
    rings = []
    sweep(service.bench.sessions, lambda: rings.append(1))
    assert (len(rings), unsent(service)) == (1, 0)


def test_a_waiting_job_whose_ring_the_broker_lost_is_rung_for_again(service):
    service.submit("succeed")
    sweep(service.bench.sessions, lambda: None)
    rings = []
    sweep(service.bench.sessions, lambda: rings.append(1))
    assert rings == []
    with service.bench.sessions.begin() as session:
        session.execute(update(OutboxMessage).values(sent_at=1.0))
    sweep(service.bench.sessions, lambda: rings.append(1))
    assert rings == [1]


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)  # S3 cannot hold an old file for us
def test_the_sweeps_go_on_after_an_outage(service, monkeypatch):
    monkeypatch.setattr(reaper, "SWEEP_SECONDS", 0.01)
    job_id = service.submit("succeed")
    silence_the_worker_of(service)
    stopped, calls = threading.Event(), []

    def ring():
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionError("no broker")
        stopped.set()

    old = Path(service.bench.store.prefix) / "tmp" / "upload"
    old.parent.mkdir()
    old.touch()
    os.utime(old, (1.0, 1.0))

    sweep_until(stopped, service.bench.sessions, ring, store=service.bench.store, **sweep_options(service))
    assert service.job(job_id).status == "queued"
    assert not old.exists()
    assert unsent(service) == 0


def sweep_options(service):
    watch = DeafnessWatch(WORKER, service.bench.store, None)
    return {"worker": WORKER, "retention_days": 90, "watch": watch, "give_up": pytest.fail}


def inspections(service):
    with service.bench.sessions() as session:
        return session.scalars(select(Job).where(Job.kind == "inspect")).all()


def test_a_model_whose_job_was_cancelled_before_it_looked_gets_an_inspection(service):
    job_id = service.submit("succeed")
    with service.bench.sessions.begin() as session:
        request_cancel(session, session.get_one(Job, job_id), keep_best=False)
    rings = []

    for _ in range(2):
        sweep(service.bench.sessions, lambda: rings.append(1))

    assert [(job.model_id, job.status) for job in inspections(service)] == [(service.model_id, "queued")]
    assert rings


def test_a_model_that_kills_its_workers_is_rejected_and_not_tried_for_ever(service):
    with service.bench.sessions.begin() as session:
        job_id = submit_inspection(session, session.get_one(Model, service.model_id), max_attempts=2).id
    for _ in range(2):
        silence_the_worker_of(service)
        sweep(service.bench.sessions, lambda: None)

    assert service.job(job_id).error["code"] == "worker.lost"
    with service.bench.sessions() as session:
        model = session.get_one(Model, service.model_id)
    assert (model.state, model.error["code"]) == ("rejected", "worker.lost")
    assert len(inspections(service)) == 1


def test_a_job_that_was_kept_long_enough_goes_with_all_it_has(service, settings, monkeypatch, eventually):
    monkeypatch.setattr(reaper, "SWEEP_SECONDS", 0.01)
    kept, expired = (service.submit("succeed", keep_seconds=seconds) for seconds in (3600.0, 0.0))
    for _ in range(2):
        assert run_next_job(service.bench) is True
    stopped = threading.Event()
    sweeping = threading.Thread(
        target=sweep_until,
        args=(stopped, service.bench.sessions, lambda: None),
        kwargs={"store": service.bench.store, **sweep_options(service)},
    )
    sweeping.start()
    eventually(lambda: expired not in jobs_of(service))
    stopped.set()
    sweeping.join()
    assert service.job(kept).expires_at == pytest.approx(service.job(kept).finished_at + 3600)
    keys = stored_keys(settings)
    assert not [key for key in keys if expired in key]
    assert [key for key in keys if kept in key]
    assert "blobs/sha256/data" in keys, "the other job has it too"


def jobs_of(service):
    with service.bench.sessions() as session:
        return set(session.scalars(select(Job.id)))
