from dataclasses import dataclass
from typing import Any

import obstore
import pytest
from sqlalchemy import select, update

from app.keys import add_api_key
from app.shared import forgetting
from app.shared.db import db_now
from app.shared.deletion import purge_jobs
from app.shared.forgetting import KEEP_SECONDS, forget_deleted
from app.shared.storage import open_store
from app.shared.tables import ApiKey, Dataset, Job, Model, Upload, UploadPart, WebhookDelivery, WebhookEndpoint
from tests.servers import stored_keys

LONG_AGO = 1.0


@dataclass
class Leftovers:
    """A service with things that were deleted, some of them by processes that died before they freed the bytes."""

    sessions: Any
    store: Any
    project_id: str

    def add(self, table, row_id, **values):
        if table is not WebhookDelivery:
            values = {"project_id": self.project_id, **values}
        with self.sessions.begin() as session:
            session.add(table(id=row_id, **values))

    def content(self, key):
        obstore.put(self.store, key, b"content")
        return {"filename": "f", "sha256": "0" * 64, "size_bytes": 7, "storage_key": key}

    def sweep(self):
        forget_deleted(self.sessions, self.store)
        purge_jobs(self.sessions, self.store)
        forget_deleted(self.sessions, self.store)

    def ids(self, table):
        with self.sessions() as session:
            return set(session.scalars(select(table.id)))


@pytest.fixture
def leftovers(settings, sessions, project_id):
    return Leftovers(sessions, open_store(settings.store_url), project_id)


def test_deleted_models_go_when_no_job_names_them_and_their_inspections_with_them(leftovers, settings):
    for name, deleted_at in (("used", 5.0), ("gone", 5.0), ("there", None)):
        leftovers.add(Model, f"mdl_{name}", deleted_at=deleted_at, **leftovers.content(f"blobs/{name}"))
        job = {"model_id": f"mdl_{name}", "spec": {}, "status": "succeeded"}
        leftovers.add(Job, f"job_inspect_{name}", kind="inspect", **job)
    leftovers.add(Job, "job_running", kind="inspect", model_id="mdl_gone", spec={}, status="cancelling")
    leftovers.add(Job, "job_repair", kind="repair", model_id="mdl_used", spec={}, status="failed")
    leftovers.sweep()
    assert leftovers.ids(Job) == {"job_running", "job_repair", "job_inspect_there"}
    assert leftovers.ids(Model) == {"mdl_used", "mdl_gone", "mdl_there"}
    with leftovers.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == "job_running").values(status="cancelled"))
    leftovers.sweep()
    assert leftovers.ids(Model) == {"mdl_used", "mdl_there"}
    assert "blobs/gone" not in stored_keys(settings)
    assert "blobs/there" in stored_keys(settings)


def test_a_deleted_dataset_goes_and_a_builtin_one_when_no_job_can_wait_for_its_name(leftovers, settings, sessions):
    made = {"name": "d", "reference": "upload:file", "state": "ready"}
    leftovers.add(Dataset, "ds_file", deleted_at=5.0, job_id="job_ingest", **made, **leftovers.content("blobs/d"))
    leftovers.add(Job, "job_ingest", kind="ingest", spec={}, status="succeeded")
    with sessions() as session:
        now = session.scalar(select(db_now()))
    leftovers.add(Dataset, "ds_builtin", deleted_at=now - 60, **made)
    leftovers.add(Dataset, "ds_old", deleted_at=now - KEEP_SECONDS - 60, **made)
    leftovers.add(Dataset, "ds_there", **made)
    leftovers.add(Job, "job_running", kind="ingest", spec={}, status="cancelling")
    leftovers.add(Dataset, "ds_read", deleted_at=5.0, job_id="job_running", **made)
    leftovers.sweep()
    assert leftovers.ids(Dataset) == {"ds_builtin", "ds_there", "ds_read"}
    assert leftovers.ids(Job) == {"job_running"}
    with sessions.begin() as session:
        session.execute(update(Job).values(status="cancelled"))
    leftovers.sweep()
    assert leftovers.ids(Dataset) == {"ds_builtin", "ds_there"}
    assert leftovers.ids(Job) == set()
    assert stored_keys(settings) == []


def test_uploads_that_are_over_give_their_bytes_and_then_their_rows(leftovers, settings, sessions):
    with sessions() as session:
        now = session.scalar(select(db_now()))
    for upload_id, ends in (
        ("upl_crashed", {"state": "expired", "expires_at": now - 60}),
        ("upl_deleted", {"state": "completed", "expires_at": now + 60, "deleted_at": now}),
        ("upl_old", {"state": "expired", "expires_at": now - KEEP_SECONDS - 60}),
        ("upl_there", {"state": "completed", "expires_at": now + 60}),
    ):
        leftovers.add(Upload, upload_id, part_bytes=7, **ends, **leftovers.content(f"blobs/{upload_id}"))
        key = f"uploads/{upload_id}/1-x"
        obstore.put(leftovers.store, key, b"part")
        with sessions.begin() as session:
            session.add(UploadPart(upload_id=upload_id, number=1, size_bytes=4, sha256="0" * 64, storage_key=key))
    leftovers.sweep()
    assert stored_keys(settings) == ["blobs/upl_there", "uploads/upl_there/1-x"]
    assert leftovers.ids(Upload) == {"upl_crashed", "upl_deleted", "upl_there"}


def test_revoked_keys_and_endpoints_without_a_log_go_after_a_month(leftovers, sessions, project_id):
    with sessions.begin() as session:
        keys = {name: add_api_key(session, project_id=project_id, name=name)[0].id for name in ("old", "new", "live")}
        for name, ago in (("old", KEEP_SECONDS + 60), ("new", 60.0)):
            session.execute(update(ApiKey).where(ApiKey.id == keys[name]).values(revoked_at=db_now() - ago))
    of = {"url": "https://hooks.example/", "events": ["job.failed"]}
    for endpoint_id, deleted_at in (("whk_old", LONG_AGO), ("whk_logged", LONG_AGO), ("whk_live", None)):
        leftovers.add(WebhookEndpoint, endpoint_id, deleted_at=deleted_at, **of)
    leftovers.add(WebhookDelivery, "whd_1", endpoint_id="whk_logged", project_id=project_id, url=of["url"],
                  event="job.failed", payload={}, state="failed")  # fmt: skip
    leftovers.sweep()
    assert {keys["new"], keys["live"]} <= leftovers.ids(ApiKey)
    assert keys["old"] not in leftovers.ids(ApiKey)
    assert leftovers.ids(WebhookEndpoint) == {"whk_logged", "whk_live"}


def test_a_batch_at_a_time(leftovers, monkeypatch):
    monkeypatch.setattr(forgetting, "BATCH", 2)
    for number in range(3):
        leftovers.add(Model, f"mdl_{number}", deleted_at=5.0, **leftovers.content(f"blobs/{number}"))
    forget_deleted(leftovers.sessions, leftovers.store)
    assert len(leftovers.ids(Model)) == 1
    forget_deleted(leftovers.sessions, leftovers.store)
    assert leftovers.ids(Model) == set()
