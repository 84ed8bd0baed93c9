"""Jobs go whole and alone: over HTTP, and then what a worker's sweep removes, on real stores."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import obstore
import pytest
from sqlalchemy import func, select, update

from app.shared import deletion
from app.shared.contents import free_content
from app.shared.db import db_now
from app.shared.deletion import expire_jobs, keep_seconds, purge_jobs, schedule_expiry
from app.shared.storage import open_store
from app.shared.tables import Base, Job, WebhookDelivery
from tests.servers import keys_of_content, stored_bytes, stored_keys

RESULTS = [("repaired.pt", "model", b"PK repaired"), ("report.json", "report", b"{}")]
SPEC = {"datasets": {"repair": "upload:repair"}}


@pytest.fixture
def store(gateway):
    return open_store(gateway.settings.store_url)


@pytest.fixture
def files():
    """A model and data that no other test has."""
    return {"model": b"PK\x03\x04" + uuid.uuid4().bytes, "repair": uuid.uuid4().bytes}


@pytest.fixture
def done(submit, finish, files):
    """Submits a job, with files of its own unless told otherwise, and plays the worker that ends it."""

    def run(spec=SPEC, **sent):
        job = submit(spec, **(sent or files))
        finish(job["id"], files=RESULTS)
        return job

    return run


@pytest.fixture
def purge(gateway_sessions, store):
    """Plays the sweep until nothing is left to be removed."""

    def run():
        while purge_jobs(gateway_sessions, store):
            continue

    return run


def delete(gateway, job):
    answer = gateway.client.delete(job["links"]["self"])
    assert (answer.status_code, answer.content) == (204, b"")


def keys_of(gateway, job, files):
    """What there is in the store of the job and of its files."""
    contents = {key for content in files.values() for key in keys_of_content(gateway.settings, content)}
    return [key for key in stored_keys(gateway.settings) if job["id"] in key or key in contents]


def rows_of(sessions, job_id):
    """Table to number of rows that name the job, in all of the schema."""
    found = {"jobs": select(func.count()).where(Base.metadata.tables["jobs"].c.id == job_id)}
    for name, table in Base.metadata.tables.items():
        if "job_id" in table.c and name != "models":
            found[name] = select(func.count()).where(table.c.job_id == job_id)
    with sessions() as session:
        counts = {name: session.scalar(query) for name, query in found.items()}
    return {name: count for name, count in counts.items() if count}


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_deleted_job_is_gone_for_everybody_and_then_from_database_and_store(
    gateway, gateway_sessions, store, done, purge, files
):
    job = done()
    obstore.put(store, f"checkpoints/{job['id']}/1-x", b"left by an attempt")
    obstore.put(store, f"jobs/{job['id']}/attempt-0/half", b"of a worker that was lost")
    artifact_id = gateway.client.get(job["links"]["artifacts"]).json()["data"][0]["id"]
    assert len(keys_of(gateway, job, files)) == 6
    assert set(rows_of(gateway_sessions, job["id"])) == {"jobs", "job_inputs", "job_events", "attempts", "artifacts"}
    delete(gateway, job)
    for path in (*(job["links"][name] for name in ("self", "events", "logs", "artifacts", "model", "deliveries")),
                 f"/v1/artifacts/{artifact_id}/content"):  # fmt: skip
        assert gateway.client.get(path).status_code == 404, path
    for path in (job["links"]["retry"], job["links"]["cancel"]):
        assert refused(gateway.client.post(path)) == (404, "job.not_found")
    assert refused(gateway.client.delete(job["links"]["self"])) == (404, "job.not_found")
    assert gateway.client.get("/v1/jobs", params={"model_id": job["model_id"]}).json()["data"] == []
    purge()
    assert keys_of(gateway, job, files) == []
    assert rows_of(gateway_sessions, job["id"]) == {}
    assert gateway.client.get(f"/v1/models/{job['model_id']}").status_code == 404


def test_only_a_job_that_is_done_and_the_customers_own_is_deleted(gateway, gateway_sessions, submit, finish):
    job = submit()
    assert refused(gateway.client.delete(job["links"]["self"])) == (409, "job.not_finished")
    assert gateway.client.get(job["links"]["self"]).status_code == 200
    model = gateway.client.post("/v1/models", files={"model": ("m.pt", b"PK\x03\x04")}).json()
    with gateway_sessions() as session:
        inspection = session.scalars(select(Job.id).where(Job.model_id == model["id"])).one()
    finish(inspection)
    assert refused(gateway.client.delete(f"/v1/jobs/{inspection}")) == (409, "job.kind_refused")


@pytest.mark.slow
def test_bytes_that_another_job_has_too_stay_until_it_goes(gateway, done, purge, files):
    jobs = [done(), done()]
    again = gateway.client.post(jobs[0]["links"]["retry"]).json()
    gateway.client.post(again["links"]["cancel"])
    blobs = [key for content in files.values() for key in keys_of_content(gateway.settings, content)]
    assert len(blobs) == len(files)
    for job in jobs:
        delete(gateway, job)
        purge()
        assert keys_of(gateway, again, files) == sorted(blobs)
    assert gateway.client.get(f"/v1/models/{again['model_id']}").status_code == 200
    assert gateway.client.get(f"/v1/models/{jobs[1]['model_id']}").status_code == 404
    delete(gateway, again)
    purge()
    assert keys_of(gateway, again, files) == []
    assert gateway.client.get(f"/v1/models/{again['model_id']}").status_code == 404


@pytest.mark.slow
def test_what_was_registered_or_uploaded_stays(gateway, gateway_sessions, finish, purge, files):
    model = gateway.client.post("/v1/models", files={"model": ("m.pt", files["model"])}).json()
    dataset = gateway.client.post("/v1/datasets", files={"file": ("d.npz", files["repair"])}).json()
    with gateway_sessions.begin() as session:
        session.execute(update(Base.metadata.tables["datasets"]).values(state="ready"))
    spec = {"model_id": model["id"], "datasets": {"repair": dataset["id"]}}
    job = gateway.client.post("/v1/jobs", json=spec).json()
    gateway.client.post(job["links"]["cancel"])
    delete(gateway, job)
    purge()
    assert len(keys_of(gateway, job, files)) == 2
    assert gateway.client.get(model["links"]["self"]).status_code == 200
    # The other way round, the job has kept them.
    again = gateway.client.post("/v1/jobs", json=spec).json()
    gateway.client.post(again["links"]["cancel"])
    for path in (model["links"]["self"], dataset["links"]["self"]):
        assert gateway.client.delete(path).status_code == 204
    (left,) = keys_of(gateway, again, files)
    assert stored_bytes(gateway.settings, left) == files["repair"]
    delete(gateway, again)
    purge()
    assert keys_of(gateway, again, files) == []


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["the store, at the job's own files", "the store, at a content", "the commit"])
def test_a_sweep_that_breaks_half_way_is_done_again(
    gateway, gateway_sessions, store, done, purge, files, monkeypatch, broken
):
    job, other = done(), done(SPEC, model=files["model"], repair=b"of another")
    delete(gateway, job)

    def fail(*_, **__):
        raise ConnectionError(broken)

    def free_and_fail(*args, **options):
        free_content(*args, **options)
        fail()

    with monkeypatch.context() as patch:
        if broken == "the commit":
            patch.setattr(deletion, "free_content", free_and_fail)
        elif broken == "the store, at a content":
            patch.setattr(deletion, "free_content", fail)
        else:
            patch.setattr(deletion.storage, "delete_prefix", fail)
        with pytest.raises(ConnectionError):
            purge_jobs(gateway_sessions, store)
    assert rows_of(gateway_sessions, job["id"])["jobs"] == 1
    assert gateway.client.get(job["links"]["self"]).status_code == 404
    purge()
    assert rows_of(gateway_sessions, job["id"]) == {}
    (left,) = keys_of(gateway, job, files)
    assert stored_bytes(gateway.settings, left) == files["model"]
    assert gateway.client.get(other["links"]["model"]).content == b"PK repaired"


@pytest.mark.slow
def test_a_job_that_is_deleted_while_it_is_run_again_leaves_all_or_nothing(gateway, done, purge):
    won = set()
    for _ in range(8):
        sent = {"model": b"PK\x03\x04" + uuid.uuid4().bytes, "repair": uuid.uuid4().bytes}
        job, at_once = done(SPEC, **sent), threading.Barrier(3)

        def ask(method, path, at_once=at_once):
            with httpx.Client(base_url=gateway.url, headers=gateway.client.headers, timeout=60) as client:
                at_once.wait(30)
                return client.request(method, path)

        with ThreadPoolExecutor(2) as threads:
            deleted = threads.submit(ask, "DELETE", job["links"]["self"])
            retried = threads.submit(ask, "POST", job["links"]["retry"])
            at_once.wait(30)
            while not (deleted.done() and retried.done()):
                purge()
        assert deleted.result().status_code == 204
        purge()
        again = retried.result()
        won.add(again.status_code)
        if again.status_code == 202:
            assert len(keys_of(gateway, job, sent)) == 2
            assert gateway.client.get(f"/v1/models/{again.json()['model_id']}").status_code == 200
            gateway.client.post(again.json()["links"]["cancel"])
        else:
            assert refused(again) == (404, "job.not_found")
            assert keys_of(gateway, job, sent) == []
    assert won <= {202, 404}


def test_an_answer_that_was_kept_is_not_given_of_a_deleted_job(gateway, submission, finish, purge, files):
    once = {"Idempotency-Key": str(uuid.uuid4())}
    job = gateway.client.post("/v1/jobs", files=submission(SPEC, **files), headers=once).json()
    gateway.client.post(job["links"]["cancel"])
    delete(gateway, job)
    for _ in range(2):
        answer = gateway.client.post("/v1/jobs", files=submission(SPEC, **files), headers=once)
        assert refused(answer) == (409, "request.idempotency_gone")
        purge()
    assert stored_keys(gateway.settings, "tmp") == []


def test_a_deleted_job_gives_its_bytes_back_to_the_quota(tenant, submission):
    client, _, set_quotas = tenant
    job = client.post("/v1/jobs", files=submission()).json()
    client.post(job["links"]["cancel"])
    set_quotas(stored_bytes=1)
    other = {"model": b"PK\x03\x04", "repair": b"r"}
    assert refused(client.post("/v1/jobs", files=submission(SPEC, **other))) == (429, "quota.stored_bytes")
    set_quotas(stored_bytes=len(b"PK\x03\x04r") + job_bytes(client, job))
    assert client.delete(job["links"]["self"]).status_code == 204
    assert client.post("/v1/jobs", files=submission(SPEC, **other)).status_code == 202


def job_bytes(client, job):
    return client.get(f"/v1/models/{job['model_id']}").json()["size_bytes"]


def test_what_is_still_to_be_told_of_a_deleted_job_is_told(gateway, gateway_sessions, submit, purge, files):
    url = "https://hooks.example.com/"
    spec = {**SPEC, "webhook": {"url": url, "events": ["job.created", "job.cancelled"]}}
    job = submit(spec, **files)
    with gateway_sessions.begin() as session:
        session.execute(update(WebhookDelivery).where(WebhookDelivery.job_id == job["id"]).values(state="delivered"))
    gateway.client.post(job["links"]["cancel"])
    delete(gateway, job)
    purge()
    assert rows_of(gateway_sessions, job["id"]) == {"webhook_deliveries": 1}
    with gateway_sessions() as session:
        left = session.scalars(select(WebhookDelivery).where(WebhookDelivery.job_id == job["id"])).one()
    assert (left.event, left.state) == ("job.cancelled", "pending")


def test_a_done_job_says_when_it_goes_and_may_ask_to_go_earlier(gateway, gateway_sessions, submit, finish, purge):
    jobs = {days: submit({**SPEC, "keep_days": days} if days else SPEC) for days in (None, 0.5, 3650)}
    assert {job["expires_at"] for job in jobs.values()} == {None}
    for job in jobs.values():
        finish(job["id"])
    kept = {}
    with gateway_sessions() as session:
        for days, job in jobs.items():
            row = session.get_one(Job, job["id"])
            kept[days] = (row.expires_at - row.finished_at) / 86400
    service = gateway.settings.retention_days
    assert service == 90
    assert kept == pytest.approx({None: service, 0.5: 0.5, 3650: service}, abs=1e-4)
    again = gateway.client.post(jobs[0.5]["links"]["retry"]).json()
    answer = gateway.client.post(again["links"]["cancel"])
    assert answer.json()["expires_at"] > answer.json()["finished_at"]
    with gateway_sessions() as session:
        row = session.get_one(Job, again["id"])
        assert row.expires_at - row.finished_at == pytest.approx(43200, abs=1)


@pytest.mark.parametrize("days", [0, -1, "7", 40_000, None])
def test_a_wrong_keeping_is_refused(gateway, submission, days):
    answer = gateway.client.post("/v1/jobs", files=submission({**SPEC, "keep_days": days}))
    if days is None:
        assert answer.status_code == 202
    else:
        assert refused(answer) == (422, "spec.invalid")
        assert answer.json()["errors"][0]["pointer"] == "#/keep_days"


def test_jobs_that_were_kept_long_enough_go_in_batches_and_no_others(
    gateway, gateway_sessions, done, submit, purge, files, monkeypatch
):
    with gateway_sessions.begin() as session:
        expire_jobs(session)  # whatever other tests left
    monkeypatch.setattr(deletion, "EXPIRY_BATCH", 2)
    old, young, waiting = [done() for _ in range(3)], done(), submit()
    with gateway_sessions.begin() as session:
        past = update(Job).where(Job.id.in_([job["id"] for job in (*old, waiting)]))
        session.execute(past.values(expires_at=db_now() - 1))
    batches = []
    for _ in range(3):
        with gateway_sessions.begin() as session:
            batches.append(expire_jobs(session))
    assert [len(batch) for batch in batches] == [2, 1, 0]
    assert {job_id for batch in batches for job_id in batch} == {job["id"] for job in old}
    purge()
    assert [gateway.client.get(job["links"]["self"]).status_code for job in (*old, young, waiting)] == [
        404, 404, 404, 200, 200,
    ]  # fmt: skip
    assert gateway.client.get(young["links"]["model"]).content == b"PK repaired"
    assert len(keys_of(gateway, young, files)) == 4


def test_jobs_that_ended_without_an_end_of_their_keeping_get_one_unless_all_is_kept(sessions, project_id, model_id):
    with sessions.begin() as session:
        for job_id, status in (("job_old", "failed"), ("job_new", "running")):
            session.add(Job(id=job_id, project_id=project_id, kind="repair", status=status, spec={}, model_id=model_id))
    expires = {}
    for days in (0, 30):
        with sessions.begin() as session:
            schedule_expiry(session, days)
            now = session.scalar(select(db_now()))
            expires[days] = dict(session.execute(select(Job.id, Job.expires_at)).all())
    assert expires[0] == {"job_old": None, "job_new": None}
    assert expires[30]["job_old"] - now == pytest.approx(30 * 86400, abs=5)
    assert expires[30]["job_new"] is None


def test_the_shorter_keeping_counts():
    assert [keep_seconds(days, asked) for days, asked in ((0, None), (0, 60.0), (1, None), (1, 60.0), (1, 1e9))] == [
        None, 60.0, 86400.0, 60.0, 86400.0,
    ]  # fmt: skip
