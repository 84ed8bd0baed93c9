"""The whole worker: Celery's main process, its spawned pool process, a real broker; only the engine is a double."""

import os
import signal
import sys
from pathlib import Path

import pytest

from app.shared.outbox import relay_outbox
from app.shared.queue import make_celery, ring
from app.shared.settings import Settings
from archrepair_client.processes import Child, Program
from archrepair_client.up import broker_program, free_port, service_environment


@pytest.fixture
def settings(tmp_path, monkeypatch):
    broker_port = free_port("127.0.0.1", 0)
    environment = service_environment(tmp_path, f"redis://:secret@127.0.0.1:{broker_port}/0")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ARCHREPAIR_LEASE_SECONDS", "1.5")
    monkeypatch.setenv("ARCHREPAIR_SECRET_OF_THE_TEST", "not for engines")
    broker = Child(broker_program(broker_port, "secret", tmp_path, environment), tmp_path / "broker.log")
    yield Settings()
    broker.stop()


@pytest.fixture
def worker(settings, tmp_path):
    command = (sys.executable, "-P", str(Path(__file__).with_name("worker_with_double.py")))
    child = Child(Program("worker", command, dict(os.environ), stop_seconds=8), tmp_path / "worker.log")
    yield child
    child.stop(lambda: True)


@pytest.fixture
def submit(service, settings):
    celery = make_celery(settings)

    def submit(behave):
        job_id = service.submit(behave)
        with service.bench.sessions() as session:
            relay_outbox(session, lambda: ring(celery))
            session.commit()
        return job_id

    yield submit
    celery.close()


def test_a_ring_starts_the_job_and_sigterm_gives_it_back(service, submit, worker, processes, eventually):
    first, second = submit("succeed"), submit("run_for_ever")
    eventually(lambda: service.job(second).progress, 45)
    assert service.job(first).status == "succeeded"
    tree = processes.tree(worker.pid)
    engine = int(service.job(second).progress["message"])
    environment = Path(f"/proc/{engine}/environ").read_bytes()
    assert b"ARCHREPAIR_" not in environment
    assert b"PATH=" in environment

    os.kill(worker.pid, signal.SIGTERM)

    seconds = processes.wait_until_gone(tree, 8)
    assert seconds < 6
    assert worker.ended() == "ended with code 0"
    assert (service.job(second).status, service.job(second).attempt) == ("queued", 0)


def test_a_killed_worker_leaves_no_process_and_its_job_runs_again(service, submit, worker, processes, eventually):
    job_id = submit("run_for_ever")
    eventually(lambda: service.job(job_id).progress, 45)
    tree = processes.tree(worker.pid)
    assert str(service.job(job_id).progress["message"]) in {str(pid) for pid, _ in tree}

    os.kill(worker.pid, signal.SIGKILL)
    processes.wait_until_gone(tree, 2)
    assert worker.ended() == "was killed by SIGKILL"
    worker.start()

    eventually(lambda: service.job(job_id).attempt == 2 and service.job(job_id).progress, 45)
    assert [event.data["cause"] for event in service.events(job_id, "job.requeued")] == ["worker_lost"]
