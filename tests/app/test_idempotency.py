import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from app.shared.db import make_engine, make_sessions
from app.shared.idempotency import KEEP_ANSWERS_SECONDS, forget_old_answers
from app.shared.tables import IdempotencyKey, Job, Model
from tests.servers import stored_keys

PARALLEL = 20


@pytest.fixture
def once() -> dict[str, str]:
    """The header with a key nobody used."""
    return {"Idempotency-Key": f"ci run {uuid.uuid4()}"}


def post_in_parallel(gateway, submission, headers: dict[str, str]) -> list[httpx.Response]:
    def post(_: int) -> httpx.Response:
        with httpx.Client(base_url=gateway.url, headers=gateway.client.headers, timeout=60) as client:
            return client.post("/v1/jobs", files=submission(), headers=headers)

    with ThreadPoolExecutor(PARALLEL) as threads:
        return list(threads.map(post, range(PARALLEL)))


def test_parallel_requests_with_one_key_make_one_job(gateway, gateway_sessions, submission, once):
    with gateway_sessions() as session:
        before = session.scalar(select(func.count()).select_from(Job))
    answers = post_in_parallel(gateway, submission, once)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["location"] for answer in answers} == {answers[0].json()["links"]["self"]}
    assert {answer.headers["retry-after"] for answer in answers} == {"2"}
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == PARALLEL - 1
    with gateway_sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) - before == 1
    assert stored_keys(gateway.settings, "tmp") == []


def test_without_a_key_every_request_is_one_of_its_own(gateway, submission):
    answers = [gateway.client.post("/v1/jobs", files=submission()) for _ in range(2)]
    assert len({answer.json()["id"] for answer in answers}) == 2
    assert not any("idempotent-replayed" in answer.headers for answer in answers)


def test_a_key_belongs_to_one_request(gateway, submission, once):
    spec = {"datasets": {"repair": "upload:repair"}}
    model, data = b"PK\x03\x04model", b"data"
    first = gateway.client.post("/v1/jobs", files=submission(spec, model=model, repair=data), headers=once)
    assert first.status_code == 202
    others = [
        ("/v1/jobs", submission({**spec, "seed": 8}, model=model, repair=data)),
        ("/v1/jobs", submission(spec, model=model, repair=b"other data")),
        ("/v1/jobs", submission(spec, model=b"PK\x03\x04other", repair=data)),
        ("/v1/models", [("model", ("m.pt", model))]),
        (f"/v1/jobs/{first.json()['id']}/cancel", None),
    ]
    for path, files in others:
        answer = gateway.client.post(path, files=files, headers=once)
        assert (answer.status_code, answer.json()["code"]) == (422, "request.idempotency_mismatch")
        assert once["Idempotency-Key"] in answer.json()["detail"]
    assert gateway.client.get(f"/v1/jobs/{first.json()['id']}").json()["status"] == "queued"
    assert stored_keys(gateway.settings, "tmp") == []
    again = gateway.client.post("/jobs", files=submission(spec, model=model, repair=data), headers=once)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"


def test_a_model_and_a_cancel_are_answered_again(gateway, submit, once):
    form = [("model", ("m.pt", b"PK\x03\x04m")), ("input_shape", (None, b"[1, 8, 8]"))]
    models = [gateway.client.post("/v1/models", files=form, headers=once) for _ in range(2)]
    assert models[0].content == models[1].content
    path = f"/v1/jobs/{submit()['id']}/cancel"
    key = {"Idempotency-Key": f"{uuid.uuid4()}"}
    cancels = [gateway.client.post(path, json={"keep_best": True}, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in cancels] == [202, 202]
    assert cancels[0].content == cancels[1].content


def test_what_has_changed_since_is_no_reason_to_refuse_a_retry(gateway, submit, once):
    model_id = submit()["model_id"]
    spec = {"model_id": model_id, "datasets": {"repair": "builtin:digits"}}
    first = gateway.client.post("/v1/jobs", json=spec, headers=once)
    for job in gateway.client.get(f"/v1/jobs?model_id={model_id}").json()["data"]:
        gateway.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert gateway.client.delete(f"/v1/models/{model_id}").status_code == 204
    assert gateway.client.post("/v1/jobs", json=spec, headers=once).content == first.content
    assert gateway.client.post("/v1/jobs", json=spec).json()["code"] == "model.unknown_id"


def test_a_refused_request_leaves_its_key_free(gateway, submission, once):
    wrong = gateway.client.post("/v1/jobs", json={"model_id": "mdl_x"}, headers=once)
    assert wrong.status_code == 422
    assert gateway.client.post("/v1/jobs", files=submission(), headers=once).status_code == 202


def test_projects_do_not_share_keys(gateway, submission, stranger_key, once):
    mine = gateway.client.post("/v1/jobs", files=submission(), headers=once).json()
    stranger = {"Authorization": f"Bearer {stranger_key}", **once}
    theirs = gateway.client.post("/v1/jobs", files=submission({"datasets": {"repair": "upload:x"}}, model=b"PK\x03\x04",
                                 x=b"x"), headers=stranger)  # fmt: skip
    assert theirs.status_code == 202
    assert theirs.json()["id"] != mine["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tinside", "schlüssel".encode("latin-1")])
def test_a_key_that_cannot_be_one_is_refused(gateway, submission, key: Any):
    answer = gateway.client.post("/v1/jobs", files=submission(), headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")
    assert "idempotency-key" in answer.json()["detail"].lower()


def test_what_the_first_request_made_and_is_deleted_is_not_made_again_unasked(gateway, gateway_sessions, once):
    form = [("model", ("m.pt", b"PK\x03\x04m"))]
    model = gateway.client.post("/v1/models", files=form, headers=once).json()
    assert gateway.client.delete(f"/v1/models/{model['id']}").status_code == 204
    again = gateway.client.post("/v1/models", files=form, headers=once)
    assert (again.status_code, again.json()["code"]) == (409, "request.idempotency_gone")
    assert model["id"] in again.json()["detail"]
    assert stored_keys(gateway.settings, "tmp") == []
    with gateway_sessions() as session:
        assert session.scalar(select(func.count()).select_from(Model).where(Model.id > model["id"])) == 0


def test_answers_are_kept_for_a_day(sessions, project_id):
    row = {"project_id": project_id, "fingerprint": "0" * 64, "status": 202, "headers": {}, "body": {}}
    with sessions.begin() as session:
        session.add_all(IdempotencyKey(key=key, **row) for key in ("old", "new"))
    with sessions.begin() as session:
        aged = IdempotencyKey.created_at - KEEP_ANSWERS_SECONDS
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created_at=aged - 1))
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "new").values(created_at=aged + 60))
        forget_old_answers(session)
        assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]
    assert KEEP_ANSWERS_SECONDS > 24 * 3600


@pytest.mark.slow
def test_a_retry_after_the_gateway_was_killed_gets_the_job_that_was_made(settings, submission, start_gateway, once):
    with start_gateway(settings, app="tests.app.gateway_that_dies:create_app") as dying:
        with pytest.raises(httpx.TransportError):
            dying.client.post("/v1/jobs", files=submission(), headers=once)
        assert dying.process.wait(10) == -9
    engine = make_engine(settings.database_url)
    with make_sessions(engine)() as session:
        made = session.scalars(select(Job.id)).all()
    engine.dispose()
    with start_gateway(settings) as gateway:
        answer = gateway.client.post("/v1/jobs", files=submission(), headers=once)
        assert answer.headers["idempotent-replayed"] == "true"
        assert [answer.json()["id"]] == made
        assert len(gateway.client.get("/v1/jobs").json()["data"]) == 1
