import base64
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.keys import create_api_key, ensure_project
from app.shared.db import make_engine, make_sessions
from app.shared.storage import open_store
from app.shared.tables import Upload, UploadPart
from app.shared.uploads import begin_completion, free_expired_uploads, locked_upload
from tests.conftest import launch_gateway
from tests.resident_memory import resident_bytes
from tests.servers import keys_of_content, stop, stored_keys

CONTENT = bytes(range(256)) * 100  # 25,600 bytes
PART = 10_000
on_s3 = pytest.mark.parametrize("stack", ["production"], indirect=True)
on_local_files = pytest.mark.parametrize("stack", ["embedded"], indirect=True)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_digest(content: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"}


def pieces(content: bytes, part_bytes: int = PART) -> dict[int, bytes]:
    starts = range(0, len(content), part_bytes)
    return {number: content[start : start + part_bytes] for number, start in enumerate(starts, 1)}


@pytest.fixture
def begin(gateway) -> Callable[..., dict[str, Any]]:
    """Begins an upload of CONTENT over HTTP and gives it."""

    def begin_one(content: bytes = CONTENT, **fields: Any) -> dict[str, Any]:
        body = {"filename": "signs.npz", "size_bytes": len(content), "part_bytes": PART, **fields}
        answer = gateway.client.post("/v1/uploads", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    return begin_one


def put(client: httpx.Client, upload: dict[str, Any], number: int, content: bytes, **headers: str) -> httpx.Response:
    return client.put(f"{upload['links']['self']}/parts/{number}", content=content, headers=headers)


def put_all(client: httpx.Client, upload: dict[str, Any], content: bytes = CONTENT) -> None:
    for number, piece in pieces(content, upload["part_bytes"]).items():
        answer = put(client, upload, number, piece)
        assert answer.status_code == 200, answer.text


def complete(client: httpx.Client, upload: dict[str, Any], **options: Any) -> httpx.Response:
    return client.post(upload["links"]["complete"], **options)


def test_a_file_comes_in_parts_in_any_order_and_becomes_one(gateway, begin):
    upload = begin(sha256=sha256(CONTENT))
    assert (upload["object"], upload["state"], upload["done"], upload["part_count"]) == ("upload", "open", False, 3)
    assert upload["parts"] == []
    for number, piece in reversed(pieces(CONTENT).items()):
        answer = put(gateway.client, upload, number, piece, **content_digest(piece))
        assert answer.json() == {
            "object": "upload_part", "number": number, "size_bytes": len(piece), "sha256": sha256(piece)
        }  # fmt: skip
    assert [part["number"] for part in gateway.client.get(upload["links"]["self"]).json()["parts"]] == [1, 2, 3]

    first, second = complete(gateway.client, upload), complete(gateway.client, upload)

    done = first.json()
    assert (first.status_code, done["state"], done["done"], done["sha256"]) == (200, "completed", True, sha256(CONTENT))
    assert (second.status_code, second.json()) == (200, done)
    assert gateway.client.get(upload["links"]["self"]).json() == done
    assert len(keys_of_content(gateway.settings, CONTENT)) == 1
    assert stored_keys(gateway.settings, f"uploads/{upload['id']}") == []


def test_without_a_digest_the_whole_is_digested_when_it_is_there(gateway, begin):
    content = CONTENT + b"another"
    upload = begin(content)
    put_all(gateway.client, upload, content)
    assert complete(gateway.client, upload).json()["sha256"] == sha256(content)
    assert len(keys_of_content(gateway.settings, content)) == 1


def test_a_part_sent_again_takes_the_place_of_the_one_before(gateway, begin):
    content = os.urandom(2 * PART)
    upload = begin(content)
    put_all(gateway.client, upload, content)
    put(gateway.client, upload, 2, b"x" * PART)
    assert put(gateway.client, upload, 2, content[PART:]).json()["sha256"] == sha256(content[PART:])
    assert len(stored_keys(gateway.settings, f"uploads/{upload['id']}")) == 2
    assert complete(gateway.client, upload).json()["sha256"] == sha256(content)


def test_parts_come_in_over_several_connections_at_once(gateway, begin):
    content = os.urandom(40 * PART)
    upload = begin(content, sha256=sha256(content))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda item: put(gateway.client, upload, *item), pieces(content).items()))
    assert {answer.status_code for answer in answers} == {200}
    assert complete(gateway.client, upload).json()["state"] == "completed"


@pytest.mark.parametrize(
    ("number", "content", "headers", "status", "code", "said"),
    [
        (1, CONTENT[:PART], content_digest(b"other"), 422, "upload.digest_mismatch", sha256(b"other")),
        (1, CONTENT[:PART], content_digest(b"other"), 422, "upload.digest_mismatch", sha256(CONTENT[:PART])),
        (1, CONTENT[: PART - 1], {}, 422, "upload.wrong_part_size", "9,999"),
        (1, CONTENT[: PART + 1], {}, 422, "upload.wrong_part_size", "10,001"),
        (1, b"", {}, 422, "upload.wrong_part_size", "10,000"),
        (3, CONTENT[:PART], {}, 422, "upload.wrong_part_size", "5,600"),
        (4, CONTENT[:PART], {}, 404, "upload.no_such_part", "1 to 3"),
        (0, CONTENT[:PART], {}, 422, "request.invalid", "greater than or equal to 1"),
        (1, CONTENT[:PART], {"Content-Digest": "sha-256=abc"}, 422, "request.invalid", "no digest"),
        (1, CONTENT[:PART], {"Content-Digest": "sha-256=:abc:"}, 422, "request.invalid", "no digest"),
    ],
)
def test_a_wrong_part_is_refused_and_leaves_nothing(gateway, begin, number, content, headers, status, code, said):
    upload = begin()
    answer = put(gateway.client, upload, number, content, **headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert said in answer.json()["detail"]
    assert gateway.client.get(upload["links"]["self"]).json()["parts"] == []
    assert stored_keys(gateway.settings, f"uploads/{upload['id']}") == []


def test_a_part_without_a_length_is_counted_as_it_comes(gateway, begin):
    upload = begin()
    for content, status in ((CONTENT[: PART - 1], 422), (CONTENT[: PART + 1], 422), (CONTENT[:PART], 200)):
        answer = gateway.client.put(f"{upload['links']['self']}/parts/1", content=iter([content]))
        assert answer.status_code == status, answer.text


def test_other_digests_than_sha256_are_passed_over(gateway, begin):
    answer = put(gateway.client, begin(), 1, CONTENT[:PART], **{"Content-Digest": "sha-512=:YWJj:"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "code", "pointer", "said"),
    [
        ({"size_bytes": 9 * 1024**3}, 413, "upload.too_large", None, "8,589,934,592"),
        ({"part_bytes": 65 * 1024**2}, 422, "upload.part_too_large", "#/part_bytes", "67,108,864"),
        ({"part_bytes": 25}, 422, "upload.too_many_parts", "#/part_bytes", "1,024 parts; the limit is 1,000"),
        ({"size_bytes": 0}, 422, "request.invalid", "#/size_bytes", "greater than or equal to 1"),
        ({"sha256": "abc"}, 422, "request.invalid", "#/sha256", "pattern"),
        ({"sise": 1}, 422, "request.invalid", "#/sise", "not permitted"),
    ],
)
def test_limits_of_an_upload_are_named_in_their_errors(gateway, fields, status, code, pointer, said):
    body = {"filename": "signs.npz", "size_bytes": len(CONTENT), "part_bytes": PART, **fields}
    answer = gateway.client.post("/v1/uploads", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert said in answer.json()["detail"]
    assert answer.json()["hint"]
    assert [error["pointer"] for error in answer.json()["errors"]] == ([pointer] if pointer else [])


def test_the_same_idempotency_key_begins_one_upload(gateway):
    body, headers = {"filename": "a", "size_bytes": 5}, {"Idempotency-Key": f"upload-{time.time()}"}
    answers = [gateway.client.post("/v1/uploads", json=body, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert answers[0].headers["location"] == answers[0].json()["links"]["self"]


def test_an_upload_with_missing_parts_says_which_and_stays_open(gateway, begin):
    upload = begin()
    put(gateway.client, upload, 2, pieces(CONTENT)[2])
    answer = complete(gateway.client, upload)
    assert (answer.status_code, answer.json()["code"]) == (422, "upload.parts_missing")
    assert "2 are missing: 1, 3" in answer.json()["detail"]
    assert gateway.client.get(upload["links"]["self"]).json()["state"] == "open"
    put_all(gateway.client, upload)
    assert complete(gateway.client, upload).status_code == 200


def test_a_file_that_is_not_what_it_should_be_fails_for_good_and_frees_its_parts(gateway, begin):
    content = os.urandom(len(CONTENT))
    upload = begin(content, sha256=sha256(b"something else"))
    put_all(gateway.client, upload, content)
    for answer in (complete(gateway.client, upload), complete(gateway.client, upload)):
        assert (answer.status_code, answer.json()["code"]) == (422, "upload.digest_mismatch")
        assert sha256(b"something else") in answer.json()["detail"]
        assert sha256(content) in answer.json()["detail"]
    shown = gateway.client.get(upload["links"]["self"]).json()
    assert (shown["state"], shown["done"], shown["error"]["code"]) == ("failed", True, "upload.digest_mismatch")
    again = put(gateway.client, upload, 1, content[:PART])
    assert (again.status_code, again.json()["code"]) == (409, "upload.not_open")
    keys = stored_keys(gateway.settings)
    assert not [key for key in keys if upload["id"] in key or sha256(content) in key]


def test_a_completed_upload_takes_no_more_parts(gateway, begin):
    upload = begin()
    put_all(gateway.client, upload)
    complete(gateway.client, upload)
    answer = put(gateway.client, upload, 1, CONTENT[:PART])
    assert (answer.status_code, answer.json()["code"]) == (409, "upload.not_open")


def test_a_long_completion_is_answered_before_it_is_over(gateway, begin):
    content = os.urandom(8 * 1024 * 1024)
    upload = begin(content, part_bytes=4 * 1024 * 1024)
    put_all(gateway.client, upload, content)
    answer = complete(gateway.client, upload, params={"wait": 0})
    assert (answer.status_code, answer.json()["state"], answer.json()["done"]) == (202, "completing", False)
    assert int(answer.headers["retry-after"]) > 0
    assert put(gateway.client, upload, 1, content[: upload["part_bytes"]]).status_code == 409
    assert complete(gateway.client, upload).json()["sha256"] == sha256(content)


def test_a_deleted_upload_is_gone_with_its_bytes(gateway, begin):
    parts_only, whole = begin(), begin(CONTENT + b"to be deleted")
    put(gateway.client, parts_only, 1, CONTENT[:PART])
    put_all(gateway.client, whole, CONTENT + b"to be deleted")
    complete(gateway.client, whole)
    for upload in (parts_only, whole):
        assert gateway.client.delete(upload["links"]["self"]).status_code == 204
        answer = gateway.client.get(upload["links"]["self"])
        assert (answer.status_code, answer.json()["code"]) == (404, "upload.not_found")
        assert put(gateway.client, upload, 1, CONTENT[:PART]).status_code == 404
    keys = stored_keys(gateway.settings)
    assert not [key for key in keys if parts_only["id"] in key or sha256(CONTENT + b"to be deleted") in key]


def test_another_projects_upload_is_as_absent_as_none(gateway, begin, stranger_key):
    upload = begin()
    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {stranger_key}"}) as stranger:
        answers = [
            stranger.get(upload["links"]["self"]),
            put(stranger, upload, 1, CONTENT[:PART]),
            complete(stranger, upload),
            stranger.delete(upload["links"]["self"]),
        ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "upload.not_found")] * 4


@pytest.fixture
def reader_key(gateway_sessions: sessionmaker[Session], project: str) -> str:
    with gateway_sessions.begin() as session:
        return create_api_key(session, project_id=project, name="reader", scopes=["uploads:read"])


@pytest.fixture
def project(gateway_sessions: sessionmaker[Session]) -> str:
    with gateway_sessions.begin() as session:
        return ensure_project(session).id


def test_uploading_needs_its_scope(gateway, begin, reader_key):
    upload = begin()
    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {reader_key}"}) as reader:
        assert reader.get(upload["links"]["self"]).status_code == 200
        refused = [put(reader, upload, 1, CONTENT[:PART]), complete(reader, upload),
                   reader.delete(upload["links"]["self"]), reader.post("/v1/uploads", json={})]  # fmt: skip
    assert [answer.json()["code"] for answer in refused] == ["auth.missing_scope"] * 4


def expire(sessions: sessionmaker[Session], upload_id: str) -> None:
    with sessions.begin() as session:
        session.execute(update(Upload).where(Upload.id == upload_id).values(expires_at=1.0))


def test_uploads_nobody_finishes_or_uses_end_with_their_bytes(gateway, begin, gateway_sessions):
    content = CONTENT + b"never used"
    started, whole, alive = begin(), begin(content), begin()
    for upload in (started, alive):
        put(gateway.client, upload, 1, CONTENT[:PART])
    put_all(gateway.client, whole, content)
    complete(gateway.client, whole)
    for upload in (started, whole):
        expire(gateway_sessions, upload["id"])
    late = put(gateway.client, started, 2, CONTENT[PART : 2 * PART])
    assert (late.status_code, late.json()["code"]) == (409, "upload.not_open")

    assert set(free_expired_uploads(gateway_sessions, open_store(gateway.settings.store_url))) == {
        started["id"], whole["id"]
    }  # fmt: skip

    for upload in (started, whole):
        shown = gateway.client.get(upload["links"]["self"]).json()
        assert (shown["state"], shown["done"], shown["parts"]) == ("expired", True, [])
        answer = complete(gateway.client, upload)
        assert (answer.status_code, answer.json()["code"]) == (409, "upload.not_open")
    keys = stored_keys(gateway.settings)
    assert not [key for key in keys if started["id"] in key or sha256(content) in key]
    assert [key for key in keys if alive["id"] in key]


def test_an_abandoned_completion_is_begun_again_and_its_late_end_refused(gateway, begin, gateway_sessions):
    """A gateway that died while it copied, played by a lease nobody renews."""
    upload = begin(sha256=sha256(CONTENT))
    put_all(gateway.client, upload)
    with gateway_sessions.begin() as session:
        begin_completion(session, locked_upload(session, upload["id"])[0])
    waiting = complete(gateway.client, upload, params={"wait": 0})
    assert (waiting.status_code, waiting.json()["state"]) == (202, "completing")
    with gateway_sessions.begin() as session:
        session.execute(update(Upload).where(Upload.id == upload["id"]).values(lease_until=1.0))
    assert gateway.client.get(upload["links"]["self"]).json()["state"] == "open"
    assert complete(gateway.client, upload).json()["state"] == "completed"


@on_local_files
def test_a_local_store_signs_no_urls(gateway, begin):
    refused = [
        gateway.client.post("/v1/uploads", json={"filename": "a", "size_bytes": 5, "presigned": True}),
        gateway.client.get(begin()["links"]["self"], params={"presign": True}),
    ]
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (422, "upload.no_signed_urls")
        assert "/parts/" in answer.json()["hint"]


@on_s3
def test_parts_go_to_the_store_directly_by_signed_urls(gateway, begin):
    upload = begin(sha256=sha256(CONTENT), presigned=True)
    parts = pieces(CONTENT)
    assert [(item["number"], item["size_bytes"]) for item in upload["part_urls"]] == [(1, PART), (2, PART), (3, 5600)]
    for item in upload["part_urls"][:2]:
        assert f"uploads/{upload['id']}/" in item["url"]
        assert httpx.put(item["url"], content=parts[item["number"]]).status_code == 200

    again = gateway.client.get(upload["links"]["self"], params={"presign": True}).json()
    assert [(part["number"], part["sha256"]) for part in again["parts"]] == [(1, None), (2, None)]
    assert [item["number"] for item in again["part_urls"]] == [3]
    put(gateway.client, upload, 3, parts[3])  # one may still come through the gateway

    told = {"parts": [{"number": number, "sha256": sha256(piece)} for number, piece in parts.items()]}
    done = complete(gateway.client, upload, json=told)
    assert (done.status_code, done.json()["sha256"]) == (200, sha256(CONTENT))
    assert len(keys_of_content(gateway.settings, CONTENT)) == 1
    assert stored_keys(gateway.settings, f"uploads/{upload['id']}") == []


@on_s3
def test_a_part_at_a_signed_url_is_not_believed(gateway, begin, reader_key):
    upload = begin(presigned=True)
    parts = pieces(CONTENT)
    told = {"parts": [{"number": number, "sha256": sha256(piece)} for number, piece in parts.items()]}
    for item in upload["part_urls"]:
        httpx.put(item["url"], content=parts[item["number"]][:-1])
    short = complete(gateway.client, upload, json=told)
    assert (short.status_code, short.json()["code"]) == (422, "upload.wrong_part_size")
    for item in upload["part_urls"]:
        httpx.put(item["url"], content=b"x" * item["size_bytes"])
    wrong = complete(gateway.client, upload, json=told)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "upload.digest_mismatch")
    assert "Part 1" in wrong.json()["detail"]
    headers = {"Authorization": f"Bearer {reader_key}"}
    refused = gateway.client.get(begin()["links"]["self"], params={"presign": True}, headers=headers)
    assert refused.json()["code"] == "auth.missing_scope"


@on_s3
def test_a_signed_url_writes_one_part_and_opens_nothing_else(gateway, begin):
    (first, second, *_), content = begin(presigned=True)["part_urls"], pieces(CONTENT)
    assert httpx.put(first["url"], content=content[1]).status_code == 200
    query = first["url"].partition("?")[2]
    other = f"{second['url'].partition('?')[0]}?{query}"
    later = first["url"].replace("X-Amz-Expires=3600", "X-Amz-Expires=604800")
    assert later != first["url"]
    unsigned = first["url"].partition("?")[0]
    tried = [httpx.get(first["url"]), httpx.delete(first["url"]), httpx.put(other, content=content[2]),
             httpx.put(later, content=content[1]), httpx.put(unsigned, content=content[1])]  # fmt: skip
    assert [answer.status_code for answer in tried] == [403] * len(tried)


@pytest.mark.slow
@on_s3
def test_signed_urls_name_the_store_as_clients_reach_it(stack, tmp_path, start_gateway):
    settings = stack.fresh(tmp_path / "state", store_public_endpoint="https://files.example.org")
    with start_gateway(settings) as running:
        answer = running.client.post("/v1/uploads", json={"filename": "a", "size_bytes": 5, "presigned": True})
        (item,) = answer.json()["part_urls"]
    assert item["url"].startswith("https://files.example.org/")
    assert "X-Amz-Signature=" in item["url"]
    assert "X-Amz-Expires=3600" in item["url"]


@pytest.mark.slow
def test_an_upload_outlives_its_gateway(settings, tmp_path):
    """kill -9 in the middle of a part; what had arrived whole is there for the next gateway, and only that."""
    content = os.urandom(6_000_000)
    parts = pieces(content, 2_000_000)
    first = launch_gateway(settings, tmp_path / "first.log")
    upload = first.client.post(
        "/v1/uploads", json={"filename": "f", "size_bytes": len(content), "part_bytes": 2_000_000,
                             "sha256": sha256(content)}
    ).json()  # fmt: skip
    put(first.client, upload, 1, parts[1])

    def half() -> Any:
        yield parts[2][:1_000_000]
        os.kill(first.process.pid, signal.SIGKILL)
        yield parts[2][1_000_000:]

    with pytest.raises(httpx.TransportError):
        first.client.put(f"{upload['links']['self']}/parts/2", content=half())
    first.process.wait()
    first.client.close()

    second = launch_gateway(settings, tmp_path / "second.log")
    try:
        known = {part["number"] for part in second.client.get(upload["links"]["self"]).json()["parts"]}
        assert known == {1}
        for number in set(parts) - known:
            assert put(second.client, upload, number, parts[number]).status_code == 200
        assert complete(second.client, upload).json()["state"] == "completed"
        assert stored_keys(settings, "uploads") == []
    finally:
        second.client.close()
        stop(second.process)


@pytest.mark.slow
@on_local_files
def test_a_large_upload_does_not_pass_through_the_gateways_memory(own_gateway):
    part_bytes, count = 64 * 1024**2, 4
    piece = os.urandom(1024**2) * 64
    digest = hashlib.sha256(piece * count).hexdigest()
    body = {"filename": "f", "size_bytes": part_bytes * count, "sha256": digest}
    client, pid = own_gateway.client, own_gateway.process.pid
    assert client.get("/v1/jobs").status_code == 200
    before = resident_bytes(pid=pid)
    upload = client.post("/v1/uploads", json=body).json()
    for number in range(1, count + 1):
        assert put(client, upload, number, piece, **content_digest(piece)).status_code == 200
    waits = []
    thread = threading.Thread(target=lambda: waits.append(complete(client, upload, timeout=60)))
    thread.start()
    while thread.is_alive():
        started = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - started < 1.0
        time.sleep(0.02)
    thread.join()
    assert waits[0].json()["sha256"] == digest
    growth = resident_bytes("VmHWM", pid=pid) - before
    assert growth < 100 * 1024**2, f"{growth / 1024**2:.0f} MiB"


def test_rows_of_parts_go_with_their_upload(settings, sessions, project_id):
    engine = make_engine(settings.database_url)
    with make_sessions(engine).begin() as session:
        row = Upload(
            id="upl_" + "0" * 26, project_id=project_id, filename="f", size_bytes=1, part_bytes=1, expires_at=1.0
        )
        session.add(row)
        session.flush()
        session.add(UploadPart(upload_id=row.id, number=1, size_bytes=1, sha256="0" * 64, storage_key="uploads/x/1"))
    assert free_expired_uploads(make_sessions(engine), open_store(settings.store_url)) == ["upl_" + "0" * 26]
    with make_sessions(engine)() as session:
        assert session.scalars(select(UploadPart)).all() == []
    engine.dispose()
