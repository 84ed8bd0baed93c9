"""Gateway and workers that share nothing but database, broker and store, each worker with the real engine."""

import io
import os
import re
import signal
import sys
import tarfile
from contextlib import contextmanager, suppress

import pytest
from sqlalchemy import select

from app.shared.tables import Job
from tests.faults.deployment import family, kill
from tests.servers import environment_of, running, stored_bytes, stored_keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUDGET_SECONDS = 90


@pytest.fixture
def settings(stack, tmp_path):
    return stack.fresh(tmp_path / "state", lease_seconds=3, secret_key="of-the-tests-" * 4)


@contextmanager
def worker(settings, state_dir):
    """On a machine of its own, as far as files go."""
    state_dir.mkdir()
    environment = environment_of(settings.model_copy(update={"state_dir": state_dir}))
    command = (sys.executable, "-P", "-m", "worker.celery_app")
    with running(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, number=signal.SIGTERM) as process:
        yield process


def test_another_machine_goes_on_from_the_checkpoint_of_a_killed_one(
    settings, sessions, start_gateway, submission, case, tmp_path, eventually
):
    spec = {
        "datasets": {"repair": "upload:repair", "test": "upload:test"},
        "repair": {"method": "weights", "level": "network", "epochs": 1000, "budget_seconds": BUDGET_SECONDS},
        "seed": 3,
    }
    files = {"model": case.model.read_bytes(), "repair": case.repair.read_bytes(), "test": case.test.read_bytes()}

    def holds_a_training():
        """Whether the store has more than what was decided before the first training."""
        with sessions() as session:
            key = session.scalar(select(Job.checkpoint_key).where(Job.id == job_id))
        if key is None:
            return False
        with suppress(FileNotFoundError), tarfile.open(fileobj=io.BytesIO(stored_bytes(settings, key))) as archive:
            return any(name.endswith(".safetensors") for name in archive.getnames())
        return False  # replaced by a newer one meanwhile

    with start_gateway(settings) as gateway:
        job_id = gateway.client.post("/v1/jobs", files=submission(spec, **files)).raise_for_status().json()["id"]
        with worker(settings, tmp_path / "first") as first:
            eventually(holds_a_training, seconds=200)
            kill(family(first.pid))
        with worker(settings, tmp_path / "second"):
            job = eventually(lambda: done(gateway, job_id), seconds=400)
            eventually(lambda: not stored_keys(settings, "checkpoints"), seconds=30)
        log = next(item for item in job["artifacts"] if item["name"] == "engine.log")
        text = gateway.client.get(log["links"]["content"], follow_redirects=True).raise_for_status().text
    assert job["status"] == "succeeded", job["error"]
    assert [attempt["cause"] for attempt in job["attempts"]] == ["worker_lost", "succeeded"]
    assert len({attempt["worker"] for attempt in job["attempts"]}) == 2
    goes_on = re.search(r"goes on from a checkpoint: step (\d+) of (\d+)", text)
    assert goes_on, text
    assert 0 < int(goes_on[1]) < int(goes_on[2])


def test_what_one_machine_evaluates_another_serves(settings, start_gateway, submission, case, tmp_path, eventually):
    spec = {
        "kind": "evaluate",
        "datasets": {"test": "upload:test"},
        "evaluation": {"corruptions": ["fog"], "max_inputs": 100},
        "gates": ["test.accuracy >= 0.5", "corruptions.accuracy >= 0.99"],
    }
    files = {"model": case.model.read_bytes(), "test": case.test.read_bytes()}
    with start_gateway(settings) as gateway, worker(settings, tmp_path / "worker"):
        job_id = gateway.client.post("/v1/jobs", files=submission(spec, **files)).raise_for_status().json()["id"]
        job = eventually(lambda: done(gateway, job_id), seconds=200)
        page = gateway.client.get(f"/v1/jobs/{job_id}/report", params={"format": "html"}, follow_redirects=True)
    assert (job["status"], job["verdict"], job["error"]) == ("succeeded", "fail", None)
    assert [gate["state"] for gate in job["result"]["gates"]] == ["pass", "fail"]
    assert [row["kind"] for row in job["result"]["corruptions"]["kinds"]] == ["fog"]
    assert "Evaluation report" in page.raise_for_status().text


def done(gateway, job_id):
    """The job when it is done."""
    job = gateway.client.get(f"/v1/jobs/{job_id}", params={"wait": 10}).raise_for_status().json()
    return job if job["done"] else None
