"""Equal contents share one object, wherever the store has them, and go with the last row that names them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import obstore
import pytest

from app.shared.contents import free_content, keep_content, lock_contents
from app.shared.jobs import submit_job
from app.shared.leftovers import sweep_contents
from app.shared.storage import StoredFile, open_store, put_stream, sweep_uploads
from app.shared.tables import Dataset, JobInput, Model, Upload
from tests.servers import stored_bytes, stored_keys

CONTENT = b"weights and biases" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(settings):
    return open_store(settings.store_url)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


def receive(store, content: bytes = CONTENT) -> StoredFile:
    return asyncio.run(put_stream(store, pieces(content)))


def keep(sessions, store, project_id, model_id):
    """What a request does with a file that came in: a model of its own refers to it."""
    received = receive(store)
    with sessions.begin() as session:
        lock_contents(session, [SHA256])
        kept = keep_content(session, store, received)
        session.add(Model(id=model_id, project_id=project_id, filename="m.pt", **vars(kept)))
    return kept


def test_equal_files_share_one_object(sessions, settings, store, project_id):
    first = keep(sessions, store, project_id, "mdl_1")
    assert keep(sessions, store, project_id, "mdl_2") == first
    assert stored_keys(settings) == [first.storage_key]
    assert stored_bytes(settings, first.storage_key) == CONTENT
    assert sweep_contents(sessions, store, older_than_seconds=-60) == 0


def test_an_equal_content_that_is_gone_or_going_is_not_taken(sessions, settings, store, project_id):
    first = keep(sessions, store, project_id, "mdl_1")
    obstore.delete(store, first.storage_key)  # the store lost it: what comes in heals nothing, but stands for itself
    second = keep(sessions, store, project_id, "mdl_2")
    assert stored_keys(settings) == [second.storage_key]
    with sessions.begin() as session:
        for model_id in ("mdl_1", "mdl_2"):
            session.get_one(Model, model_id).deleted_at = 1.0
    third = keep(sessions, store, project_id, "mdl_3")  # nobody has removed the bytes of the second yet
    assert third.storage_key in stored_keys(settings)
    for kept in (first, second, third):
        with sessions.begin() as session:
            free_content(session, store, sha256=SHA256, storage_key=kept.storage_key)
    assert stored_keys(settings) == [third.storage_key]


def test_what_came_in_and_was_never_kept_is_swept_later(sessions, settings, store):
    receive(store)
    assert sweep_contents(sessions, store, older_than_seconds=3600) == 0
    swept = [
        sweep(older_than_seconds=-60)
        for sweep in (partial(sweep_contents, sessions, store), partial(sweep_uploads, store))
    ]
    assert (sum(swept), stored_keys(settings)) == (1, []), "a directory has it among uploads, S3 among contents"


@pytest.mark.parametrize(
    "user",
    ["nothing", "model", "deleted model", "input", "upload", "deleted upload", "dataset",
     "deleted dataset"],
)  # fmt: skip
def test_bytes_are_freed_when_nothing_else_refers_to_them(sessions, project_id, model_id, tmp_path: Path, user: str):
    store = open_store(tmp_path.as_uri())
    obstore.put(store, "blobs/none", b"content")
    with sessions.begin() as session:
        job = submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
        file = {"filename": "f", "sha256": "0" * 64, "size_bytes": 7, "storage_key": "blobs/none"}
        session.get_one(Model, model_id).deleted_at = 1.0
        if user == "input":
            session.add(JobInput(job_id=job.id, name="upload:repair", **file))
        elif user != "nothing":
            columns = {
                "id": "other",
                "project_id": project_id,
                "deleted_at": 1.0 if "deleted" in user else None,
                **file,
            }
            made = {
                "model": lambda: Model(**columns),
                "upload": lambda: Upload(**columns, part_bytes=7, expires_at=1.0),
                "dataset": lambda: Dataset(**columns, name="d", reference="upload:file"),
            }
            session.add(made[user.rpartition(" ")[2]]())
    with sessions.begin() as session:
        freed = free_content(session, store, sha256="0" * 64, storage_key="blobs/none")
    assert freed == (user == "nothing" or user.startswith("deleted"))
    assert (tmp_path / "blobs" / "none").exists() != freed
