import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import func, select

from app.shared.claims import claim_job
from app.shared.jobs import record_resolved_spec
from app.shared.tables import Dataset, Job, JobInput
from tests.servers import stored_keys

SPEC = {
    "datasets": {"repair": "upload:repair", "test": "builtin:digits"},
    "metadata": {"git_sha": "8c1f2e0"},
    "hardware": "cpu",
    "timeout_seconds": 600,
    "webhook": {"url": "https://hooks.example.com/", "events": ["job.failed"]},
}
PARALLEL = 8


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def resolve(sessions, job_id: str, change) -> None:
    """Plays a worker whose engine said what the spec became."""
    with sessions.begin() as session:
        session.get_one(Job, job_id).priority = 100
    with sessions.begin() as session:
        claim = claim_job(session, owner="w", lease_seconds=600)
        assert claim is not None
        assert record_resolved_spec(session, claim, change(claim.spec))
        session.get_one(Job, job_id).status = "failed"


def test_a_retry_is_a_new_job_of_the_same_spec_model_and_data(gateway, gateway_sessions, submit, finish):
    first = submit(SPEC)
    finish(first["id"], "failed", error={"code": "worker.out_of_memory", "detail": "no memory"})
    before = stored_keys(gateway.settings)
    answer = gateway.client.post(f"/v1/jobs/{first['id']}/retry")
    again = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{again['id']}")
    assert int(answer.headers["retry-after"]) > 0
    assert (again["retry_of"], again["status"], again["attempt"]) == (first["id"], "queued", 0)
    assert again["id"] != first["id"]
    for name in ("spec", "model_id", "metadata", "hardware", "kind"):
        assert again[name] == first[name], name
    assert first["retry_of"] is None
    with gateway_sessions() as session:
        rows = {row.id: row for row in session.scalars(select(Job).where(Job.id.in_([first["id"], again["id"]])))}
        inputs = session.scalars(select(JobInput).where(JobInput.job_id == again["id"])).all()
    assert rows[again["id"]].webhook == rows[first["id"]].webhook == SPEC["webhook"]
    assert rows[again["id"]].deadline_at - rows[again["id"]].created_at == pytest.approx(600, abs=1)
    assert [(row.name, row.filename) for row in inputs] == [("upload:repair", "repair.npz")]
    assert inputs[0].storage_key in before
    assert stored_keys(gateway.settings) == before


def test_a_retry_works_on_what_every_auto_became(gateway, gateway_sessions, submit):
    job = submit({"datasets": {"repair": "upload:repair"}, "seed": 7})
    resolve(gateway_sessions, job["id"], lambda spec: spec | {"outputs": ["torchscript", "onnx"]})
    shown = gateway.client.get(job["links"]["self"]).json()
    assert shown["resolved_spec"]["inputs"]
    again = gateway.client.post(job["links"]["retry"]).json()
    assert again["spec"] == shown["spec"] | {"outputs": ["torchscript", "onnx"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec | {"datasets": {"repair": "file:///etc/passwd"}},
        lambda spec: spec | {"model": spec["model"] | {"reference": "https://10.0.0.1/x#sha256=" + "0" * 64}},
        lambda spec: spec | {"repair": {"budget_seconds": "for ever"}},
        lambda spec: spec | {"kind": "inspect", "outputs": "../../"},
    ],
)
def test_an_engine_cannot_say_where_a_retry_reads_or_what_it_is(gateway, gateway_sessions, submit, change):
    job = submit()
    resolve(gateway_sessions, job["id"], change)
    again = gateway.client.post(job["links"]["retry"]).json()
    assert (again["spec"], again["kind"]) == (job["spec"], "repair")


def test_only_a_job_that_is_done_is_run_again(gateway, submit):
    job = submit()
    answer = gateway.client.post(job["links"]["retry"])
    assert refused(answer) == (409, "job.not_finished")
    assert (answer.json()["retryable"], int(answer.headers["retry-after"]) > 0) == (True, True)
    assert gateway.client.post(job["links"]["cancel"]).status_code == 202
    assert gateway.client.post(job["links"]["retry"]).status_code == 202


def test_a_retry_says_what_was_deleted_meanwhile(gateway, submit):
    job = submit()
    gateway.client.post(job["links"]["cancel"])
    assert gateway.client.delete(f"/v1/models/{job['model_id']}").status_code == 204
    answer = gateway.client.post(job["links"]["retry"])
    assert refused(answer) == (409, "job.inputs_gone")
    assert f"{job['model_id']} (resnet18.pt) is deleted" in answer.json()["detail"]
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/model_id"]


def test_a_retry_keeps_the_data_of_a_dataset_that_was_deleted_but_not_a_builtin_one(gateway, gateway_sessions):
    made = [
        gateway.client.post("/v1/datasets", files={"file": ("d.npz", b"data of a dataset")}),
        gateway.client.post("/v1/datasets", json={"reference": "builtin:digits"}),
    ]
    file_id, builtin_id = (answer.json()["id"] for answer in made)
    with gateway_sessions.begin() as session:
        for dataset_id in (file_id, builtin_id):
            session.get_one(Dataset, dataset_id).state = "ready"
    model = gateway.client.post("/v1/models", files={"model": ("m.pt", b"PK\x03\x04")}).json()
    spec = {"model_id": model["id"], "datasets": {"repair": file_id, "test": builtin_id}}
    job = gateway.client.post("/v1/jobs", json=spec).json()
    gateway.client.post(job["links"]["cancel"])
    assert gateway.client.delete(f"/v1/datasets/{file_id}").status_code == 204
    assert gateway.client.post(job["links"]["retry"]).status_code == 202
    assert gateway.client.delete(f"/v1/datasets/{builtin_id}").status_code == 204
    answer = gateway.client.post(job["links"]["retry"])
    assert refused(answer) == (409, "job.inputs_gone")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/datasets/test"]


def test_inspections_are_not_run_again_by_hand(gateway, gateway_sessions, finish):
    model = gateway.client.post("/v1/models", files={"model": ("m.pt", b"PK\x03\x04")}).json()
    with gateway_sessions() as session:
        job_id = session.scalars(select(Job.id).where(Job.model_id == model["id"])).one()
    finish(job_id)
    answer = gateway.client.post(f"/v1/jobs/{job_id}/retry")
    assert refused(answer) == (409, "job.kind_refused")
    assert "/v1/models" in answer.json()["hint"]


def test_a_retry_sent_again_with_its_key_is_one_job(gateway, gateway_sessions, submit):
    job = submit()
    gateway.client.post(job["links"]["cancel"])
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    ready_at_once = threading.Barrier(PARALLEL)

    def post(_: int) -> httpx.Response:
        with httpx.Client(base_url=gateway.url, headers=gateway.client.headers, timeout=60) as client:
            ready_at_once.wait(30)
            return client.post(job["links"]["retry"], headers=headers)

    with ThreadPoolExecutor(PARALLEL) as threads:
        answers = list(threads.map(post, range(PARALLEL)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == PARALLEL - 1
    with gateway_sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job).where(Job.retry_of == job["id"])) == 1


def test_a_retry_counts_as_a_waiting_job(tenant, submission):
    client, _, set_quotas = tenant
    job = client.post("/v1/jobs", files=submission()).json()
    client.post(job["links"]["cancel"])
    set_quotas(queued_jobs=0)
    assert refused(client.post(job["links"]["retry"])) == (429, "quota.queued_jobs")
    set_quotas(stored_bytes=0, models=0)  # it stores nothing of its own
    assert client.post(job["links"]["retry"]).status_code == 202
