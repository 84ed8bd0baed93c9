"""The whole worker: Celery's main process, its spawned pool process, a real broker; only the engine is a double."""

import os
import signal
import sys
from pathlib import Path

import pytest

from app.shared.outbox import relay_outbox
from app.shared.queue import make_celery, ring
from archrepair_client.processes import Child, Program
from tests.servers import environment_of, free_port, running, valkey_command


@pytest.fixture
def settings(stack, tmp_path, monkeypatch):
    port = free_port()
    settings = stack.fresh(tmp_path / "state", broker_url=f"redis://:secret@127.0.0.1:{port}/0", lease_seconds=1.5)
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ARCHREPAIR_SECRET_OF_THE_TEST", "not for engines")
    with running(valkey_command(port, "secret")):
        yield settings


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
