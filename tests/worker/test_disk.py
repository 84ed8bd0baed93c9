"""A disk without room: no job begins there, and one that met it runs again."""

import errno
import os

import pytest

from app.shared import storage
from worker import disk, job, supervisor
from worker.supervisor import run_next_job


def refuse(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_at_first(monkeypatch):
    """The disk is full when the worker fetches the inputs, and has room again afterwards."""
    downloads = iter([refuse])
    real = storage.download

    def download(*args, **options):
        return next(downloads, real)(*args, **options)

    monkeypatch.setattr(job, "RETRY_SECONDS", ())
    monkeypatch.setattr(storage, "download", download)


def test_no_job_is_claimed_where_there_is_no_room(service, monkeypatch):
    job_id = service.submit("succeed")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "ROOM_BYTES", 1 << 62)
        assert run_next_job(service.bench) is False
    assert (service.job(job_id).status, service.job(job_id).attempt) == ("queued", 0)
    assert run_next_job(service.bench) is True
    assert service.job(job_id).status == "succeeded"


def test_no_job_is_claimed_where_no_engine_can_be_started(service, monkeypatch):
    job_id = service.submit("succeed")
    service.bench.engines.close()
    with monkeypatch.context() as patch:
        patch.setattr("worker.scratch.tempfile.mkdtemp", refuse)
        assert run_next_job(service.bench) is False
    assert (service.job(job_id).status, service.job(job_id).attempt) == ("queued", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("full_at_first")
def test_a_job_that_met_a_full_disk_runs_again(service):
    job_id = service.submit("succeed")
    run_next_job(service.bench)
    assert service.job(job_id).status == "queued"
    run_next_job(service.bench)
    assert service.job(job_id).status == "succeeded"
    assert service.causes(job_id) == ["platform_error", "succeeded"]


@pytest.mark.usefixtures("full_at_first")
def test_a_job_without_attempts_left_says_that_the_disk_was_full(service):
    job_id = service.submit("succeed", max_attempts=1)
    run_next_job(service.bench)
    job = service.job(job_id)
    assert (job.status, job.error["code"], job.error["category"]) == ("failed", "worker.disk_full", "platform")
    assert "ARCHREPAIR_STATE_DIR" in job.error["hint"]


@pytest.mark.parametrize("behave", ["leave", "crash"])
def test_an_engine_that_broke_down_on_a_full_disk_is_not_to_blame(service, monkeypatch, behave):
    job_id = service.submit(behave, max_attempts=1)
    answers = iter([True])
    monkeypatch.setattr(supervisor, "has_room", lambda _directory: next(answers, False))
    run_next_job(service.bench)
    assert service.job(job_id).error["code"] == "worker.disk_full"


def test_a_result_is_not_lost_because_its_log_finds_no_room(service, monkeypatch):
    job_id = service.submit("succeed")
    service.bench.engines.warm()
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    run_next_job(service.bench)
    assert service.job(job_id).status == "succeeded"
    assert set(service.artifacts(job_id)) == {"repaired.pt", "report.json"}
