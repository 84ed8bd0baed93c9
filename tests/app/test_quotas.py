import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import func, select

from app.shared.ids import new_id
from app.shared.quotas import QUOTAS, quota_of, usage
from app.shared.tables import Artifact, Dataset, Job, JobInput, Model, Project, Upload, UploadPart
from tests.servers import stored_keys

PARALLEL = 20
MODEL = b"PK\x03\x04" + b"m" * 1000


@pytest.mark.parametrize("name", ["queued_jobs", "models"])
def test_parallel_requests_cannot_pass_a_quota_together(tenant, submission, gateway_sessions, name):
    client, project_id, set_quotas = tenant
    set_quotas(**{name: 3})
    ready = threading.Barrier(PARALLEL)

    def post(_: int) -> httpx.Response:
        ready.wait(30)
        return client.post("/v1/jobs", files=submission())

    with ThreadPoolExecutor(PARALLEL) as threads:
        answers = list(threads.map(post, range(PARALLEL)))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [429] * (PARALLEL - 3)
    refused = next(answer for answer in answers if answer.status_code == 429).json()
    assert refused["code"] == f"quota.{name}"
    assert f"{name} is 3; this project has 3" in refused["detail"]
    assert refused["hint"]
    with gateway_sessions() as session:
        mine = select(func.count()).select_from(Job).where(Job.project_id == project_id)
        assert session.scalar(mine) == 3


def test_a_refused_submission_leaves_no_bytes(gateway, tenant, submission):
    client, _, set_quotas = tenant
    set_quotas(stored_bytes=1500)
    assert client.post("/v1/jobs", files=submission(model=MODEL, repair=b"r" * 100)).status_code == 202
    before = stored_keys(gateway.settings)
    for path, files in (
        ("/v1/jobs", submission(model=MODEL, repair=b"other" * 100)),
        ("/v1/models", [("model", ("m.pt", MODEL + b"other"))]),
    ):
        answer = client.post(path, files=files)
        assert (answer.status_code, answer.json()["code"]) == (429, "quota.stored_bytes")
        assert "stored_bytes is 1,500; this project has 1,104 and asks for 1," in answer.json()["detail"]
    assert stored_keys(gateway.settings) == before


def test_a_job_without_bytes_is_taken_when_the_store_is_full(tenant, submission):
    client, _, set_quotas = tenant
    model_id = client.post("/v1/jobs", files=submission()).json()["model_id"]
    set_quotas(stored_bytes=0, models=0)
    spec = {"model_id": model_id, "datasets": {"repair": "builtin:digits"}}
    assert client.post("/v1/jobs", json=spec).status_code == 202


def test_quotas_are_of_a_project_alone(gateway, tenant, submission):
    client, _, set_quotas = tenant
    set_quotas(queued_jobs=0)
    assert client.post("/v1/jobs", files=submission()).json()["code"] == "quota.queued_jobs"
    assert gateway.client.post("/v1/jobs", files=submission()).status_code == 202


def test_a_project_without_numbers_of_its_own_has_the_services(settings):
    project = Project(id="prj_x", name="x", quotas={"models": 3})
    assert quota_of(settings, project, "models") == 3
    assert {name: quota_of(settings, project, name) for name in QUOTAS} == {
        "queued_jobs": 1000, "running_jobs": 100, "stored_bytes": 1024**4, "models": 3, "open_uploads": 100,
        "webhook_endpoints": 20,
    }  # fmt: skip


def test_equal_contents_are_counted_once_and_deleted_ones_not(sessions, project_id, model_id):
    def file(key: str, size_bytes: int) -> dict:
        return {"storage_key": key, "size_bytes": size_bytes, "sha256": "0" * 64, "filename": "f"}

    with sessions.begin() as session:
        job = Job(id=new_id("job"), project_id=project_id, kind="repair", status="queued", spec={}, model_id=model_id)
        upload = Upload(id=new_id("upl"), project_id=project_id, part_bytes=1, expires_at=0, **file("", 0))
        upload.storage_key = None
        session.add_all([job, upload])
        session.flush()
        part, copy = file("tmp/part", 1000), file("blobs/data", 10)
        del part["filename"]
        session.add_all(
            [
                JobInput(job_id=job.id, name="upload:a", **copy),
                JobInput(job_id=job.id, name="upload:b", **copy),
                UploadPart(upload_id=upload.id, number=1, **part),
                Dataset(id=new_id("ds"), project_id=project_id, name="d", reference="upl_x", **copy),
                Model(id=new_id("mdl"), project_id=project_id, deleted_at=1.0, **file("blobs/gone", 10**6)),
                Artifact(id=new_id("art"), job_id=job.id, attempt=1, name="a", kind="log", media_type="text/plain",
                         size_bytes=100, sha256="0" * 64, storage_key="jobs/a"),
            ]
        )  # fmt: skip
    with sessions() as session:
        assert usage(session, project_id, "stored_bytes") == 4 + 10 + 1000 + 100
        assert usage(session, "prj_other", "stored_bytes") == 0
        assert [usage(session, project_id, name) for name in ("queued_jobs", "running_jobs", "models", "open_uploads")
                ] == [1, 0, 1, 1]  # fmt: skip


def test_a_project_has_so_many_webhook_endpoints(tenant):
    client, _, set_quotas = tenant
    set_quotas(webhook_endpoints=1)
    body = {"url": "https://hooks.example.com/"}
    made = client.post("/v1/webhook-endpoints", json=body)
    assert made.status_code == 201
    refused = client.post("/v1/webhook-endpoints", json=body)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota.webhook_endpoints")
    assert client.delete(made.json()["links"]["self"]).status_code == 204
    assert client.post("/v1/webhook-endpoints", json=body).status_code == 201
