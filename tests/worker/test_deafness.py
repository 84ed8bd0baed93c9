"""A worker that idles beside a job it could claim does not hear any more."""

import pytest
from obstore.exceptions import GenericError

from app.shared import storage
from app.shared.claims import claim_job
from app.shared.workers import Worker
from worker.deafness import DeafnessWatch

WORKER = Worker("host:1:ULID", ("cpu",), "cpu", "1")


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def deaf_after(service, clock):
    """Whether the worker is found to be deaf so many seconds from the start."""
    watch = DeafnessWatch(WORKER, service.bench.store, None, seconds=100, clock=lambda: clock[0])

    def look(seconds):
        clock[0] = seconds
        with service.bench.sessions() as session:
            return watch.is_deaf(session)

    return look


def test_a_worker_without_work_is_not_deaf(deaf_after):
    assert not deaf_after(0)
    assert not deaf_after(1000)


def test_a_worker_that_leaves_a_job_waiting_is_deaf_after_a_while(service, deaf_after):
    service.submit("succeed")
    assert not deaf_after(0)
    assert not deaf_after(99)
    assert deaf_after(101)


def test_a_worker_at_work_is_not_deaf_however_many_wait(service, deaf_after):
    for _ in range(2):
        service.submit("succeed")
    with service.bench.sessions.begin() as session:
        assert claim_job(session, owner=f"{WORKER.name}/process", lease_seconds=60)
    assert not deaf_after(0)
    assert not deaf_after(1000)


def test_a_job_of_another_queue_is_no_sign(service, deaf_after):
    service.submit("succeed", hardware="gpu")
    assert not deaf_after(0)
    assert not deaf_after(1000)


def test_while_the_store_is_away_it_waits_on_purpose(service, deaf_after, monkeypatch):
    def refuse(_store):
        raise GenericError("away")

    service.submit("succeed")
    assert not deaf_after(0)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "probe", refuse)
        assert not deaf_after(101)
    assert not deaf_after(150)
    assert deaf_after(251)
