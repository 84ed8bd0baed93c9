import json

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.errors import install_error_handlers
from app.logs import configure_logs
from app.middleware import RequestBorder


@pytest.fixture
def crashing() -> FastAPI:
    """An app whose only route fails in a way nobody foresaw."""
    app = FastAPI()
    app.add_middleware(RequestBorder)
    install_error_handlers(app)

    @app.get("/crash")
    def crash() -> None:
        raise ZeroDivisionError("secret internals")

    return app


def test_a_request_id_comes_back_and_a_bad_one_is_replaced(gateway):
    assert gateway.client.get("/healthz", headers={"X-Request-Id": "ci-7741"}).headers["x-request-id"] == "ci-7741"
    for given in ("two words", "x" * 200, None):
        headers = {"X-Request-Id": given} if given else {}
        assert gateway.client.get("/healthz", headers=headers).headers["x-request-id"].startswith("req_")


def test_a_crash_is_a_problem_that_tells_the_client_nothing_and_the_log_everything(crashing, capfd):
    configure_logs("INFO")
    answer = TestClient(crashing).get("/crash", headers={"X-Request-Id": "ci-1"})
    body = answer.json()
    assert (answer.status_code, body["code"], body["request_id"]) == (500, "platform.internal", "ci-1")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    crash = next(line for line in lines if line["event"] == "request crashed")
    assert "ZeroDivisionError: secret internals" in crash["exception"]
    assert crash["request_id"] == "ci-1"
    assert [line["status"] for line in lines if line["event"] == "request"] == [500]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/nothing", 404, "request.not_found", None),
        ("GET", "/v1/jobs/", 404, "request.not_found", None),
        ("PUT", "/v1/jobs", 405, "request.method_not_allowed", "GET, POST"),
        ("DELETE", "/jobs", 405, "request.method_not_allowed", "GET, POST"),
        ("POST", "/healthz", 405, "request.method_not_allowed", "GET"),
    ],
)
def test_what_is_not_there_is_a_problem_too(gateway, method, path, status, code, allow):
    answer = httpx.request(method, gateway.url + path, headers={"Authorization": f"Bearer {gateway.key}"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"], answer.headers.get("allow")) == (status, code, allow)
