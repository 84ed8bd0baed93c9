import json
import threading
import time
from functools import partial
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.shared.claims import claim_job
from app.shared.jobs import record_progress
from app.shared.tables import Job, JobInput
from tests.servers import keys_of_content, stored_bytes


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["request_id"] == answer.headers["x-request-id"]
    return dict(body)


def test_a_submitted_job_is_answered_with_all_that_a_client_needs(gateway, submission):
    spec = {"datasets": {"repair": "upload:repair", "test": "builtin:digits"}, "metadata": {"git_sha": "8c1f2e0"}}
    answer = gateway.client.post("/v1/jobs", files=submission(spec))
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (job["object"], job["status"], job["done"], job["verdict"]) == ("job", "queued", False, "not_evaluated")
    assert job["queue"]["position"] >= 1
    assert job["metadata"] == {"git_sha": "8c1f2e0"}
    assert job["spec"]["datasets"]["test"] == "builtin:digits"
    assert "metadata" not in job["spec"]
    assert "model_id" not in job["spec"]


def test_the_uploaded_files_are_in_the_store_as_they_were_sent(gateway, submit, gateway_sessions):
    job = submit({"datasets": {"repair": "upload:a", "test": "upload:b"}}, model=b"PK\x03\x04model", a=b"aa", b=b"b")
    with gateway_sessions() as session:
        rows = session.scalars(select(JobInput).where(JobInput.job_id == job["id"]).order_by(JobInput.name)).all()
    content = partial(stored_bytes, gateway.settings)
    assert [(row.name, row.filename, content(row.storage_key)) for row in rows] == [
        ("upload:a", "a.npz", b"aa"),
        ("upload:b", "b.npz", b"b"),
    ]
    assert len(keys_of_content(gateway.settings, b"PK\x03\x04model")) == 1


def test_a_submitted_job_rings_within_a_second(gateway, submit):
    with redis.Redis.from_url(gateway.settings.broker_url) as broker:
        broker.flushdb()
        submit()
        deadline = time.monotonic() + 1
        while not broker.exists("archrepair:celery"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_every_path_answers_without_a_version_too(gateway, submit):
    job = submit()
    bare = gateway.client.get(f"/jobs/{job['id']}")
    assert bare.status_code == 200
    assert bare.json() == gateway.client.get(f"/v1/jobs/{job['id']}").json()
    assert gateway.client.post("/jobs", files=[("spec", (None, b"{}"))]).status_code == 422


def test_a_registered_model_is_used_again_by_its_id(gateway, submit):
    model_id = submit()["model_id"]
    answer = gateway.client.post("/v1/jobs", json={"model_id": model_id, "datasets": {"repair": "builtin:digits"}})
    assert answer.status_code == 202
    assert answer.json()["model_id"] == model_id


def test_a_spec_can_be_checked_without_creating_anything(gateway):
    before = gateway.client.get("/v1/jobs?limit=1").json()["data"]
    answer = gateway.client.post("/v1/jobs?validate_only=true", json={"datasets": {"repair": "upload:repair"}})
    assert answer.status_code == 200
    assert answer.json()["spec"]["seed"] == 0
    refused = gateway.client.post("/v1/jobs?validate_only=true", json={"datasets": {"repair": "upload:repair"}, "x": 1})
    assert problem(refused)["code"] == "spec.unknown_field"
    assert gateway.client.get("/v1/jobs?limit=1").json()["data"] == before


@pytest.mark.parametrize(
    ("spec", "code", "pointer", "said"),
    [
        ({"datasets": {"repair": "upload:repair"}, "repair": {"budget_secnds": 3}}, "spec.unknown_field",
         "#/repair/budget_secnds", "Did you mean 'budget_seconds'?"),
        ({"datasets": {"repair": "upload:repair"}, "repare": {}}, "spec.unknown_field", "#/repare", "'repair'"),
        ({"datasets": {}}, "spec.invalid", "#/datasets/repair", "needs datasets.repair"),
        ({"kind": "evaluate", "datasets": {"repair": "upload:repair"}}, "spec.invalid", "#/datasets/test",
         "needs datasets.test"),
        ({"datasets": {"repair": "upload:repair"}, "gates": ["test.acuracy > 0"]}, "spec.invalid", "#/gates",
         "acuracy"),
        ({"datasets": {"repair": "s3://bucket/x"}}, "dataset.reference_not_allowed", "#/datasets/repair", "s3://"),
        ({"datasets": {"repair": "upload:repair"}, "metadata": {"k[0]": "v"}}, "spec.invalid", "#/metadata/k[0]",
         "square bracket"),
        ({"datasets": {"repair": "upload:repair"}, "metadata": {"k": "v" * 513}}, "spec.invalid", "#/metadata/k",
         "512"),
        ([], "spec.invalid", "#", "JSON object"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_with_the_place(gateway, submission, spec, code, pointer, said):
    body = problem(gateway.client.post("/v1/jobs", files=submission(spec)))
    assert (body["status"], body["code"]) == (422, code)
    assert body["errors"][0]["pointer"] == pointer
    assert said in body["detail"]


def test_a_spec_that_is_not_json_is_refused_with_line_and_column(gateway, submission):
    body = problem(gateway.client.post("/v1/jobs", files=submission(b'{\n "seed": 7,,\n}')))
    assert (body["status"], body["code"]) == (422, "spec.invalid_json")
    assert "line 2, column 12" in body["detail"]


@pytest.mark.parametrize("raw", [b'{"seed": NaN}', b"\xff\xfe{", b"[" * 9_000, b'{"seed": 1e999}', b'{"a": "\\ud800"}'])
def test_json_that_cannot_be_answered_back_is_refused(gateway, submission, raw):
    assert problem(gateway.client.post("/v1/jobs", files=submission(raw)))["code"] == "spec.invalid_json"


def test_jobs_are_listed_newest_first_page_by_page(gateway, submit):
    job_ids = [submit({"kind": "localize", **{"datasets": {"repair": "upload:repair"}}})["id"] for _ in range(3)]
    seen: list[str] = []
    page: dict[str, Any] = {"next_cursor": None, "has_more": True}
    while page["has_more"] and len(seen) < 3:
        query = {"limit": 2, "kind": "localize"} | ({"cursor": page["next_cursor"]} if page["next_cursor"] else {})
        page = gateway.client.get("/v1/jobs", params=query).json()
        seen += [job["id"] for job in page["data"]]
    assert seen[:3] == job_ids[::-1]


def test_jobs_are_filtered(gateway, submit):
    job = submit()

    def listed(**query: str) -> list[str]:
        return [item["id"] for item in gateway.client.get("/v1/jobs", params=query).json()["data"]]

    assert job["id"] in listed(status="queued", model_id=job["model_id"], verdict="not_evaluated", kind="repair")
    assert listed(model_id=job["model_id"], created_after="2020-01-01T00:00:00Z") == [job["id"]]
    assert listed(model_id=job["model_id"], status="running") == []
    assert listed(created_after="2999-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "cursor=%3F", "cursor=AAAA", "created_after=now", "created_before=1700000000",
              "status=a-b", "verdict=good", "kind=train", "model_id=mdl_x", "model_id=job_00000000000000000000000000"]
)  # fmt: skip
def test_a_wrong_query_names_its_parameter(gateway, query):
    body = problem(gateway.client.get(f"/v1/jobs?{query}"))
    assert (body["status"], body["code"]) == (422, "request.invalid")
    assert body["errors"][0]["parameter"] == f"query {query.partition('=')[0]}"


def test_waiting_ends_when_the_job_does(gateway, submit, finish):
    job = submit()
    answers: list[tuple[float, httpx.Response]] = []

    def wait() -> None:
        started = time.monotonic()
        answer = gateway.client.get(f"/v1/jobs/{job['id']}?wait=20")
        answers.append((time.monotonic() - started, answer))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.5)
    finish(job["id"], verdict="pass", result={"outcome": "repaired"})
    waiter.join()
    seconds, answer = answers[0]
    assert 0.4 < seconds < 10
    assert answer.json()["done"] is True
    assert "retry-after" not in answer.headers


def test_waiting_ends_when_the_time_is_up(gateway, submit):
    job = submit()
    started = time.monotonic()
    answer = gateway.client.get(f"/v1/jobs/{job['id']}?wait=0.5")
    assert 0.5 <= time.monotonic() - started < 5
    assert (answer.json()["done"], int(answer.headers["retry-after"]) > 0) == (False, True)
    assert problem(gateway.client.get(f"/v1/jobs/{job['id']}?wait=61"))["errors"][0]["parameter"] == "query wait"


def test_many_waiting_clients_do_not_keep_others_out(gateway, submit):
    job = submit()

    def wait() -> None:
        gateway.client.get(f"/v1/jobs/{job['id']}?wait=2")

    waiters = [threading.Thread(target=wait) for _ in range(40)]
    for waiter in waiters:
        waiter.start()
    time.sleep(1)
    started = time.monotonic()
    assert gateway.client.get("/v1/jobs?limit=1").status_code == 200
    assert time.monotonic() - started < 2
    for waiter in waiters:
        waiter.join()


def test_a_job_that_did_not_change_is_not_sent_again(gateway, submit, gateway_sessions):
    job = submit()
    path = f"/v1/jobs/{job['id']}"
    with gateway_sessions.begin() as session:
        session.get_one(Job, job["id"]).priority = 100
    with gateway_sessions.begin() as session:
        claim = claim_job(session, owner="w", lease_seconds=600)
    assert claim is not None
    etag = gateway.client.get(path).headers["etag"]
    assert etag.startswith('W/"')
    same = gateway.client.get(path, headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    with gateway_sessions.begin() as session:
        record_progress(session, claim, phase="baseline", progress={"percent": 12.5, "message": "half of it"})
    changed = gateway.client.get(path, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.json()["progress"] == {"percent": 12.5, "message": "half of it", "step": 0, "total_steps": 0}
    assert changed.json()["phases"][0]["name"] == "baseline"


def test_a_waiting_job_is_cancelled_and_only_once(gateway, submit):
    path = f"/v1/jobs/{submit()['id']}/cancel"
    first = gateway.client.post(path, json={"keep_best": True})
    assert (first.status_code, first.json()["status"], first.json()["done"]) == (202, "cancelled", True)
    body = problem(gateway.client.post(path))
    assert (body["status"], body["code"], body["retryable"]) == (409, "job.already_done", False)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 422, "request.invalid_json"),
        (b'{"keep": true}', 422, "request.invalid"),
        (b" " * 70_000, 413, "request.too_large"),
    ],
)
def test_a_wrong_cancel_is_refused_and_cancels_nothing(gateway, submit, body, status, code):
    job = submit()
    answer = problem(gateway.client.post(f"/v1/jobs/{job['id']}/cancel", content=body))
    assert (answer["status"], answer["code"]) == (status, code)
    assert gateway.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"


def test_events_are_read_page_by_page(gateway, submit, finish):
    job = submit()
    finish(job["id"])
    path = f"/v1/jobs/{job['id']}/events"
    first = gateway.client.get(path, params={"limit": 2}).json()
    rest = gateway.client.get(path, params={"after": first["next_cursor"]}).json()
    assert [event["type"] for event in first["data"] + rest["data"]] == ["job.created", "job.started", "job.succeeded"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"][0]["seq"] < first["data"][1]["seq"] < rest["data"][0]["seq"]


def test_a_failed_job_says_why(gateway, submit, finish):
    job = submit()
    error = {"code": "model.frozen_graph", "detail": "frozen", "hint": "thaw", "category": "user", "log_tail": ["last"]}
    finish(job["id"], "failed", error=error)
    shown = gateway.client.get(f"/v1/jobs/{job['id']}").json()["error"]
    assert shown["type"] == "urn:archrepair:problem:model.frozen_graph"
    assert {name: shown[name] for name in error} == error
    assert (shown["title"], shown["attempt"], shown["retryable"]) == ("Model: frozen graph", 1, False)


@pytest.mark.parametrize("path", ["", "/events", "/logs", "/artifacts", "/model", "/localization", "/report"])
def test_another_projects_job_is_a_404(gateway, submit, stranger_key, path):
    answer = httpx.get(
        f"{gateway.url}/v1/jobs/{submit()['id']}{path}", headers={"Authorization": f"Bearer {stranger_key}"}
    )
    assert problem(answer)["code"] == "job.not_found"


def test_another_project_can_neither_cancel_nor_list_nor_use_the_model(gateway, submit, stranger_key):
    job = submit()
    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {stranger_key}"}) as stranger:
        assert problem(stranger.post(f"/v1/jobs/{job['id']}/cancel"))["code"] == "job.not_found"
        gates = {"gates": ["test.accuracy > 0"]}
        assert problem(stranger.post(f"/v1/jobs/{job['id']}/verdict", json=gates))["code"] == "job.not_found"
        assert stranger.get("/v1/jobs").json()["data"] == []
        assert stranger.get("/v1/models").json()["data"] == []
        assert problem(stranger.get(f"/v1/models/{job['model_id']}"))["code"] == "model.not_found"
        spec = {"model_id": job["model_id"], "datasets": {"repair": "builtin:digits"}}
        assert problem(stranger.post("/v1/jobs", json=spec))["code"] == "model.unknown_id"


def test_the_answer_is_the_row_that_was_committed(gateway, submit, gateway_sessions: sessionmaker[Session]):
    job = submit()
    with gateway_sessions() as session:
        row = session.get_one(Job, job["id"])
    assert json.dumps(row.spec) == json.dumps(job["spec"])
    assert row.max_attempts == gateway.settings.max_attempts
