import hashlib

import obstore
import pytest
from sqlalchemy import select, update

from app.shared import leftovers
from app.shared.claims import claim_job
from app.shared.ids import new_id
from app.shared.jobs import StoredArtifact, finish_job, submit_job
from app.shared.leftovers import sweep_attempts, sweep_contents
from app.shared.reaping import reap_expired
from app.shared.storage import artifact_key, blob_key, open_store
from app.shared.tables import Job, JobInput, Model
from tests.servers import stored_keys

NOW = {"older_than_seconds": -60}


@pytest.fixture
def store(settings):
    return open_store(settings.store_url)


@pytest.fixture
def lost_and_won(sessions, store, project_id, model_id):
    """Ends a job whose first attempt was lost after it had stored a file, which its second one stored too."""
    with sessions.begin() as session:
        job_id = submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id).id

    def attempt(number):
        with sessions.begin() as session:
            claim = claim_job(session, owner=f"worker-{number}", lease_seconds=-1 if number == 1 else 60)
        key = artifact_key(job_id, number, "repaired.pt")
        obstore.put(store, key, b"repaired")
        return claim, StoredArtifact("repaired.pt", "model", "application/zip", 8, "0" * 64, key)

    attempt(1)
    with sessions.begin() as session:
        assert reap_expired(session) == [job_id]
    claim, stored = attempt(2)

    def end():
        with sessions.begin() as session:
            assert finish_job(session, claim, status="succeeded", artifacts=[stored], cause="succeeded")
        return job_id

    return end


def sweep(sessions, store, **options):
    return sweep_attempts(sessions, store, **{"since_seconds": 3600, **NOW, **options})


def test_what_a_lost_attempt_stored_goes_when_the_job_has_ended(sessions, settings, store, lost_and_won):
    assert sweep(sessions, store) == 0, "while it runs, nobody knows what it will need"
    job_id = lost_and_won()
    assert sweep(sessions, store, older_than_seconds=3600) == 0, "a worker may still be at it"
    assert sweep(sessions, store) == 1
    assert stored_keys(settings, "jobs") == [artifact_key(job_id, 2, "repaired.pt")]
    assert sweep(sessions, store) == 0


def test_what_a_lost_attempt_did_not_finish_goes_too(sessions, settings, store, lost_and_won):
    job_id = lost_and_won()
    if settings.store_url.startswith("file:"):  # which `list` of a local store does not show
        (settings.state_dir / "objects" / artifact_key(job_id, 1, "report.json#1")).write_bytes(b"half")
        assert sweep(sessions, store) == 2
    assert sweep(sessions, store) <= 1
    assert stored_keys(settings, "jobs") == [artifact_key(job_id, 2, "repaired.pt")]


def test_jobs_that_ended_long_ago_are_not_looked_at_again(sessions, store, lost_and_won):
    job_id = lost_and_won()
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(finished_at=1.0))
    assert sweep(sessions, store) == 0


def put_content(store, content):
    key = blob_key(hashlib.sha256(content).hexdigest())
    obstore.put(store, key, content)
    return key


def test_contents_without_a_row_go_and_the_others_stay(sessions, settings, store, project_id, model_id):
    forgotten, of_model, of_input = (put_content(store, content) for content in (b"forgotten", b"model", b"data"))
    with sessions.begin() as session:
        columns = {"filename": "x", "size_bytes": 4}
        session.add(Model(id=new_id("mdl"), project_id=project_id, sha256=of_model[-64:], storage_key=of_model,
                          **columns))  # fmt: skip
        given = JobInput(name="upload:repair", sha256=of_input[-64:], storage_key=of_input, **columns)
        submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id, inputs=[given])
    assert sweep_contents(sessions, store, older_than_seconds=3600) == 0, "its row may be on its way"
    assert sweep_contents(sessions, store, **NOW) == 1
    assert stored_keys(settings, "blobs") == sorted([of_model, of_input]) != [forgotten]


def test_a_store_full_of_what_the_database_does_not_know_is_left_alone(sessions, settings, store, monkeypatch):
    monkeypatch.setattr(leftovers, "FEW", 2)
    keys = sorted(put_content(store, bytes([number])) for number in range(3))
    with sessions() as session:
        assert session.scalars(select(Model)).all() == []
    assert sweep_contents(sessions, store, **NOW) == 0
    assert stored_keys(settings, "blobs") == keys
