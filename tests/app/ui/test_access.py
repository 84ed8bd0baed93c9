import re
import threading

import httpx
import pytest
from redis import Redis
from sqlalchemy import select

from app.browser_sessions import SESSION_SECONDS
from app.keys import create_api_key, ensure_project
from app.shared.db import db_now
from app.shared.tables import ApiKey
from app.ui.access import COOKIE, own_path
from tests.app.ui.conftest import OWN_PAGE, sign_in

PAGES = ("/ui/jobs", "/ui/models", "/ui/datasets", "/ui/queue", "/ui/new", "/ui/compare")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_leads_to_the_sign_in_and_back(gateway, path):
    answer = httpx.get(gateway.url + path, params={"status": "failed"})
    assert answer.status_code == 303
    back = answer.headers["location"]
    with httpx.Client(base_url=gateway.url, headers=OWN_PAGE) as client:
        form = client.get(back)
        (field,) = re.findall(r'name="next" value="([^"]+)"', form.text)
        signed_in = sign_in(client, gateway.key, next=field)
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, f"{path}?status=failed")


def test_start_pages_lead_to_the_jobs(gateway):
    for path in ("/", "/ui"):
        assert httpx.get(gateway.url + path).headers["location"] == "/ui/jobs"


def test_the_cookie_is_out_of_reach_of_scripts_other_sites_and_the_api(gateway):
    for origin, secure in (("http://gateway.test", False), ("https://gateway.test", True)):
        headers = {"Origin": origin, "Host": "gateway.test"}
        answer = httpx.post(f"{gateway.url}/ui/sign-in", data={"key": gateway.key}, headers=headers)
        words = {word.strip().lower() for word in answer.headers["set-cookie"].split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/ui", f"max-age={SESSION_SECONDS}"} <= words
        assert ("secure" in words) is secure
    token = answer.cookies.get(COOKIE) or re.search(rf"{COOKIE}=([^;]+)", answer.headers["set-cookie"])[1]
    assert httpx.get(f"{gateway.url}/v1/jobs", cookies={COOKIE: token}).status_code == 401
    assert gateway.key not in answer.headers["set-cookie"]


def test_neither_key_nor_token_is_kept_where_sessions_are(gateway, browser):
    with Redis.from_url(gateway.settings.broker_url, decode_responses=True) as redis:
        found = {name: redis.get(name) for name in redis.scan_iter("archrepair:session:*")}
        assert found
        assert all(0 < redis.ttl(name) <= SESSION_SECONDS for name in found)
    kept = repr(found)
    assert browser.cookies[COOKIE] not in kept
    assert gateway.key not in kept
    assert set(found.values()) <= {value for value in found.values() if re.fullmatch(r"key_[0-9A-Z]{26}", value)}


def test_a_wrong_key_is_told_so_and_opens_nothing(gateway):
    with httpx.Client(base_url=gateway.url, headers=OWN_PAGE) as client:
        answer = sign_in(client, "ar_nobody_knows")
        assert (answer.status_code, "not known here" in answer.text) == (401, True)
        assert not client.cookies
        assert 'aria-invalid="true"' in answer.text


def test_signing_out_ends_the_session_for_every_copy_of_the_cookie(gateway, browser):
    token = browser.cookies[COOKIE]
    assert browser.get("/ui/jobs").status_code == 200
    assert browser.post("/ui/sign-out").headers["location"] == "/ui/sign-in"
    assert COOKIE not in browser.cookies
    assert httpx.get(f"{gateway.url}/ui/jobs", cookies={COOKIE: token}).status_code == 303


def test_revoking_the_key_ends_its_sessions(gateway, browse):
    made = gateway.client.post("/v1/api-keys", json={"name": "browser", "scopes": ["jobs:read"]}).json()
    with browse(made["key"]) as client:
        assert client.get("/ui/jobs").status_code == 200
        gateway.client.delete(f"/v1/api-keys/{made['id']}").raise_for_status()
        assert client.get("/ui/jobs").status_code == 303
        assert client.get("/ui/api/jobs").status_code == 401


def test_an_expired_key_ends_its_sessions(gateway, browse, gateway_sessions):
    made = gateway.client.post("/v1/api-keys", json={"name": "browser", "scopes": ["jobs:read"]}).json()
    with browse(made["key"]) as client:
        with gateway_sessions.begin() as session:
            session.get_one(ApiKey, made["id"]).expires_at = session.scalars(select(db_now())).one() - 1
        assert client.get("/ui/jobs").headers["location"].startswith("/ui/sign-in")


def test_scopes_of_the_key_rule_the_pages(browse, read_only_key, submit):
    job = submit()
    with browse(read_only_key) as client:
        page = client.get(f"/ui/jobs/{job['id']}")
        assert page.status_code == 200
        assert "data-post" not in page.text
        for path in ("/ui/new", "/ui/models", "/ui/queue"):
            refused = client.get(path)
            assert (refused.status_code, "auth.missing_scope" in refused.text) == (403, True)
        assert client.post(f"/ui/api/jobs/{job['id']}/cancel", json={}).status_code == 403


def test_another_projects_things_are_as_absent_as_none(browse, stranger_key, submit, gateway):
    job = submit()
    never = "job_" + "0" * 26
    with browse(stranger_key) as client:
        assert job["id"] not in client.get("/ui/jobs").text
        for path in (
            "/ui/jobs/{}",
            "/ui/jobs/{}/report",
            "/ui/compare?id={}",
            "/ui/api/jobs/{}",
            "/ui/api/jobs/{}/logs",
        ):
            answers = [client.get(path.format(job_id)) for job_id in (job["id"], never)]
            assert [answer.status_code for answer in answers] == [404, 404]
        assert client.get(f"/ui/models/{job['model_id']}").status_code == 404
        assert client.post(f"/ui/api/jobs/{job['id']}/cancel", json={}).status_code == 404
    assert not gateway.client.get(f"/v1/jobs/{job['id']}").json()["done"]


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "SELF"}, False),
        ({"Origin": "SELF"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({}, False),
    ],
)
def test_only_pages_of_the_service_change_anything(gateway, browser, submit, headers, passes):
    job = submit()
    headers = {name: value.replace("SELF", gateway.url) for name, value in headers.items()}
    for method, path in (("POST", f"/ui/api/jobs/{job['id']}/cancel"), ("DELETE", f"/ui/api/models/{job['model_id']}")):
        answer = httpx.request(method, gateway.url + path, cookies=dict(browser.cookies), headers=headers)
        assert (answer.status_code != 403) is passes, answer.text
    assert (gateway.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled") is passes


def test_another_page_cannot_sign_somebody_in(gateway):
    answer = httpx.post(
        f"{gateway.url}/ui/sign-in", data={"key": gateway.key}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_keys_and_webhooks_are_out_of_reach_of_a_session(browser):
    for path in ("/ui/api/api-keys", "/ui/api/webhook-endpoints"):
        assert browser.post(path, json={}).status_code == 404


def test_a_link_from_elsewhere_is_asked_again_by_our_own_page(gateway):
    answer = httpx.get(f"{gateway.url}/ui/jobs", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, '<meta http-equiv="refresh" content="0">' in answer.text) == (200, True)


def test_a_part_of_a_page_sends_the_whole_page_to_sign_in(gateway):
    answer = httpx.get(f"{gateway.url}/ui/jobs?status=failed", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (
        401,
        "/ui/sign-in?next=%2Fui%2Fjobs%3Fstatus%3Dfailed",
    )


@pytest.mark.parametrize(
    "asked",
    [
        "https://evil.example/ui/",
        "//evil.example/ui/jobs",
        "/\\evil.example/ui/",
        "javascript:x",
        "//[",
        "/v1/jobs",
        "",
    ],
)
def test_signing_in_leads_nowhere_else(asked):
    assert own_path(asked) == "/ui/jobs"
    assert own_path("/ui/jobs?status=failed") == "/ui/jobs?status=failed"


def test_without_the_broker_the_dashboard_says_so_and_the_api_goes_on(embedded, tmp_path, in_process_gateway):
    settings = embedded.fresh(tmp_path / "state", broker_url="redis://127.0.0.1:1/0")
    with in_process_gateway(settings) as client:
        assert client.get("/v1/jobs").status_code == 200
        client.cookies.set(COOKIE, "x")
        answer = client.get("/ui/jobs")
        assert (answer.status_code, "platform.sessions_unavailable" in answer.text) == (503, True)


@pytest.mark.slow
def test_a_session_is_counted_against_the_limits_of_its_key(embedded, tmp_path, start_gateway):
    with start_gateway(embedded.fresh(tmp_path / "state", rate_limit_reads=3)) as running:
        with httpx.Client(base_url=running.url, headers=OWN_PAGE) as client:
            sign_in(client, running.key)
            statuses = [client.get("/ui/jobs").status_code for _ in range(5)]
        assert statuses[-1] == 429
        assert running.client.get("/v1/jobs").status_code == 429


def test_the_project_of_the_key_is_what_is_shown(gateway, gateway_sessions, browse):
    with gateway_sessions.begin() as session:
        project = ensure_project(session, f"ui-{threading.get_ident()}")
        key = create_api_key(session, project_id=project.id, name="ui")
    with browse(key) as client:
        assert "There are no jobs yet" in client.get("/ui/jobs").text
