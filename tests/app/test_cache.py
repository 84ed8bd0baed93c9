import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import func, select, update

from app.shared import cache
from app.shared.cache import cache_key
from app.shared.db import db_now
from app.shared.deletion import purge_jobs
from app.shared.storage import open_store
from app.shared.tables import Dataset, Job
from tests.servers import keys_of_content, stored_keys

SPEC = {"datasets": {"repair": "upload:repair"}, "cache": "prefer"}
RESULTS = [("repaired.pt", "model", b"PK repaired")]
HEX = "5" * 64


@pytest.fixture
def files():
    """A model and data that no other test has."""
    return {"model": b"PK\x03\x04" + uuid.uuid4().bytes, "repair": uuid.uuid4().bytes}


@pytest.fixture
def ask(gateway, submission, files):
    """Submits with the cache, by default the same as before."""

    def post(spec=SPEC, headers=None, **sent) -> httpx.Response:
        return gateway.client.post("/v1/jobs", files=submission(spec, **(sent or files)), headers=headers)

    return post


@pytest.fixture
def cached(ask, finish):
    """A job that has succeeded and may be answered again."""
    job = ask().json()
    finish(job["id"], files=RESULTS, verdict="pass", result={"outcome": "repaired"})
    return job


def test_what_has_succeeded_before_is_answered_and_not_run_again(gateway, gateway_sessions, ask, cached, files):
    with gateway_sessions() as session:
        before = session.scalar(select(func.count()).select_from(Job))
    stored = stored_keys(gateway.settings)
    answer = ask(SPEC | {"metadata": {"run": "2"}})
    assert answer.status_code == 200
    assert answer.headers["location"] == cached["links"]["self"]
    assert "retry-after" not in answer.headers
    assert answer.json() == gateway.client.get(cached["links"]["self"]).json()
    assert (answer.json()["done"], answer.json()["verdict"]) == (True, "pass")
    with gateway_sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == before
    assert stored_keys(gateway.settings) == stored
    assert gateway.client.get(answer.json()["links"]["model"]).content == b"PK repaired"


def test_only_who_asks_for_it_gets_an_earlier_job(ask, cached):
    answer = ask({"datasets": {"repair": "upload:repair"}})
    assert (answer.status_code, answer.json()["id"] != cached["id"]) == (202, True)


@pytest.mark.parametrize("ending", ["failed", "cancelled", "queued"])
def test_a_job_that_has_not_succeeded_is_no_answer(ask, finish, ending):
    job = ask().json()
    if ending != "queued":
        finish(job["id"], ending)
    answer = ask()
    assert (answer.status_code, answer.json()["id"] != job["id"]) == (202, True)


def test_a_hit_takes_no_quota(tenant, submission, finish, files):
    client, _, set_quotas = tenant
    job = client.post("/v1/jobs", files=submission(SPEC, **files)).json()
    finish(job["id"], files=RESULTS)
    set_quotas(queued_jobs=0, stored_bytes=0, models=0)
    assert client.post("/v1/jobs", files=submission(SPEC, **files)).json()["id"] == job["id"]
    assert client.post("/v1/jobs", files=submission(SPEC, model=b"PK\x03\x04", repair=b"x")).status_code == 429


def test_contents_count_and_not_where_they_come_from(gateway, gateway_sessions, ask, cached, files):
    model = gateway.client.post("/v1/models", files={"model": ("other name.pt", files["model"])}).json()
    dataset = gateway.client.post("/v1/datasets", files={"file": ("d.npz", files["repair"])}).json()
    with gateway_sessions.begin() as session:
        session.execute(update(Dataset).where(Dataset.id == dataset["id"]).values(state="ready"))
    named = {"datasets": {"repair": "upload:other"}, "cache": "prefer"}
    assert ask(named, model=files["model"], other=files["repair"]).json()["id"] == cached["id"]
    asked = {"model_id": model["id"], "datasets": {"repair": dataset["id"]}, "cache": "prefer"}
    assert gateway.client.post("/v1/jobs", json=asked).json()["id"] == cached["id"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8}, {"hardware": "cpu"}, {"gates": ["test.accuracy > before"]}, {"kind": "localize"},
        {"datasets": {"repair": "upload:repair", "test": "builtin:digits"}}, {"repair": {"budget_seconds": 5}},
    ],
)  # fmt: skip
def test_another_spec_is_another_job(ask, cached, change):
    assert ask({**SPEC, **change}).status_code == 202


def test_other_bytes_or_another_project_are_another_job(ask, cached, files, submission, tenant):
    assert ask(SPEC, model=files["model"] + b"x", repair=files["repair"]).status_code == 202
    assert ask(SPEC, model=files["model"], repair=files["repair"] + b"x").status_code == 202
    assert tenant[0].post("/v1/jobs", files=submission(SPEC, **files)).status_code == 202
    assert ask().status_code == 200


def test_a_deleted_or_expired_job_is_no_answer(gateway, gateway_sessions, ask, cached, finish, files):
    with gateway_sessions.begin() as session:
        session.execute(update(Job).where(Job.id == cached["id"]).values(expires_at=db_now() - 1))
    second = ask()
    assert second.status_code == 202
    finish(second.json()["id"], files=RESULTS)
    assert ask().json()["id"] == second.json()["id"]
    assert gateway.client.delete(second.json()["links"]["self"]).status_code == 204
    assert ask().status_code == 202


def test_a_hit_is_replayed_by_its_idempotency_key_like_every_answer(gateway, ask, cached):
    once = {"Idempotency-Key": str(uuid.uuid4())}
    answers = [ask(headers=once) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert stored_keys(gateway.settings, "tmp") == []
    assert gateway.client.delete(cached["links"]["self"]).status_code == 204
    gone = ask(headers=once)
    assert (gone.status_code, gone.json()["code"]) == (409, "request.idempotency_gone")
    assert ask(headers={"Idempotency-Key": str(uuid.uuid4())}).status_code == 202


def test_a_job_that_was_submitted_before_stays_the_answer_to_its_key(ask, finish):
    once = {"Idempotency-Key": str(uuid.uuid4())}
    first = ask(headers=once)
    finish(first.json()["id"])
    again = ask(headers=once)
    assert (again.status_code, again.json()["status"]) == (202, "queued")
    assert ask().json()["status"] == "succeeded"


@pytest.mark.slow
def test_an_answer_is_never_a_job_that_is_already_deleted(gateway, gateway_sessions, submission, finish):
    store = open_store(gateway.settings.store_url)
    for _ in range(8):
        sent = {"model": b"PK\x03\x04" + uuid.uuid4().bytes, "repair": uuid.uuid4().bytes}
        job = gateway.client.post("/v1/jobs", files=submission(SPEC, **sent)).json()
        finish(job["id"], files=RESULTS)
        deleted_first, at_once = threading.Event(), threading.Barrier(2)

        def delete(job=job, done=deleted_first, at_once=at_once):
            with httpx.Client(base_url=gateway.url, headers=gateway.client.headers, timeout=60) as client:
                at_once.wait(30)
                answer = client.delete(job["links"]["self"])
                done.set()
                return answer

        def ask(sent=sent, done=deleted_first, at_once=at_once):
            with httpx.Client(base_url=gateway.url, headers=gateway.client.headers, timeout=60) as client:
                at_once.wait(30)
                was_deleted = done.is_set()
                return was_deleted, client.post("/v1/jobs", files=submission(SPEC, **sent))

        with ThreadPoolExecutor(2) as threads:
            removal, asking = threads.submit(delete), threads.submit(ask)
            assert removal.result().status_code == 204
            was_deleted, answer = asking.result()
        while purge_jobs(gateway_sessions, store):
            continue
        if answer.status_code == 200:
            assert not was_deleted
            assert answer.json()["id"] == job["id"]
        else:
            # Its bytes are its own, whatever the purge of the other has removed.
            assert answer.status_code == 202
            assert [len(keys_of_content(gateway.settings, content)) for content in sent.values()] == [1, 1]


def key(datasets, **digests):
    return cache_key({"datasets": datasets, "seed": 1}, model_sha256=HEX, digests=digests, hardware="auto")


def test_a_reference_to_what_may_change_has_no_key():
    assert key({"repair": "s3://bucket/a.npz"}) is None
    assert key({"repair": "builtin:digits", "test": "file:///srv/a.npz"}) is None
    assert key({"repair": f"s3://bucket/a.npz#sha256={HEX}"}) == key({"repair": f"https://h/b.npz#sha256={HEX}"})
    assert key({"repair": "upl_" + "0" * 26}, **{"upl_" + "0" * 26: HEX}) == key({"repair": f"file:///a#sha256={HEX}"})
    assert key({"repair": "s3://bucket/a.npz"}, **{"s3://bucket/a.npz": HEX}) is not None, "a worker has fetched it"


def test_a_key_hangs_on_the_version(monkeypatch):
    before = key({"repair": "builtin:digits"})
    monkeypatch.setattr(cache, "version", lambda _: "99.0")
    assert key({"repair": "builtin:digits"}) not in (before, None)
