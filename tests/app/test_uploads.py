import socket
import time
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from app.shared.tables import Job, Model
from app.uploads import safe_filename
from tests.resident_memory import resident_bytes
from tests.servers import stored_keys

BOUNDARY = "a-boundary"
SPEC_PART = b'{"datasets": {"repair": "upload:repair"}}'
REFERENCE_SPEC = b'{"datasets": {"repair": "upload:repair"}, "model": {"reference": "upload:good"}}'
MODEL = b"PK\x03\x04" + b"m" * 100


def part(name: str, content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.bin"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def body_of(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(part(name, content) for name, content in parts) + f"--{BOUNDARY}--\r\n".encode()


def post(gateway, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}"):
    return gateway.client.post("/v1/jobs", content=body, headers={"Content-Type": content_type})


def connect(gateway, content_length: int) -> socket.socket:
    """A raw connection that has sent the head of an upload."""
    address = urlsplit(gateway.url)
    assert address.port is not None
    connection = socket.create_connection(("127.0.0.1", address.port), timeout=30)
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {gateway.key}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {content_length}\r\n\r\n"
    )
    connection.sendall(head.encode())
    return connection


def kept(gateway, gateway_sessions) -> tuple[set[str], int, int]:
    """Every key of the store, and how many rows there are."""
    with gateway_sessions() as session:
        jobs, models = (session.scalar(select(func.count()).select_from(table)) for table in (Job, Model))
    return set(stored_keys(gateway.settings)), jobs, models


@pytest.mark.parametrize(
    ("parts", "status", "code", "said"),
    [
        ([("model", MODEL), ("spec", SPEC_PART)], 422, "spec.not_first", "'model'"),
        ([], 422, "spec.missing", "no parts"),
        ([("spec", SPEC_PART), ("model", MODEL)], 422, "dataset.missing_upload", "'upload:repair'"),
        ([("spec", SPEC_PART), ("repair", b"r")], 422, "model.missing", "received: repair"),
        ([("spec", REFERENCE_SPEC), ("model", MODEL), ("repair", b"r")], 422, "dataset.missing_upload", "upload:good"),
        ([("spec", SPEC_PART), ("model", MODEL), ("repair", b"r"), ("tset", b"t")], 422, "dataset.unreferenced_upload",
         "'tset'"),
        ([("spec", SPEC_PART), ("model", MODEL), ("model", MODEL)], 422, "upload.duplicate_part", "'model'"),
        ([("spec", SPEC_PART), ("spec", SPEC_PART)], 422, "upload.duplicate_part", "'spec'"),
        ([("spec", SPEC_PART), ("model", b"\x80\x02}q\x00.")], 422, "model.not_torchscript", "pickle"),
        ([("spec", SPEC_PART), ("model", b"MZ\x90\x00")], 422, "model.not_torchscript", "MZ"),
        ([("spec", SPEC_PART), ("model", b"PK")], 422, "model.not_torchscript", "PK"),
        ([("spec", SPEC_PART), ("model", b"")], 422, "model.not_torchscript", "empty"),
        ([("spec", b" " * 20_000)], 413, "spec.too_large", "16,384"),
        ([("spec", SPEC_PART), ("model", MODEL + b"x" * 9_000_000)], 413, "upload.too_large", "one_shot_body_bytes"),
    ],
)  # fmt: skip
def test_a_wrong_upload_is_refused_and_leaves_nothing(gateway, gateway_sessions, parts, status, code, said):
    before = kept(gateway, gateway_sessions)
    answer = post(gateway, body_of(*parts))
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert said in body["detail"]
    assert kept(gateway, gateway_sessions) == before


def test_a_body_without_a_length_is_limited_too(gateway, gateway_sessions):
    before = kept(gateway, gateway_sessions)

    def chunks():
        yield part("spec", SPEC_PART)
        yield part("model", MODEL)[:-2]
        for _ in range(100):
            yield b"x" * 100_000

    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = gateway.client.post("/v1/jobs", content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "upload.too_large")
    assert kept(gateway, gateway_sessions) == before


@pytest.mark.slow
def test_the_limit_of_one_request_is_512_mib_and_says_how_to_send_more(embedded, tmp_path, in_process_gateway):
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Content-Length": str(512 * 1024**2 + 1)}
    with in_process_gateway(embedded.fresh(tmp_path / "state")) as client:
        answer = client.post("/v1/jobs", content=b"", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "upload.too_large")
    assert "536,870,912" in answer.json()["detail"]
    assert "/v1/uploads" in answer.json()["hint"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"x", "text/plain", 415, "request.unsupported_media_type"),
        (b"x", "multipart/form-data", 422, "upload.malformed"),
        (b"x", "multipart/form-data; boundary=" + "b" * 300, 422, "upload.malformed"),
        (b"not a multipart body", f"multipart/form-data; boundary={BOUNDARY}", 422, "upload.malformed"),
        (b"--a-boundary\r\nX: y\r\n\r\nz\r\n", f"multipart/form-data; boundary={BOUNDARY}", 422, "upload.malformed"),
        (part("spec", SPEC_PART) + part("model", MODEL), f"multipart/form-data; boundary={BOUNDARY}", 422,
         "upload.truncated"),
        (b"", f"multipart/form-data; boundary={BOUNDARY}", 422, "upload.truncated"),
        (SPEC_PART, "application/json", 422, "dataset.missing_upload"),
    ],
)  # fmt: skip
def test_a_malformed_body_is_refused(gateway, gateway_sessions, body, content_type, status, code):
    before = kept(gateway, gateway_sessions)
    answer = post(gateway, body, content_type)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert kept(gateway, gateway_sessions) == before


def test_a_wrong_spec_is_refused_before_the_model_is_sent(gateway):
    with connect(gateway, content_length=5_000_000) as connection:
        connection.sendall(part("spec", b'{"datasets": {"repair": "upload:repair"}, "sede": 1}') + part("model", MODEL))
        started = time.monotonic()
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"Did you mean 'seed'?" in answer
    assert time.monotonic() - started < 5


def test_a_client_that_sends_on_after_a_refusal_still_hears_it(gateway):
    answer = post(gateway, body_of(("spec", b"{}"), ("model", MODEL + b"x" * 7_000_000)))
    assert (answer.status_code, answer.json()["code"]) == (422, "spec.invalid")


def test_an_upload_that_breaks_off_leaves_nothing(gateway, gateway_sessions):
    before = kept(gateway, gateway_sessions)
    with connect(gateway, content_length=7_000_000) as connection:
        complete = part("spec", SPEC_PART) + part("repair", b"a finished file that must go too")
        connection.sendall(complete + part("model", MODEL)[:-2] + b"x" * 6_000_000)
        deadline = time.monotonic() + 10
        while kept(gateway, gateway_sessions) == before:
            assert time.monotonic() < deadline, "the upload must have begun"
            time.sleep(0.02)
    deadline = time.monotonic() + 10
    while kept(gateway, gateway_sessions) != before:
        assert time.monotonic() < deadline, kept(gateway, gateway_sessions)[0] - before[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_large_upload_stays_out_of_memory(own_gateway):
    gateway, megabyte = own_gateway, bytes(range(256)) * 4096
    head = part("spec", SPEC_PART) + part("repair", b"r") + part("model", b"PK\x03\x04")[:-2]
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    gateway.client.get("/readyz")
    before = resident_bytes(pid=gateway.process.pid)
    with connect(gateway, content_length=len(head) + 150 * len(megabyte) + len(tail)) as connection:
        connection.sendall(head)
        for _ in range(150):
            connection.sendall(megabyte)
        connection.sendall(tail)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202 ")
    assert resident_bytes("VmHWM", pid=gateway.process.pid) - before < 60 * 2**20


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("/home/me/resnet18.pt", "resnet18.pt"),
        ("C:\\models\\net.pt", "net.pt"),
        ("..", "model"),
        ("", "model"),
        ("a\r\nSet-Cookie: x\x00.pt", "aSet-Cookie: x.pt"),
        ("модель.pt", "модель.pt"),
        ("x" * 300 + ".pt", "x" * 197 + ".pt"),
    ],
)
def test_a_file_name_is_made_harmless(sent, shown):
    assert safe_filename(sent, "model") == shown
