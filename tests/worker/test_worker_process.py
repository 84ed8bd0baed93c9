"""The whole worker: Celery's main process, its spawned pool process, a real broker; only the engine is a double."""

import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from standardwebhooks import Webhook

from app.shared.claims import claim_job
from app.shared.db import db_now
from app.shared.outbox import relay_outbox
from app.shared.queue import RING_TASK, make_celery, ring
from app.shared.reaping import reap_expired
from app.shared.tables import WebhookDelivery, WorkerRow
from archrepair_client.processes import Child, Program
from tests.servers import environment_of, free_port, running, stored_keys, valkey_command


@pytest.fixture
def settings(stack, tmp_path, monkeypatch):
    port = free_port()
    settings = stack.fresh(tmp_path / "state", broker_url=f"redis://:secret@127.0.0.1:{port}/0", lease_seconds=1.5,
                           egress_allow=("127.0.0.0/8",), webhook_retry_seconds=(0.1,))  # fmt: skip
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

    def submit(behave, **options):
        job_id = service.submit(behave, **options)
        with service.bench.sessions() as session:
            relay_outbox(session, lambda: ring(celery))
            session.commit()
        return job_id

    yield submit
    celery.close()


@pytest.mark.slow
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


class MakesADirectory:
    """Unpickled, it has made one: what a pickle may do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.slow
def test_who_reaches_the_broker_can_ring_and_nothing_more(service, settings, submit, worker, eventually, tmp_path):
    celery = make_celery(settings)
    names = [{"task": RING_TASK, "id": "1", "lang": "py"}, {"task": "os.system", "id": "2", "lang": "py"}]
    with celery.connection_for_write() as connection, connection.Producer() as producer:
        for number, headers in enumerate(names):
            producer.publish(pickle.dumps(MakesADirectory(tmp_path / f"made-{number}")), routing_key="celery",
                             content_type="application/x-python-serialize", content_encoding="binary",
                             headers=headers)  # fmt: skip
        producer.publish([["id"], {}, {}], routing_key="celery", serializer="json", headers=names[1])
    celery.close()
    job_id = submit("succeed")
    eventually(lambda: service.job(job_id).status == "succeeded", 45)
    assert worker.ended() is None
    assert list(tmp_path.glob("made-*")) == []


@pytest.mark.slow
def test_a_worker_is_known_while_it_lives_and_drains_before_it_goes(service, submit, worker, eventually):
    job_id = submit("run_for_ever")
    eventually(lambda: service.job(job_id).progress, 45)
    (row,) = known(service)
    assert (row.queues, row.device, row.draining) == (["cpu"], "cpu", False)
    assert service.job(job_id).owner.startswith(row.name + "/")

    os.kill(worker.pid, signal.SIGTERM)

    eventually(lambda: [row.draining for row in known(service)] in ([True], []), 8)
    eventually(lambda: service.job(job_id).status == "queued", 8)
    eventually(lambda: known(service) == [], 8)
    assert service.causes(job_id) == ["preempted"]


def known(service):
    with service.bench.sessions() as session:
        return session.scalars(select(WorkerRow)).all()


@pytest.mark.slow
def test_a_worker_frozen_past_its_lease_can_write_nothing_when_it_wakes(
    service, settings, submit, worker, processes, eventually, tmp_path
):
    go_on = tmp_path / "go-on"
    job_id = submit("wait_for_a_file", spec={"file": str(go_on)})
    eventually(lambda: service.job(job_id).progress, 45)
    engine = int(service.job(job_id).progress["message"])
    frozen = [pid for pid, _ in processes.tree(worker.pid) if pid != engine]
    eventually(lambda: frozen_between_transactions(service, frozen), 45)
    go_on.touch()  # its engine has a result, but nobody to take it
    eventually(lambda: taken_back(service) == [job_id], 10)
    with service.bench.sessions.begin() as session:
        held = claim_job(session, owner="worker-2", lease_seconds=600)
    assert (held.job_id, held.attempt) == (job_id, 2)

    for pid in frozen:
        os.kill(pid, signal.SIGCONT)

    eventually(lambda: not Path(f"/proc/{engine}").exists(), 10)
    eventually(lambda: stored_keys(settings, f"jobs/{job_id}") == [], 10)
    job = service.job(job_id)
    assert (job.status, job.owner, job.attempt, job.result) == ("running", "worker-2", 2, None)
    assert service.artifacts(job_id) == {}
    assert service.causes(job_id) == ["worker_lost", None]


def frozen_between_transactions(service, pids) -> bool:
    """Stop the processes; let them go on again where one holds SQLite's only write lock, which nobody could break."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with service.bench.sessions.begin() as session:
            db_now(session)
    except OperationalError:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        return False
    return True


def taken_back(service):
    with service.bench.sessions.begin() as session:
        return reap_expired(session)


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


@pytest.mark.slow
def test_webhooks_outlive_the_gateway_that_promised_them_and_the_worker_that_had_them(
    settings, start_gateway, submission, service, receiver, request, processes, eventually
):
    def rows():
        with service.bench.sessions() as session:
            return session.scalars(select(WebhookDelivery)).all()

    with start_gateway(settings) as gateway:
        wanted = {"url": receiver.url, "events": ["job.created", "job.started"]}
        endpoint = gateway.client.post("/v1/webhook-endpoints", json=wanted).json()
        job_id = gateway.client.post("/v1/jobs", files=submission()).json()["id"]
        gateway.process.kill()
    assert [row.event for row in rows()] == ["job.created"]
    receiver.pause_seconds = 60
    worker = request.getfixturevalue("worker")
    eventually(lambda: receiver.got and len(rows()) == 2, 45)  # and the job has started
    tree = processes.tree(worker.pid)
    os.kill(worker.pid, signal.SIGKILL)  # the message is out, what became of it is not written
    processes.wait_until_gone(tree, 2)
    assert worker.ended() == "was killed by SIGKILL"
    receiver.pause_seconds = 0
    with service.bench.sessions.begin() as session:
        a_minute_later = update(WebhookDelivery).where(WebhookDelivery.state == "pending")
        session.execute(a_minute_later.values(next_attempt_at=db_now()))
    worker.start()

    eventually(lambda: {row.event for row in rows() if row.state == "delivered"} == set(wanted["events"]), 60)
    told = [Webhook(endpoint["secret"]).verify(body, headers) for headers, body in receiver.got]
    assert {said["data"]["id"] for said in told} == {job_id}
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert set(ids) == {row.id for row in rows() if row.state == "delivered"}
    assert ids.count(ids[0]) == 2, "it comes again, as the same"
