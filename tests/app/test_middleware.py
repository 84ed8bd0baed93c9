import json

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.errors import install_error_handlers
from app.middleware import RequestBorder
from app.shared.logs import configure_logs


@pytest.fixture
def crashing() -> FastAPI:
    """An app whose only route fails in a way nobody foresaw."""
    app = FastAPI()
    app.add_middleware(RequestBorder, small_body_bytes=1000)
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


def test_every_answer_has_the_headers_that_keep_browsers_from_using_it(gateway):
    for path, is_page in (("/v1/jobs", False), ("/nothing", False), ("/healthz", False), ("/docs", True)):
        headers = gateway.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert ("default-src 'none'" in headers["content-security-policy"]) is not is_page
        assert headers["cache-control"] == "no-store"


def test_an_answer_keeps_the_cache_control_of_its_own(gateway, submit):
    headers = gateway.client.get(f"/v1/jobs/{submit()['id']}").headers
    assert headers.get_list("cache-control") == ["private, no-cache"]


def test_json_has_a_limit_on_every_route(gateway):
    paths = gateway.client.get("/openapi.json").json()["paths"]
    large = b'{"name": "' + b"x" * (16 * 1024 + 64 * 1024) + b'"}'
    # A body that nobody asked for is never read.
    posts = [path for path, operations in paths.items() if "requestBody" in operations.get("post", {})]
    assert len(posts) >= 4
    for path in posts:
        for headers in ({"Content-Type": "application/json"}, {}):
            answer = gateway.client.post(path, content=large, headers=headers)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code in (413, 415, 422), path
            # A route that never looks at the body refuses it for another reason.
            if answer.status_code == 422:
                assert "required" in answer.text


def test_pages_of_other_origins_may_call_only_when_an_operator_says_so(gateway, stack, tmp_path, in_process_gateway):
    asks = {"Origin": "https://ci.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,idempotency-key"}  # fmt: skip
    refused = gateway.client.options("/v1/jobs", headers=asks)
    assert refused.status_code == 405
    assert not any(name.startswith("access-control") for name in refused.headers)
    settings = stack.fresh(tmp_path / "state", cors_origins="https://ci.example https://other.example")
    with in_process_gateway(settings) as client:
        allowed = client.options("/v1/jobs", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "https://ci.example"
        assert "access-control-allow-credentials" not in allowed.headers
        answer = client.get("/v1/jobs", headers={"Origin": "https://ci.example"})
        assert "Idempotent-Replayed" in answer.headers["access-control-expose-headers"]
        strange = client.get("/v1/jobs", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in strange.headers


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/api-keys", "/v1/datasets", "/v1/webhook-endpoints", "/v1/uploads"])
@pytest.mark.parametrize(
    "body",
    ["[" * 20_000, "[" * 20_000 + "]" * 20_000, '{"a":' * 9_000 + "1" + "}" * 9_000, '{"seed":' + "9" * 9_000 + "}"],
    ids=["opened", "nested", "nested objects", "digits"],
)
def test_json_that_would_exhaust_who_reads_it_is_refused_like_any_other(gateway, path, body):
    answer = gateway.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (413, 422)
    assert answer.json()["code"].startswith(("request.", "spec."))
